"""Training again: because of a drifted batch, or because the policy says that it is time."""

from collections.abc import Iterator
from contextlib import contextmanager

from prefect import flow
from prefect.client.schemas.objects import State
from prefect.states import Completed

from flows.approval import ask_in_prefect
from flows.monitor import open_flow_job
from flows.report import show_report
from pipelines import retraining
from pipelines.due import open_reason, why
from pipelines.files import exclusive_lock
from pipelines.job import Job
from pipelines.report.leaving import leave_retraining
from pipelines.retraining import RetrainingReport


@flow(name="retrain")
def retrain(dataset: str, policy: str, reason: str, batch: str | None = None) -> State[str]:
    """Train a challenger because of the batch of this content hash, and let it meet the champion.

    What is refused (too soon after the last one, no budget left) ends well too, and says so.
    """
    job = open_flow_job(dataset, policy)
    return Completed(message=said(trained(job, reason, batch)))


@flow(name="retraining check")
def retraining_check(dataset: str, policy: str) -> State[str]:
    """Train where a reason to stands open: a batch called for it and nothing was trained since."""
    job = open_flow_job(dataset, policy)
    asked = open_reason(job.settings, job.spec.name)
    if asked is None:
        return Completed(message="nothing calls for a training")
    return Completed(message=said(trained(job, why(asked), asked.batch)))


def trained(job: Job, reason: str, batch: str | None) -> RetrainingReport:
    """One retraining; what passed and waits for a person is asked for in Prefect."""
    with training_turn(job):
        report = retraining.retrain(job, reason, batch)
    ask_in_prefect(job.settings)
    show_report(leave_retraining(job, report))
    return report


@contextmanager
def training_turn(job: Job) -> Iterator[None]:
    """One rollout or retraining of a dataset at a time, and one training on this home's accelerator.

    Waits. The kernel frees both locks with the process, however it ends.
    """
    home = job.settings.home
    with exclusive_lock(home / f"{job.spec.name}.lock"), exclusive_lock(home / "training.lock"):
        yield


def said(report: RetrainingReport) -> str:
    """The report in one line."""
    return f"{report.outcome}: {report.why}"
