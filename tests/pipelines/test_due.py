"""A batch that called for a training stays a reason until one was trained because of it, or after it."""

from pathlib import Path

import pytest

from pipelines.batches import Batch
from pipelines.due import open_reason, why
from pipelines.files import replace_file
from pipelines.monitor import MonitorReport
from pipelines.retraining import RetrainingReport
from pipelines.settings import Settings, load_settings


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return load_settings({"DANKAI_HOME": str(tmp_path)})


def saw(settings: Settings, batch: str, decision: str, day: int) -> MonitorReport:
    """Keep what a monitor run said of a batch."""
    time = f"2026-03-{day:02}T06:00:00+00:00"
    arrival = Batch(dataset="pump", source=f"{batch}.csv", content_hash=batch, received_at=time)
    report = MonitorReport(
        dataset="pump",
        batch=batch,
        decision=decision,  # type: ignore[arg-type]
        reasons=("it moved",),
        arrival=arrival,
        champion="c",
    )
    place = settings.home / "datasets" / "pump" / "monitor" / f"{batch}.json"
    replace_file(place, report.model_dump_json().encode())
    return report


def trained(settings: Settings, outcome: str, day: int, batch: str | None = None) -> None:
    """Keep what became of a retraining."""
    time = f"2026-03-{day:02}T07:00:00+00:00"
    report = RetrainingReport(
        dataset="pump",
        reason="r",
        started_at=time,
        finished_at=time,
        outcome=outcome,  # type: ignore[arg-type]
        why="w",
        champion="c",
        batch=batch,
    )
    place = settings.home / "datasets" / "pump" / "retrainings" / f"{day}-{outcome}.json"
    replace_file(place, report.model_dump_json().encode())


def test_nothing_is_due_where_no_batch_called_for_it(settings: Settings) -> None:
    assert open_reason(settings, "pump") is None
    for day, decision in enumerate(("none", "watch", "fault"), start=1):
        saw(settings, decision, decision, day)
    assert open_reason(settings, "pump") is None


def test_the_newest_that_called_for_it_is_the_reason_until_something_was_trained(settings: Settings) -> None:
    saw(settings, "a", "retrain", 1)
    asked = saw(settings, "b", "retrain", 8)
    saw(settings, "c", "none", 9)
    assert open_reason(settings, "pump") == asked
    trained(settings, "refused", 8, "b")
    trained(settings, "dropped", 2, "a")
    assert open_reason(settings, "pump") == asked
    trained(settings, "dropped", 9)
    assert open_reason(settings, "pump") is None


def test_the_reason_names_the_rows_and_what_is_wrong_with_them(settings: Settings) -> None:
    assert why(saw(settings, "a", "retrain", 1)) == "drift in None to None: it moved"
