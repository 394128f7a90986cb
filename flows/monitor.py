"""The daily look at the batches that came. A decision to retrain becomes an event, for an automation."""

from dataclasses import replace
from pathlib import Path

from prefect import flow
from prefect.client.schemas.objects import State
from prefect.states import Completed

from flows.actors import who_runs
from flows.dask import spread_of
from flows.drift_events import announce
from flows.names import run_name
from flows.report import show_missing, show_report
from pipelines.due import open_reason
from pipelines.job import Job, open_job
from pipelines.monitor import MonitorReport, monitor_batch
from pipelines.report.leaving import leave_batch
from pipelines.settings import load_settings
from validation.errors import InputError


@flow(name="monitor", flow_run_name=run_name)
def monitor(dataset: str, policy: str, batches: str) -> State[str]:
    """Look at every new batch in the folder `batches` (below DANKAI_DATA unless absolute), oldest first.

    Where none is new, a reason to train that still stands open is announced again: its event may have been
    lost. Fails where no batch ever came.
    """
    job = open_flow_job(dataset, policy)
    reports = [monitor_batch(job, batch) for batch in arrivals(job.settings.data / batches)]
    fresh = [report for report in reports if not report.repeated]
    for report in fresh:
        show_report(leave_batch(job, report))
    # After the pages: what an event starts makes those that are missing. One that is lost is announced again.
    for report in fresh or still_open(job):
        announce(report, Path(dataset), Path(policy))
    if not fresh:
        return Completed(name="Nothing new", message=f"nothing new; the newest batch: {said(reports[-1])}")
    return Completed(name=worst_decision(fresh), message="\n".join(map(said, fresh)))


def worst_decision(reports: list[MonitorReport]) -> str:
    """What the run's last state is called: the most urgent of what was decided."""
    order = ("none", "watch", "retrain", "fault")
    worst = max((report.decision for report in reports), key=order.index)
    return {"none": "Nothing moved", "watch": "Watch", "retrain": "Retrain: drift", "fault": "Data fault"}[
        worst
    ]


def still_open(job: Job) -> list[MonitorReport]:
    """The batch that calls for a training which did not start yet, if there is one."""
    asked = open_reason(job.settings, job.spec.name)
    return [asked] if asked else []


def arrivals(folder: Path) -> list[Path]:
    """The files or folders that came, in order of arrival; hidden ones are still being written.

    Raises InputError where there is none.
    """
    found = [path for path in folder.glob("*") if not path.name.startswith(".")] if folder.is_dir() else []
    if not found:
        raise InputError(f"{folder}: no batch has arrived; is what delivers them running?")
    return sorted(found, key=lambda path: (path.stat().st_mtime, path.name))


def said(report: MonitorReport) -> str:
    """The report in one line."""
    return f"{report.decision}: {Path(report.arrival.source).name}: {'; '.join(report.reasons)}"


def open_flow_job(dataset: str, policy: str) -> Job:
    """The job of a run without a terminal, in the name of its deployment; pages that are missing are made."""
    job = open_job(Path(dataset), Path(policy), load_settings(), lambda *_: None)
    job = replace(job, actor=who_runs(), spread=spread_of(job.settings))
    show_missing(job)
    return job
