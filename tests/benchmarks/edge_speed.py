"""Seconds per window of the exported graph in ONNX Runtime, beside the PyTorch model, sparse and dense.

    python tests/benchmarks/edge_speed.py --steps 2304 --width 64 --layers 2 --threads 2

Random weights and inputs; the three take turns in one process. Wall-clock figures mean something on a
quiet machine only; with --threads 1 the CPU time of the thread is reported, which a busy one disturbs less.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from pipelines.edge.export import export_onnx
from pipelines.edge.rows import Inputs
from pipelines.edge.runtime import OnnxEncoder, num_selected
from sparse_model.config import Budget, ModelConfig
from sparse_model.model import SparseEncoder


def main() -> None:
    """Print one JSON object: min and median of each side in milliseconds."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name, default in (
        ("steps", 2304),
        ("width", 64),
        ("layers", 2),
        ("block", 64),
        ("threads", 2),
        ("repeats", 20),
    ):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--density", type=float, default=0.125)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    clock = time.thread_time if asked.threads == 1 else time.perf_counter
    sides = _sides(asked)
    samples: dict[str, list[float]] = {name: [] for name in sides}
    with torch.inference_mode():
        for turn in range(asked.repeats + 2):
            for name, run in sides.items():
                started = clock()
                run()
                if turn >= 2:  # the first ones warm up
                    samples[name].append((clock() - started) * 1e3)
    figures = {name: {"min_ms": min(s), "median_ms": float(np.median(s))} for name, s in samples.items()}
    print(json.dumps({**vars(asked), "clock": clock.__name__, **figures}, indent=1))


def _sides(asked: argparse.Namespace) -> dict:
    torch.manual_seed(0)
    config = ModelConfig(
        num_numeric=8,
        cardinalities=(16, 4),
        num_outputs=1,
        width=asked.width,
        num_layers=asked.layers,
        ffn_width=3 * asked.width,
        block_size=asked.block,
    )
    model = SparseEncoder(config).eval()
    shape = (asked.steps, config.num_numeric)
    codes = np.random.default_rng(0).integers(0, 4, (asked.steps, 2))
    window = Inputs(np.random.default_rng(1).normal(size=shape).astype("f4"), np.ones(shape, "f4"), codes)
    tensors = [torch.from_numpy(array)[None] for array in window]
    with tempfile.TemporaryDirectory() as folder:
        export_onnx(model, Path(folder) / "model.onnx")
        engine = OnnxEncoder((Path(folder) / "model.onnx").read_bytes(), asked.threads)
    blocks = num_selected(asked.density, asked.steps, asked.block)
    return {
        "onnx_sparse": lambda: engine.outputs(window, blocks),
        "torch_sparse": lambda: model(*tensors, Budget(asked.density)),
        "torch_dense": lambda: model(*tensors),
    }


if __name__ == "__main__":
    main()
