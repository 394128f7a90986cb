"""The whole encoder on one GPU: time and peak memory, sparse against dense with the same weights and code.

`python -m pipelines.benchmarks.model [folder]` prints tables and writes model.json. Both sides share all but
the attention: bfloat16, eager, feed-forward in pieces in inference, nothing recomputed in training.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from pipelines.benchmarks.attention import table
from pipelines.benchmarks.timing import environment, median_ms
from sparse_model.config import Budget, ModelConfig
from sparse_model.model import SparseEncoder

DENSITY = 0.125
DENSE = [SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION]
Row = dict[str, Any]


def encoder() -> SparseEncoder:
    """8 layers, width 512, 8 heads, blocks of 128 steps; random weights."""
    config = ModelConfig(
        num_numeric=16, cardinalities=(), num_outputs=1, width=512, num_layers=8, num_heads=8, num_kv_heads=8,
        ffn_width=1408, block_size=128,
    )  # fmt: skip
    return SparseEncoder(config).to("cuda", torch.bfloat16)


def inference(model: SparseEncoder, num_steps: int, budget: Budget | None) -> tuple[float, float]:
    """Milliseconds and peak GiB of one forward pass over one sequence."""
    inputs = _inputs(num_steps)

    def work() -> Tensor:
        with torch.inference_mode(), sdpa_kernel(DENSE):
            return model(*inputs, budget)

    return _measure(work, repeats=5 if num_steps <= 65_536 else 1)


def training_step(model: SparseEncoder, num_steps: int, budget: Budget | None) -> tuple[float, float]:
    """Milliseconds and peak GiB of forward + backward over one sequence; no optimiser step."""
    inputs = _inputs(num_steps)

    def work() -> None:
        with sdpa_kernel(DENSE):
            model(*inputs, budget).float().square().mean().backward()
        model.zero_grad(set_to_none=True)

    return _measure(work, repeats=3)


def _inputs(num_steps: int) -> tuple[Tensor, Tensor, Tensor]:
    numeric = torch.randn(1, num_steps, 16, device="cuda", dtype=torch.bfloat16)
    return numeric, torch.ones_like(numeric), torch.zeros(1, num_steps, 0, dtype=torch.int64, device="cuda")


def _measure(work: Any, repeats: int) -> tuple[float, float]:
    work()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    elapsed = median_ms(work, repeats=repeats, warm_up=0)
    return elapsed, torch.cuda.max_memory_allocated() / 2**30


def compare(model: SparseEncoder, num_steps: int, training: bool) -> Row:
    """Dense and sparse at one length."""
    row: Row = {"steps": num_steps, "training": training}
    run = training_step if training else inference
    row["dense_ms"], row["dense_gib"] = run(model, num_steps, None)
    row["sparse_ms"], row["sparse_gib"] = run(model, num_steps, Budget(DENSITY))
    row["speedup"] = row["dense_ms"] / row["sparse_ms"]
    row["memory_ratio"] = row["sparse_gib"] / row["dense_gib"]
    return row


def growth(model: SparseEncoder, lengths: list[int]) -> list[Row]:
    """Time and memory of sparse inference up to a million steps."""
    rows = []
    for num_steps in lengths:
        elapsed, gib = inference(model, num_steps, Budget(DENSITY))
        rows.append({"steps": num_steps, "sparse_ms": elapsed, "sparse_gib": gib})
    return rows


def main(folder: Path | None = None) -> dict[str, Any]:
    """Measure, print, and write model.json into `folder`."""
    model = encoder()
    rows = [compare(model, n, training) for training in (False, True) for n in (16_384, 65_536)]
    print(table(rows), flush=True)
    longer = growth(model, [1 << power for power in range(14, 21)])
    print(table(longer), flush=True)
    result = {"environment": environment(), "compare": rows, "growth": longer}
    if folder is not None:
        (folder / "model.json").write_text(json.dumps(result, indent=1) + "\n")
    return result


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else None)
