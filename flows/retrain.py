"""Training again: because of a drifted batch, or because the policy says that it is time."""

from prefect import flow
from prefect.client.schemas.objects import State
from prefect.states import Completed

from flows.approval import ask_in_prefect
from flows.monitor import open_flow_job
from flows.names import run_name
from flows.report import show_report
from pipelines import retraining
from pipelines.due import open_reason, why
from pipelines.job import Job, training_turn
from pipelines.report.leaving import leave_retraining
from pipelines.retraining import RetrainingReport


@flow(name="retrain", flow_run_name=run_name)
def retrain(dataset: str, policy: str, reason: str, batch: str | None = None) -> State[str]:
    """Train a challenger because of the batch of this content hash, and let it meet the champion.

    What is refused (too soon after the last one, no budget left) ends well too, and says so.
    """
    job = open_flow_job(dataset, policy)
    report = trained(job, reason, batch)
    return Completed(name=f"Challenger {report.outcome}", message=said(report))


@flow(name="retraining check", flow_run_name=run_name)
def retraining_check(dataset: str, policy: str) -> State[str]:
    """Train where a reason to stands open: a batch called for it and nothing was trained since."""
    job = open_flow_job(dataset, policy)
    asked = open_reason(job.settings, job.spec.name)
    if asked is None:
        return Completed(name="Not due", message="nothing calls for a training")
    report = trained(job, why(asked), asked.batch)
    return Completed(name=f"Challenger {report.outcome}", message=said(report))


def trained(job: Job, reason: str, batch: str | None) -> RetrainingReport:
    """One retraining; what passed and waits for a person is asked for in Prefect."""
    with training_turn(job.settings, job.spec.name):
        report = retraining.retrain(job, reason, batch)
    ask_in_prefect(job.settings)
    show_report(leave_retraining(job, report))
    return report


def said(report: RetrainingReport) -> str:
    """The report in one line."""
    return f"{report.outcome}: {report.why}"
