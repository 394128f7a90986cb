"""What a drift decision tells Prefect: one event per batch, from which the automation starts a retraining."""

from pathlib import Path

from prefect.events import emit_event

from pipelines.due import why
from pipelines.monitor import MonitorReport

DRIFT = "dankai.drift"
FAULT = "dankai.data-fault"
"""Never retrains: for automations that call people."""
_EVENTS = {"retrain": DRIFT, "fault": FAULT}


def announce(report: MonitorReport, dataset: Path, policy: Path) -> None:
    """Emit the event that a decision calls for; nothing for `none` and `watch`.

    Its resource is the dataset, so that an automation can count the events of each by itself.
    """
    event = _EVENTS.get(report.decision)
    if event is None:
        return
    emit_event(
        event,
        resource={
            "prefect.resource.id": f"dankai.dataset.{report.dataset}",
            "prefect.resource.name": report.dataset,
            "prefect.resource.role": "dataset",
        },
        payload={
            "dataset": str(dataset),
            "policy": str(policy),
            "batch": report.batch,
            "start": str(report.arrival.start),
            "end": str(report.arrival.end),
            "reason": why(report),
        },
    )
