"""Whether a training is due: the safety net under the events, which are lost with a server that is down."""

from pipelines.monitor import MonitorReport, reports
from pipelines.retraining import retrainings
from pipelines.settings import Settings


def open_reason(settings: Settings, dataset: str) -> MonitorReport | None:
    """The newest batch that called for a training, if none was trained because of it or after it."""
    asked = [report for report in reports(settings, dataset) if report.decision == "retrain"]
    if not asked:
        return None
    trained = [each for each in retrainings(settings, dataset) if each.outcome != "refused"]
    is_answered = any(
        each.batch == asked[-1].batch or each.started_at > asked[-1].arrival.received_at for each in trained
    )
    return None if is_answered else asked[-1]


def why(report: MonitorReport) -> str:
    """What a retraining is asked for with: the offending rows and what is wrong with them, in one line."""
    arrival = report.arrival
    return f"drift in {arrival.start} to {arrival.end}: {'; '.join(report.reasons)}"
