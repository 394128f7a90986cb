"""Several GPUs of one host: training by DDP and FSDP, attention and inference over shards of a sequence.

`python -m pipelines.benchmarks.parallel [folder]` prints tables and writes parallel.json into `folder`, anew
after each part; a part that fails or takes too long is noted and the others go on. One GPU does too: it is
then compared with itself. Trainings go through `pipelines.training.train`, by their plans alone: the encoder
of 8 layers and width 512, bf16, windows of 16,384 steps of a generated series. A step of a training is timed
from report to report.
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

SECONDS = {
    "traffic": 60,
    "shards": 110,
    "inference": 130,
    "1 gpu, accumulated": 90,
    "ddp": 60,
    "fsdp": 60,
    "1 gpu": 60,
    "lost rank": 90,
}
"""Longest that each part may take."""
NUM_STEPS, WARM_UP = 30, 10
WINDOW, LOOKBACK, HORIZON = 16_384, 16_320, 64
WINDOWS_PER_GPU = 2
Row = dict[str, Any]


def plans(num_gpus: int) -> dict[str, Row]:
    """What each training's plan says beside what all share: equal batches, but in "1 gpu", an equal part."""
    whole, part = WINDOW * WINDOWS_PER_GPU * num_gpus, WINDOW * WINDOWS_PER_GPU
    return {
        "1 gpu, accumulated": {"tokens_per_step": whole, "accumulate": num_gpus},
        "ddp": {"tokens_per_step": whole, "devices": num_gpus},
        "fsdp": {"tokens_per_step": whole, "devices": num_gpus, "strategy": "fsdp"},
        "1 gpu": {"tokens_per_step": part},
    }


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
    seconds = [ends[step + 1] - ends[step] for step in range(WARM_UP, NUM_STEPS - 1)]
    return {
        "training": name,
        "devices": plan.devices,
        "windows_per_step": plan.tokens_per_step // WINDOW,
        "steps_per_s": 1.0 / statistics.median(seconds),
        "peak_gib": checkpoint.peak_memory_bytes / 2**30,
        "validation_loss": checkpoint.validation_loss,
        "train_loss": [loss for _, loss in curve["train_loss"]],
        "environment": environment(),
    }


def lost_rank() -> Row:
    """The training of "ddp", whose last rank is killed with kill -9 halfway, and the same call once more."""
    from pipelines.training import train
    from validation.errors import InputError

    plan, resumed, killed = plan_of("ddp").model_copy(update={"steps_per_epoch": 10}), [], []

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
        "training": "ddp, a rank lost",
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


def compared(rows: list[Row]) -> list[Row]:
    """Each training against one GPU: losses at equal batches, steps a second at equal work a GPU."""
    of = {row["training"]: row for row in rows}
    alone, same_batch = of.get("1 gpu"), of.get("1 gpu, accumulated")
    for row in rows:
        if row["devices"] > 1 and alone and "steps_per_s" in row:
            row["speed_of_1_gpu"] = row["steps_per_s"] / alone["steps_per_s"]
        if row["devices"] > 1 and same_batch:
            pairs = zip(row["train_loss"], same_batch["train_loss"], strict=True)
            row["largest_relative_loss_difference"] = max(abs(a - b) / abs(b) for a, b in pairs)
    return rows


def _in_time(part: str, result: Path) -> Row:
    """Run a part in a process of its own; what it wrote, or why it wrote nothing."""
    command = [sys.executable, "-m", "pipelines.benchmarks.parallel", "--part", part, str(result)]
    print(f"{part}: at most {SECONDS[part]} s", file=sys.stderr, flush=True)
    started = time.monotonic()
    process = subprocess.Popen(command, start_new_session=True, stderr=subprocess.PIPE, text=True)
    try:
        said = process.communicate(timeout=SECONDS[part])[1]
        failed = f"exit status {process.returncode}: {said.strip()[-1500:]}" if process.returncode else ""
    except subprocess.TimeoutExpired:
        failed = f"took longer than {SECONDS[part]} s"
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    found = json.loads(result.read_text()) if result.exists() else {}
    found["part_seconds"] = time.monotonic() - started
    return found | ({"failed": failed} if failed else {})


def _run_part(part: str, result: Path) -> None:
    if part in ("traffic", "shards", "inference"):
        from pipelines.benchmarks import sequence_shards

        sequence_shards.main(part, result)
    else:
        result.write_text(json.dumps(lost_rank() if part == "lost rank" else training(part)))


def main(folder: Path | None = None, parts: Sequence[str] = tuple(SECONDS)) -> dict[str, Any]:
    """Measure part by part, print, and write parallel.json into `folder`, anew after each."""
    found: dict[str, Any] = {}
    with TemporaryDirectory() as scratch:
        for part in parts:
            found[part] = _in_time(part, Path(scratch) / f"{part}.json")
            trainings = [row for row in found.values() if "train_loss" in row]
            compared(trainings)
            print(json.dumps({k: v for k, v in found[part].items() if k != "train_loss"}), flush=True)
            if folder is not None:
                (folder / "parallel.json").write_text(json.dumps(found, indent=1) + "\n")
    return found


if __name__ == "__main__":
    if sys.argv[1:2] == ["--part"]:
        _run_part(sys.argv[2], Path(sys.argv[3]))
    else:
        main(Path(sys.argv[1]) if len(sys.argv) > 1 else None, sys.argv[2:] or tuple(SECONDS))
