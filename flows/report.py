"""A run's report in Prefect: its verdict as a Markdown artifact, with the way to the page."""

from pathlib import Path

from flows.artifacts import key_of
from pipelines.report.brief import brief
from pipelines.report.compose import compose
from pipelines.report.leaving import Left
from pipelines.report.words import Words, language_of


def show_report(left: Left) -> None:
    """An artifact of the flow run at work; its key is the dataset's, so that the UI shows its history.

    Where no flow is at work, there is nobody to show it to.
    """
    from prefect.artifacts import create_markdown_artifact
    from prefect.context import FlowRunContext

    if FlowRunContext.get() is None:
        return
    page = compose(left.story, Words(language_of()))
    key = key_of(left.story.dataset, f"{left.story.kind}-report")
    create_markdown_artifact(brief(page, _place(left)), key=key, description=page.title)


def _place(left: Left) -> str:
    """In MLflow's pages where a server shows them to everybody, else the file."""
    address = left.story.lineage.run_url
    is_shared = address.startswith("http") and not address.startswith("http://127.0.0.1:5000/")
    return f"{address}/artifacts" if is_shared else str(Path(left.page))
