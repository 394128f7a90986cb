"""What a rollout shows in Prefect's pages: a table per gate, how far the work is, links, a summary.

Only where a Prefect server is set: an artifact that nobody can open is not made.
"""

import re
import time
from inspect import isawaitable
from typing import TYPE_CHECKING

from pipelines.check_rows import row_of
from pipelines.escaping import markdown, printable
from pipelines.job import Job, Report
from pipelines.tracking import DOCS

if TYPE_CHECKING:
    from uuid import UUID

    from pipelines.evaluation import Evaluation
    from pipelines.summary import RolloutSummary

_SECONDS_BETWEEN = 2.0


def show_gate(job: Job, evaluation: "Evaluation") -> None:
    """Every check with value, interval, threshold and verdict."""
    if job.settings.prefect_api_url is None:
        return
    from prefect.artifacts import create_table_artifact

    verdict = evaluation.verdict
    rows = [row_of(evaluation.stage, check).model_dump() for check in verdict.checks]
    reasons = "; ".join(verdict.reasons) or "every required check passed"
    description = f"{evaluation.stage} gate: {verdict.outcome}. {markdown(reasons)}"
    create_table_artifact(
        rows, key=key_of(job.spec.name, f"{evaluation.stage}-gate"), description=description
    )


def with_progress(job: Job) -> Report:
    """The job's report, shown in Prefect's pages too: an artifact for each piece of work that has parts."""
    return job.report if job.settings.prefect_api_url is None else _Shown(job)


class _Shown:
    """A report that keeps progress artifacts up to date, of whatever lasts long enough to be looked at."""

    def __init__(self, job: Job) -> None:
        self._job, self._report = job, job.report
        self._made: dict[str, UUID] = {}
        self._told: dict[str, float] = {}
        """When each piece of work was last told of, or began."""

    def __call__(self, what: str, done: int, total: int) -> None:
        self._report(what, done, total)
        now = time.monotonic()
        is_due = now - self._told.setdefault(what, now) >= _SECONDS_BETWEEN
        if not is_due and not (done >= total and what in self._made):
            return
        from prefect.artifacts import create_progress_artifact, update_progress_artifact

        self._told[what], percent = now, 100 * done / total
        said = f"{printable(what)}: {done} of {total}"
        if what in self._made:
            update_progress_artifact(self._made[what], percent, said)
        else:
            made = create_progress_artifact(percent, key_of(self._job.spec.name, what), said)
            assert not isawaitable(made)  # it waits for itself where no event loop runs
            self._made[what] = made


def show_rollout(job: Job, summary: "RolloutSummary", run_id: str) -> None:
    """Where the rollout stands in words, and the way to its run in MLflow and to its Data Docs."""
    if job.settings.prefect_api_url is None:
        return
    from prefect.artifacts import create_link_artifact, create_markdown_artifact

    create_markdown_artifact(in_words(summary), key_of(job.spec.name, "rollout"), markdown(summary.sentence))
    link = job.tracker.page(run_id)
    if link:
        create_link_artifact(
            link, "the rollout in MLflow", key_of(job.spec.name, "mlflow"), "Its runs and models"
        )
        docs, said = f"{link}/artifacts/{DOCS}", "What Great Expectations found in the data"
        create_link_artifact(docs, "its Data Docs", key_of(job.spec.name, "data-docs"), said)


def in_words(summary: "RolloutSummary") -> str:
    """The rollout as Markdown: how it ended, what is live, gate by gate."""
    state, heading = summary.state, f"# {markdown(summary.dataset)}: {summary.ended}"
    live = f"version {state.champion} is live at stage {state.stage}" if state.live else "nothing is live"
    gates = "\n".join(f"- {each.stage} gate: **{each.verdict.outcome}**" for each in summary.evaluations)
    docs = f"Data Docs: `{summary.prepared.report.docs_uri}`"
    return f"{heading}\n\n{markdown(summary.sentence)}\n\n{live}\n\n{gates}\n\n{docs}\n"


def key_of(dataset: str, what: str) -> str:
    """Prefect's keys have lower-case letters, digits and dashes."""
    return re.sub(r"[^a-z0-9]+", "-", f"{dataset}-{what}".lower()).strip("-")
