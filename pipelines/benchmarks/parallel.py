"""Several GPUs of one host: training by DDP and FSDP, attention and inference over shards of a sequence.

`python -m pipelines.benchmarks.parallel [folder [part ...]]` prints rows and writes parallel.json into
`folder`, anew after each part; a part that fails or takes too long is noted and the others go on. Trainings
go through `pipelines.training.train`, by their plans alone: the encoder of 8 layers and width 512, bf16,
windows of 16,384 steps of a generated series, two a GPU and step; on 2, 4, ... of the GPUs here. They are
timed in two rounds, one after the other, from report to report of a step.
"""

import json
import multiprocessing
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

SEQUENCES = {"traffic": 60, "shards": 160, "inference": 170}
TRAINING_SECONDS = 100
"""Longest that each part may take."""
NUM_STEPS, WARM_UP = 60, 20
WINDOW, LOOKBACK, HORIZON = 16_384, 16_320, 64
WINDOWS_PER_GPU = 2
_LONG = ("train_loss", "step_ms")
Row = dict[str, Any]


def plans(num_gpus: int) -> dict[str, Row]:
    """What each training's plan says beside what all share: a batch that grows with the GPUs, and the same
    batch on one, in as many parts."""
    part = WINDOW * WINDOWS_PER_GPU
    found: dict[str, Row] = {"1 gpu": {"tokens_per_step": part}}
    for count in counts(num_gpus):
        shared = {"tokens_per_step": part * count}
        found[f"ddp on {count}"] = shared | {"devices": count}
        found[f"fsdp on {count}"] = shared | {"devices": count, "strategy": "fsdp"}
        found[f"1 gpu for {count}"] = shared | {"accumulate": count}
    return found


def counts(num_gpus: int) -> list[int]:
    """2, 4, 8, ... of the GPUs here."""
    return [2**power for power in range(1, num_gpus.bit_length()) if 2**power <= num_gpus]


def parts_of(num_gpus: int) -> list[str]:
    """Every part in its order; those that are timed against each other come twice."""
    timed = [name for name in plans(num_gpus) if " for " not in name]
    lost = ["lost rank"] if num_gpus > 1 else []
    return [*SEQUENCES, *timed, *(name for name in plans(num_gpus) if " for " in name), *timed, *lost]


def plan_of(name: str) -> Any:
    import torch

    from pipelines.training_plan import TrainingPlan

    shared = {
        "num_steps": NUM_STEPS,
        "steps_per_epoch": NUM_STEPS,
        "curriculum": [(1.0, 1.0)],
        "validation_windows": 4,
        "warmup_steps": 5,
        "peak_learning_rate": 1e-3,
        "precision": "bf16-mixed",
    }
    return TrainingPlan.model_validate(shared | plans(torch.cuda.device_count())[name])


def training(name: str) -> Row:
    """One training: its losses, steps a second and peak memory."""
    from pipelines.benchmarks.timing import environment
    from pipelines.training import train

    plan = plan_of(name)
    ends: dict[int, float] = {}
    with TemporaryDirectory() as folder:
        windows, config = _windows(Path(folder), plan)
        checkpoint, curve = train(
            windows, config, plan, "sparse", 0, Path(folder) / "model",
            lambda _, step, __: ends.__setitem__(step, time.perf_counter()),
        )  # fmt: skip
    return {
        "training": name,
        "devices": plan.devices,
        "windows_per_step": plan.tokens_per_step // WINDOW,
        "step_ms": [1e3 * (ends[step + 1] - ends[step]) for step in range(WARM_UP, NUM_STEPS - 1)],
        "peak_gib": checkpoint.peak_memory_bytes / 2**30,
        "validation_loss": checkpoint.validation_loss,
        "train_loss": [loss for _, loss in curve["train_loss"]],
        "environment": environment(),
    }


def lost_rank() -> Row:
    """The training of "ddp on 2", whose last rank is killed with kill -9 halfway, and the same call again."""
    from pipelines.training import train
    from validation.errors import InputError

    plan, resumed, killed = plan_of("ddp on 2").model_copy(update={"steps_per_epoch": 10}), [], []

    def kill(_label: str, step: int, _total: int) -> None:
        if step == NUM_STEPS // 2:
            ranks = sorted(multiprocessing.active_children(), key=lambda rank: rank.pid or 0)
            killed.append(time.perf_counter())
            os.kill(ranks[-1].pid or 0, signal.SIGKILL)

    with TemporaryDirectory() as folder:
        windows, config = _windows(Path(folder), plan)
        place, said = Path(folder) / "model", ""
        try:
            train(windows, config, plan, "sparse", 0, place, kill)
        except InputError as error:
            said = str(error).replace(folder, "")
        seconds = time.perf_counter() - killed[0]
        _, curve = train(windows, config, plan, "sparse", 0, place, lambda _, step, __: resumed.append(step))
    return {
        "training": "ddp on 2, a rank lost",
        "devices": plan.devices,
        "said": said,
        "seconds_until_said": seconds,
        "first_step_resumed": resumed[0],
        "train_loss": [loss for _, loss in curve["train_loss"]],
    }


def _windows(folder: Path, plan: Any) -> tuple[Any, Any]:
    """A generated series of a million minutes as the product reads it, and the model's shape."""
    from pipelines.data.preprocessing import fit_preprocessing
    from pipelines.data.snapshot import take_snapshot
    from pipelines.data.windows import Windows, training_chunks
    from sparse_model.config import ModelConfig

    spec = _spec(folder, plan)
    snapshot = take_snapshot(spec, folder / "snapshots")
    windows = Windows(snapshot, spec, fit_preprocessing(training_chunks(snapshot, spec), spec))
    config = ModelConfig(
        num_numeric=len(windows.numeric_names), cardinalities=(), num_outputs=1, task="forecast",
        width=512, num_layers=8, num_heads=8, num_kv_heads=8, ffn_width=1408, block_size=128,
    )  # fmt: skip
    return windows, config


def _spec(folder: Path, plan: Any) -> Any:
    import numpy as np
    import polars as pl

    from pipelines.data.spec import DatasetSpec, Source, Split

    rows, generator = 1_000_000, np.random.default_rng(0)
    names = tuple(f"reading_{number}" for number in range(8))
    waves = {
        name: np.sin(np.arange(rows) / (20 + 31 * number)) + generator.normal(size=rows) / 4
        for number, name in enumerate(names)
    }
    at = pl.Series(np.arange(rows) * 60_000_000).cast(pl.Datetime("us"))
    pl.DataFrame({"at": at, **waves}).write_parquet(folder / "series.parquet")
    return DatasetSpec(
        name="series", description="Generated", task="forecast", source=Source(kind="parquet", path=str(folder
        / "series.parquet")), start=datetime(2020, 1, 1), step="1min", numeric=names, target=names[:1],
        lookback=LOOKBACK, horizon=HORIZON, stride=WINDOW, split=Split(validation=0.8, test=0.9),
        training=plan,
    )  # fmt: skip


def compared(rows: list[Row]) -> None:
    """Each training against one GPU: losses at equal batches, windows a second at equal work a GPU."""
    of = {row["training"]: row for row in rows}
    for row in rows:
        if "step_ms" in row:
            row["steps_per_s"] = 1e3 / statistics.median(row["step_ms"])
            row["steps_per_s_by_mean"] = 1e3 / statistics.mean(row["step_ms"])
    for row in rows:
        count, alone = row["devices"], of.get("1 gpu")
        same_batch = of.get(f"1 gpu for {count}")
        if count > 1 and alone and "steps_per_s" in row:
            row["scaling"] = count * row["steps_per_s"] / alone["steps_per_s"]
            row["scaling_by_mean"] = count * row["steps_per_s_by_mean"] / alone["steps_per_s_by_mean"]
        if count > 1 and same_batch:
            pairs = zip(row["train_loss"], same_batch["train_loss"], strict=True)
            row["largest_relative_loss_difference"] = max(abs(a - b) / abs(b) for a, b in pairs)


def _in_time(part: str, result: Path) -> Row:
    """Run a part in a process of its own; what it wrote, or why it wrote nothing."""
    command = [sys.executable, "-m", "pipelines.benchmarks.parallel", "--part", part, str(result)]
    limit = SEQUENCES.get(part, TRAINING_SECONDS)
    print(f"{part}: at most {limit} s", file=sys.stderr, flush=True)
    started = time.monotonic()
    process = subprocess.Popen(command, start_new_session=True, stderr=subprocess.PIPE, text=True)
    try:
        said = process.communicate(timeout=limit)[1]
        failed = f"exit status {process.returncode}: {said.strip()[-1500:]}" if process.returncode else ""
    except subprocess.TimeoutExpired:
        failed = f"took longer than {limit} s"
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    found = json.loads(result.read_text()) if result.exists() else {}
    found["part_seconds"] = time.monotonic() - started
    return found | ({"failed": failed} if failed else {})


def _run_part(part: str, result: Path) -> None:
    if part in SEQUENCES:
        from pipelines.benchmarks import sequence_shards

        sequence_shards.main(part, result)
    else:
        result.write_text(json.dumps(lost_rank() if part == "lost rank" else training(part)))


def main(folder: Path | None = None, parts: Sequence[str] = ()) -> dict[str, Any]:
    """Measure part by part (all that there are), print, and write parallel.json into `folder`, anew after
    each."""
    import torch

    found: dict[str, Any] = {}
    with TemporaryDirectory() as scratch:
        for number, part in enumerate(parts or parts_of(torch.cuda.device_count())):
            row = _in_time(part, Path(scratch) / f"{number}.json")
            if "step_ms" in found.get(part, {}):  # a second round
                row["step_ms"] = found[part]["step_ms"] + row.get("step_ms", [])
            found[part] = found.get(part, {}) | row
            compared([row for row in found.values() if "train_loss" in row])
            print(json.dumps({k: v for k, v in found[part].items() if k not in _LONG}), flush=True)
            if folder is not None:
                (folder / "parallel.json").write_text(json.dumps(found, indent=1) + "\n")
    return found


if __name__ == "__main__":
    if sys.argv[1:2] == ["--part"]:
        _run_part(sys.argv[2], Path(sys.argv[3]))
    else:
        main(Path(sys.argv[1]) if len(sys.argv) > 1 else None, sys.argv[2:])
