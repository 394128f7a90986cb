"""What a rollout shows in Prefect's pages: a table per gate, how far the work is, links.

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
        if total <= 1:
            return  # it has no parts to count: a bar would jump from nothing to all
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


def show_links(job: Job, run_id: str) -> None:
    """The way from a rollout's flow run to its run in MLflow and to its Data Docs."""
    link, docs = job.tracker.page(run_id), job.tracker.page(run_id, artifact=f"{DOCS}/index.html")
    if job.settings.prefect_api_url is None or link is None or docs is None:
        return
    from prefect.artifacts import create_link_artifact

    name, found = job.spec.name, "What Great Expectations found in the data"
    create_link_artifact(link, "the rollout in MLflow", key_of(name, "mlflow"), "Its runs and models")
    create_link_artifact(docs, "its Data Docs", key_of(name, "data-docs"), found)


def key_of(dataset: str, what: str) -> str:
    """Prefect's keys have lower-case letters, digits and dashes."""
    return re.sub(r"[^a-z0-9]+", "-", f"{dataset}-{what}".lower()).strip("-")
