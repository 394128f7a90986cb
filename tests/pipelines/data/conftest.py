"""A small job of one's own: a table and its dataset file, to be broken one thing at a time."""

from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import yaml

from pipelines.data.contract import contract_of
from pipelines.data.preprocessing import fit_preprocessing
from pipelines.data.snapshot import Snapshot, read_snapshot, take_snapshot
from pipelines.data.spec import DatasetSpec, load_spec
from pipelines.data.windows import Windows, refuse_unusable_split, training_rows
from validation.structure import refuse_broken

NUM_ROWS = 400
Prepare = Callable[[Path], Windows]


def sensor_table() -> pl.DataFrame:
    """400 hours of one pump: load, an event every 7 hours, known 90 minutes later."""
    times = [datetime(2024, 1, 1) + timedelta(hours=hour) for hour in range(NUM_ROWS)]
    return pl.DataFrame(
        {
            "at": times,
            "load": [float(hour * 37 % 101) for hour in range(NUM_ROWS)],
            "plan": [float(hour % 24) for hour in range(NUM_ROWS)],
            "repair": [float(hour * 13 % 17) for hour in range(NUM_ROWS)],
            "repaired_at": [time + timedelta(minutes=hour * 53 % 600) for hour, time in enumerate(times)],
            "state": ["idle" if hour % 3 else "busy" for hour in range(NUM_ROWS)],
            "tripped": [int(hour % 7 == 0) for hour in range(NUM_ROWS)],
            "trip_known_at": [time + timedelta(minutes=90) for time in times],
        }
    )


def sensor_spec() -> dict[str, Any]:
    return {
        "name": "pump",
        "description": "an hourly log of one pump",
        "task": "event",
        "source": {"kind": "csv", "path": "pump.csv"},
        "time": "at",
        "step": "1h",
        "numeric": ["load", "plan", "repair"],
        "categorical": ["state"],
        "known_future": ["plan"],
        "late": {"known_at": "repaired_at", "columns": ["repair"]},
        "calendar": ["hour"],
        "target": ["tripped"],
        "target_known_at": "trip_known_at",
        "slices": ["state"],
        "lookback": 24,
        "horizon": 6,
        "stride": 6,
        "split": {"validation": "2024-01-10", "test": "2024-01-13"},
    }


@pytest.fixture
def write_job(tmp_path: Path) -> Callable[..., Path]:
    """Writes table and dataset file; returns the dataset file's path."""

    def write(table: pl.DataFrame | None = None, **changes: Any) -> Path:
        (sensor_table() if table is None else table).write_csv(tmp_path / "pump.csv")
        spec = {key: value for key, value in (sensor_spec() | changes).items() if value is not None}
        path = tmp_path / "pump.yaml"
        path.write_text(yaml.safe_dump(spec, sort_keys=False))
        return path

    return write


@pytest.fixture
def table() -> pl.DataFrame:
    return sensor_table()


@pytest.fixture
def prepare(tmp_path: Path) -> Prepare:
    """What a job does with a dataset file before anything is trained."""

    def run(path: Path) -> Windows:
        spec = load_spec(path)
        snapshot = take_snapshot(spec, tmp_path / "snapshots")
        rows = read_snapshot(snapshot)
        refuse_broken(rows.to_pandas(), contract_of(spec))
        windows = Windows(snapshot, spec, fit_preprocessing(training_rows(rows, spec), spec), rows)
        refuse_unusable_split(windows)
        return windows

    return run


@pytest.fixture(scope="session")
def flights(tmp_path_factory: pytest.TempPathFactory) -> tuple[DatasetSpec, Snapshot, pl.DataFrame]:
    """The built-in dataset and its snapshot."""
    spec = load_spec(Path(__file__).parents[3] / "infra" / "datasets" / "flights.yaml")
    snapshot = take_snapshot(spec, tmp_path_factory.mktemp("snapshots"))
    return spec, snapshot, read_snapshot(snapshot)
