"""What MLflow is told beside trainings and gates: Data Docs, the simple baseline, the months of operation."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from pipelines.evaluation import TASK_METRICS
from pipelines.job import Job, Prepared
from pipelines.scoring import Scores, load_scored
from validation.data import DataReport
from validation.statistics import METRICS

if TYPE_CHECKING:
    from pipelines.monitor import MonitorReport
    from pipelines.replay import Month

DOCS = "data_docs"


def link_docs(job: Job, run_id: str, report: DataReport) -> None:
    """The report on the data, to be read beside the rollout's run wherever MLflow is read."""
    job.tracker.log_tags(run_id, {DOCS: report.docs_uri})
    job.tracker.log_artifact(run_id, Path(report.docs_uri).parent, DOCS)


@contextmanager
def baseline_run(job: Job, prepared: Prepared) -> Iterator[Callable[[Sequence[Scores]], None]]:
    """The run of the simple baseline's fit; what it gives is to be told the scores of every part."""
    from pipelines.baselines import PARAMETERS, recipe_of

    name, snapshot = job.spec.name, prepared.snapshot
    params = {"recipe": recipe_of(job.windows(prepared)).model_dump(), "model": PARAMETERS[job.spec.task]}
    with job.tracker.run(f"{name} baseline", "baseline", {"dataset": name}, job.parent_run) as run_id:
        job.tracker.log_params(run_id, params)
        job.tracker.log_dataset(run_id, name, snapshot.content_hash, snapshot.uri, "training")
        yield lambda scores: job.tracker.log_metrics(run_id, _by_part(job, scores))


def _by_part(job: Job, scores: Sequence[Scores]) -> dict[str, float]:
    return {
        f"{name}/{each.part}": METRICS[name](load_scored(each))
        for each in scores
        for name in TASK_METRICS[job.spec.task]
    }


def track_month(job: Job, prepared: Prepared, month: "Month") -> str:
    """A run of its own for a month of operation, once; its id."""

    def compute() -> str:
        name, snapshot, metric = job.spec.name, prepared.snapshot, month.metric
        with job.tracker.run(f"{name} {month.month}", "month", _tags(job, month), job.parent_run) as run_id:
            job.tracker.log_dataset(run_id, name, snapshot.content_hash, snapshot.uri, month.month)
            ends = {f"{metric}_low": month.value.low, f"{metric}_high": month.value.high}
            job.tracker.log_metrics(run_id, {metric: month.value.value, **ends})
        return run_id

    return job.once(f"track-{month.month}", {"month": month, "policy": job.policy}, str, compute)


def track_batch(job: Job, report: "MonitorReport") -> str:
    """A run of its own for a batch that was looked at; its id."""
    tags = {
        "dataset": job.spec.name,
        "batch": report.batch,
        "checkpoint": report.champion,
        "decision": report.decision,
        "reasons": "; ".join(report.reasons),
    }
    job.note(sentence=f"{report.decision}: {'; '.join(report.reasons)}")
    start = report.arrival.start
    name = f"{job.spec.name} batch {start:%Y-%m-%d}" if start else f"{job.spec.name} batch"
    with job.tracker.run(name, "batch", tags, job.parent_run) as run_id:
        job.tracker.log_dict(run_id, report.model_dump(mode="json"), "monitor.json")
        if report.value is not None:
            job.tracker.log_metrics(run_id, {report.metric: report.value.value})
    return run_id


def _tags(job: Job, month: "Month") -> dict[str, str]:
    tags = {
        "dataset": job.spec.name,
        "month": month.month,
        "checkpoint": month.champion,
        "drift": month.drift.decision,
        "drift_reasons": "; ".join(month.drift.reasons) or "nothing moved",
        DOCS: month.data.docs_uri,
        "retrained": month.retrained,
        "rolled_back": month.rolled_back,
        "not_judged": month.not_judged,
    }
    return {name: value for name, value in tags.items() if value}
