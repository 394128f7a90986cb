"""A table larger than memory through snapshot, validation and windows: peak memory, and rows a second.

`python -m pipelines.benchmarks.data [folder] [rows]` generates a Parquet set of sensor readings (50 machines,
a file each, a reading every ten seconds), measures in fresh processes, prints a table and writes data.json.
The limit that the rows a second are compared with is a plain scan of the same files, which adds up every
number: once by Polars on all cores, once by pyarrow, a row group at a time.
"""

import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from pipelines.data.spec import DatasetSpec, Source, Split
from pipelines.process_memory import peak_bytes

MACHINES, STEP_SECONDS, ROW_GROUP = 50, 10, 1 << 17
READINGS = ("load", "heat", "flow", "vibration")
NUM_BATCHES, BATCH_TOKENS = 200, 65_536
GIB = 2**30
Row = dict[str, Any]


def generate(folder: Path, num_rows: int) -> None:
    """A file a machine: readings around a daily wave to three digits, a mode, a few readings missing."""
    import numpy as np
    import polars as pl

    for machine in range(MACHINES):
        generator, rows = np.random.default_rng(machine), num_rows // MACHINES
        at = pl.datetime_range(
            start := datetime(2020, 1, 1),
            start + timedelta(seconds=STEP_SECONDS * (rows - 1)),
            timedelta(seconds=STEP_SECONDS),
            eager=True,
        )
        wave = np.sin(np.arange(rows) * (2 * np.pi * STEP_SECONDS / 86_400))
        readings = {name: (wave + generator.normal(size=rows)).round(3) for name in READINGS}
        readings["vibration"][generator.random(rows) < 0.001] = np.nan
        mode = pl.Series(generator.integers(3, size=rows)).replace_strict([0, 1, 2], ["off", "idle", "on"])
        table = pl.DataFrame({"at": at, **readings, "mode": mode})
        table = table.with_columns(pl.col("vibration").fill_nan(None))
        table.write_parquet(folder / f"machine_{machine:02}.parquet", row_group_size=ROW_GROUP)


def spec_of(folder: Path) -> DatasetSpec:
    return DatasetSpec(
        name="many_rows",
        description="Generated readings of 50 machines",
        task="forecast",
        source=Source(kind="parquet", path=str(folder)),
        time="at",
        step=f"{STEP_SECONDS}s",
        entity_from="filename",
        numeric=READINGS,
        categorical=("mode",),
        target=("load",),
        slices=("mode",),
        lookback=1024,
        horizon=64,
        stride=1024,
        split=Split(validation=0.7, test=0.85),
        nullable=("vibration",),
        ranges={name: (-10.0, 10.0) for name in READINGS},
        allowed={"mode": ("off", "idle", "on")},
    )


def scan_with_polars(folder: Path) -> int:
    """Adds up every number, on all cores."""
    import polars as pl

    table = pl.scan_parquet(folder / "*.parquet")
    sums = table.select(pl.len(), pl.col(READINGS).sum(), pl.col("at").max(), pl.col("mode").n_unique())
    return sums.collect(engine="streaming")["len"][0]


def scan_with_pyarrow(folder: Path) -> int:
    """The same a row group at a time."""
    import pyarrow.compute  # its functions are made as it is imported, which type checkers do not see
    import pyarrow.parquet as pq

    pc: Any = pyarrow.compute
    num_rows = 0
    for path in sorted(folder.glob("*.parquet")):
        file = pq.ParquetFile(path)
        for group in range(file.num_row_groups):
            rows = file.read_row_group(group)
            for name in READINGS:
                pc.sum(rows[name])
            pc.max(rows["at"])
            pc.count_distinct(rows["mode"])
            num_rows += rows.num_rows
    return num_rows


def through_the_pipeline(source: Path, work: Path) -> list[Row]:
    """Snapshot, validation, preprocessing, windows, and batches of a training, one after another."""
    from pipelines.data.contract import contract_of
    from pipelines.data.preprocessing import fit_preprocessing
    from pipelines.data.snapshot import take_snapshot
    from pipelines.data.stream import chunks
    from pipelines.data.windows import Windows, refuse_unusable_split, training_chunks
    from validation.data import validate_parts
    from validation.gates import Outcome

    spec, made = spec_of(source), Measured()
    snapshot = made.phase("snapshot", lambda: take_snapshot(spec, work))
    report = made.phase(
        "validation",
        lambda: validate_parts(
            (rows.to_pandas() for rows in chunks(snapshot.uri)),
            contract_of(spec),
            work / "docs",
            work / "aside",
            max_quarantined_share=0.01,
        ),
    )
    if (report.num_rows, report.outcome) != (snapshot.num_rows, Outcome.PASS):
        raise RuntimeError(f"the generated table did not pass: {report.outcome}, {report.reason}")
    preprocessing = made.phase(
        "preprocessing", lambda: fit_preprocessing(training_chunks(snapshot, spec), spec)
    )
    windows = made.phase("windows", lambda: Windows(snapshot, spec, preprocessing))
    refuse_unusable_split(windows)
    rows = made.rows(snapshot.num_rows)
    made.phase("batches", lambda: draw(windows))
    return [
        *rows,
        {**made.found[-1], "windows_per_s": NUM_BATCHES * _windows_of_batch() / made.found[-1]["seconds"]},
    ]


def draw(windows: Any) -> None:
    """Windows of NUM_BATCHES training batches, anywhere in the table."""
    from pipelines.training_batches import Batches
    from pipelines.training_plan import TrainingPlan

    plan = TrainingPlan(tokens_per_step=BATCH_TOKENS, curriculum=((1.0, 1.0),))
    batches = Batches(windows, plan, "dense", 0, 0, NUM_BATCHES)
    for number in range(NUM_BATCHES):
        batches[number]


def _windows_of_batch() -> int:
    return BATCH_TOKENS // (1024 + 64)


class Measured:
    """Seconds and peak memory of one phase after another."""

    def __init__(self) -> None:
        self.found: list[Row] = []

    def phase(self, name: str, work: Callable[[], Any]) -> Any:
        """Peak of what was resident, pages of mapped files included, from the phase's start on."""
        Path("/proc/self/clear_refs").write_text("5")  # the kernel's peak starts anew
        started = time.perf_counter()
        result = work()
        self.found.append(
            {"phase": name, "seconds": time.perf_counter() - started, "peak_gib": peak_bytes() / GIB}
        )
        print(f"{name}: {self.found[-1]}", file=sys.stderr, flush=True)
        return result

    def rows(self, num_rows: int) -> list[Row]:
        return [{**row, "rows_per_s": num_rows / row["seconds"]} for row in self.found]


SCANS: dict[str, Callable[[Path], int]] = {"polars": scan_with_polars, "pyarrow": scan_with_pyarrow}


def in_fresh_process(what: str, source: Path, work: Path) -> list[Row]:
    """Run one part of the benchmark where nothing else was loaded."""
    command = [sys.executable, "-m", "pipelines.benchmarks.data", "--part", what, str(source), str(work)]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True)
    return json.loads(done.stdout)


def _part(what: str, source: Path, work: Path) -> list[Row]:
    if what == "pipeline":
        return through_the_pipeline(source, work)
    made = Measured()
    num_rows = made.phase(f"plain scan ({what})", lambda: SCANS[what](source))
    return made.rows(num_rows)


def environment() -> dict[str, Any]:
    names = ("polars", "pyarrow", "pandas", "numpy", "great-expectations")
    return {
        "machine": platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        **{name: version(name) for name in names},
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    }


def main(out: Path | None = None, num_rows: int = 100_000_000, place: Path | None = None) -> dict[str, Any]:
    """Generate below `place` (a temporary folder), measure, print, and write data.json into `out`."""
    with TemporaryDirectory(dir=place, prefix="dankai-bench-data-") as folder:
        source, work = Path(folder) / "source", Path(folder) / "work"
        source.mkdir()
        work.mkdir()
        generate(source, num_rows)
        size = sum(path.stat().st_size for path in source.iterdir())
        rows = [
            row for what in ("polars", "pyarrow", "pipeline") for row in in_fresh_process(what, source, work)
        ]
    limit = rows[0]["rows_per_s"]
    for row in rows:
        if "rows_per_s" in row:
            row["share_of_polars"] = row["rows_per_s"] / limit
    result = {"environment": environment(), "rows": num_rows, "source_gib": size / GIB, "phases": rows}
    print(_table(rows), flush=True)
    if out is not None:
        (out / "data.json").write_text(json.dumps(result, indent=1) + "\n")
    return result


def _table(rows: list[Row]) -> str:
    lines = [f"{'phase':22} {'seconds':>9} {'rows/s':>12} {'of Polars':>9} {'peak GiB':>9}"]
    for row in rows:
        speed, share = row.get("rows_per_s"), row.get("share_of_polars")
        said = (
            f"{speed:12,.0f} {share:9.2f}" if speed and share else f"{row['windows_per_s']:10,.0f} w {'':9}"
        )
        lines.append(f"{row['phase']:22} {row['seconds']:9.1f} {said} {row['peak_gib']:9.2f}")
    return "\n".join(lines)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--part"]:
        print(json.dumps(_part(sys.argv[2], Path(sys.argv[3]), Path(sys.argv[4]))))
    else:
        arguments = sys.argv[1:]
        main(
            Path(arguments[0]) if arguments else None,
            int(arguments[1]) if len(arguments) > 1 else 100_000_000,
        )
