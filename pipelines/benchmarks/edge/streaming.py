"""`dankai bench edge --streaming`: what a new step costs a stream that has seen a thousand, or a million.

`python -m pipelines.benchmarks.edge.streaming FOLDER [STEPS]`. A causal encoder of the default shape with
blocks of 64, on one thread of a process that needs numpy alone. Whole blocks are appended; at each length
looked at, the last hundred of them are timed, then a block's worth of single steps, each of which computes
the open block anew. Times are the thread's own processor time, which other work on the machine disturbs less.

What is kept is full after EXACT_BLOCKS + NUM_SUMMARIES blocks, 32,768 steps; until then a step has less to
read.
"""

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from pipelines.clock import now
from pipelines.edge.rows import Inputs
from pipelines.edge.runtime import peak_memory_bytes
from pipelines.edge.stream import Stream
from pipelines.edge.weights import read_weights
from pipelines.files import replace_file

LOOKS = (6400, 32_768, 65_536, 131_072, 262_144, 524_288, 1_048_576)
BLOCKS, EXACT_BLOCKS, NUM_SUMMARIES, SIZE = 32, 256, 256, 64
_TIMED = 100
Row = dict[str, Any]


def main(folder: Path, most: int = LOOKS[-1], threads: int = 1, say: Callable[[str], None] = print) -> Row:
    """Run up to `most` steps in a fresh process, print the table, and write edge_streaming.json."""
    import os

    from pipelines.benchmarks.attention import table
    from pipelines.fingerprint import ROOT, environment

    with TemporaryDirectory() as place:
        shape = _write(Path(place))
        command = [sys.executable, "-m", "pipelines.benchmarks.edge.streaming", "--alone", place, str(most)]
        environ = {**os.environ, "OMP_NUM_THREADS": str(threads), "OPENBLAS_NUM_THREADS": str(threads)}
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environ, check=True)
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    bounds = {"blocks": BLOCKS, "exact_blocks": EXACT_BLOCKS, "num_summaries": NUM_SUMMARIES}
    conditions = {"threads": threads, "model": shape, "finished": now(), **bounds}
    say(table(rows))
    result = {"environment": environment().model_dump(), "conditions": conditions, "rows": rows}
    replace_file(folder / "edge_streaming.json", json.dumps(result, indent=1).encode() + b"\n")
    return result


def _write(folder: Path) -> dict[str, Any]:
    import torch

    from pipelines.edge.export import export_onnx
    from sparse_model.config import ModelConfig
    from sparse_model.model import SparseEncoder

    torch.manual_seed(0)
    config = ModelConfig(num_numeric=8, cardinalities=(16,), num_outputs=1, block_size=SIZE, causal=True)
    export_onnx(SparseEncoder(config).eval(), folder / "model.onnx")
    (folder / "config.json").write_text(json.dumps(config.to_dict()))
    return config.to_dict()


def _alone(folder: Path, most: int) -> None:
    model = json.loads((folder / "config.json").read_bytes())
    weights = read_weights((folder / "model.onnx").read_bytes())
    stream = Stream(weights, model, BLOCKS, EXACT_BLOCKS, NUM_SUMMARIES)
    random = np.random.default_rng(0)
    for look in (look for look in LOOKS if look <= most):
        block_ms: list[float] = []
        while stream.num_steps < look - SIZE:
            block_ms.append(_timed(stream, _steps(random, model, SIZE)))
        step_ms = [_timed(stream, _steps(random, model, 1)) for _ in range(SIZE)]
        print(json.dumps(_row(stream, block_ms[-_TIMED:], step_ms)), flush=True)


def _row(stream: Stream, block_ms: list[float], step_ms: list[float]) -> Row:
    return {
        "steps": stream.num_steps,
        "block_ms": statistics.median(block_ms),
        "block_p90_ms": float(np.quantile(block_ms, 0.9)),
        "per_step_ms": statistics.median(block_ms) / SIZE,
        "single_step_ms": statistics.median(step_ms),
        "single_step_min_ms": min(step_ms),
        "cache_mib": stream.num_bytes / 2**20,
        "peak_mib": peak_memory_bytes() / 2**20,
    }


def _timed(stream: Stream, inputs: Inputs) -> float:
    started = time.thread_time()
    stream.append(inputs)
    return (time.thread_time() - started) * 1e3


def _steps(random: np.random.Generator, model: dict[str, Any], count: int) -> Inputs:
    shape = (count, model["num_numeric"])
    codes = [random.integers(0, size, count) for size in model["cardinalities"]]
    return Inputs(
        random.normal(size=shape).astype(np.float32), np.ones(shape, np.float32), np.stack(codes, 1)
    )


if __name__ == "__main__":
    if sys.argv[1] == "--alone":
        _alone(Path(sys.argv[2]), int(sys.argv[3]))
    else:
        main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else LOOKS[-1])
