"""A batch arrives: what it is taken for, what is kept of it, and that nothing is dropped in silence."""

from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from pipelines.batches import batches
from pipelines.candidates import train_candidate
from pipelines.data.spec import load_spec
from pipelines.job import Job
from pipelines.monitor import MonitorReport, monitor_batch
from pipelines.preparation import source_data
from pipelines.registry import Tracker
from pipelines.release import start_pilot
from pipelines.release_log import ReleaseLog
from pipelines.settings import Settings
from tests.tiny_rollout import pump_table, write_dataset, write_policy
from validation.policy import load_policy

JUNE = datetime(2024, 6, 1)
Send = Callable[..., MonitorReport]


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory, store: Settings, tracker: Tracker) -> Job:
    """The pump up to June, its dense model live."""
    folder = tmp_path_factory.mktemp("monitored")
    table = pump_table().filter(pl.col("at") < JUNE)
    spec = load_spec(write_dataset(folder, "monitored", table=table))
    policy = load_policy(write_policy(folder))
    job = Job(store, spec, policy, tracker, ReleaseLog.open(store), lambda *_: None)
    start_pilot(job, train_candidate(job, source_data(job), "dense"), "in use")
    return job


@pytest.fixture
def send(live: Job, tmp_path: Path) -> Send:
    """Monitor ten days of the pump from `first` on, changed by `change`."""

    def one(first: datetime, change: Callable[[pl.DataFrame], pl.DataFrame] = lambda rows: rows) -> Any:
        last = first + timedelta(days=10)
        rows = pump_table().filter(pl.col("at").is_between(first, last, closed="left"))
        path = tmp_path / f"{first:%m%d}.csv"
        change(rows).write_csv(path)
        return monitor_batch(live, path)

    return one


def test_sound_rows_are_scored_and_known_from_then_on(live: Job, send: Send) -> None:
    report = send(JUNE)
    assert report.decision in ("none", "watch", "retrain")
    assert (report.arrival.num_rows, report.arrival.start) == (240, JUNE)
    assert report.value is not None
    assert [each.content_hash for each in batches(live.settings, "monitored")] == [report.batch]
    again = send(JUNE)
    assert again == report.model_copy(update={"repeated": True})
    assert len(batches(live.settings, "monitored")) == 1
