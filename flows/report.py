"""A run's report in Prefect: its verdict as a Markdown artifact, with the way to the page."""

from flows.artifacts import key_of
from pipelines.escaping import markdown
from pipelines.job import Job
from pipelines.report.leaving import Left, leave_missing


def show_report(left: Left) -> None:
    """An artifact of the flow run at work; its key is the dataset's, so that the UI shows its history.

    Where no flow is at work, there is nobody to show it to.
    """
    from prefect.artifacts import create_markdown_artifact
    from prefect.context import FlowRunContext

    if FlowRunContext.get() is None:
        return
    key = key_of(left.story.dataset, f"{left.story.kind}-report")
    create_markdown_artifact(left.in_short, key=key, description=markdown(left.sentence))


def show_missing(job: Job) -> None:
    """At a run's start: the pages that earlier ones were killed before."""
    for left in leave_missing(job):
        show_report(left)
