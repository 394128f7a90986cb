"""The daily look at the newest batch. A decision to retrain becomes an event; an automation does the rest."""

from pathlib import Path

from pipelines.monitor import monitor_batch
from prefect import flow
from prefect.client.schemas.objects import State
from prefect.states import Completed

from flows.actors import who_runs
from flows.drift_events import announce
from pipelines.job import Job, open_job
from pipelines.settings import load_settings
from validation.errors import InputError


@flow(name="monitor")
def monitor(dataset: str, policy: str, batches: str) -> State[str]:
    """Look at the newest batch in the folder `batches` (below DANKAI_DATA unless absolute).

    Fails where there is none: a batch that does not come is news too.
    """
    settings = load_settings()
    batch = newest_batch(settings.data / batches)
    job = open_flow_job(dataset, policy)
    report = monitor_batch(job, batch)
    announce(report, Path(dataset), Path(policy))
    return Completed(message=f"{report.decision}: {batch.name}: {'; '.join(report.reasons)}")


def newest_batch(folder: Path) -> Path:
    """The file or folder that arrived last; hidden ones are still being written.

    Raises InputError where there is none.
    """
    found = [path for path in folder.glob("*") if not path.name.startswith(".")] if folder.is_dir() else []
    if not found:
        raise InputError(f"{folder}: no batch has arrived; is what delivers them running?")
    return max(found, key=lambda path: (path.stat().st_mtime, path.name))


def open_flow_job(dataset: str, policy: str) -> Job:
    """The job of a run without a terminal, in the name of its deployment."""
    from dataclasses import replace

    job = open_job(Path(dataset), Path(policy), load_settings(), lambda *_: None)
    return replace(job, actor=who_runs())
