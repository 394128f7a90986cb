"""The whole encoder on one GPU: time and peak memory, sparse against dense with the same weights.

`python -m pipelines.benchmarks.model [folder]` prints tables and writes model.json. bfloat16, batch 1,
8 layers, width 512, 8 heads, blocks of 128 steps, 1/8 of them read. Three encoders:

- plain: the dense encoder as one writes it in PyTorch, attention by the fastest SDPA kernel (cuDNN);
- dense: the same attention in this package's code, with all that is not about sparsity: inference in place,
  some heads and some rows at a time, one kernel for the rotation and one for the gate;
- sparse: as dense, but reading 1/8 of the blocks, the selection included.

"recorded" replays the pass as a CUDA graph; "recompute" keeps little more than each layer's input for the
gradient and makes the rest again (sparse_model.recomputation). Times are wall-clock from call to result, so
the host counts.
"""

import gc
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention, silu

from pipelines.benchmarks.attention import table
from pipelines.benchmarks.timing import environment
from sparse_model.captured import Captured
from sparse_model.config import Budget, ModelConfig
from sparse_model.layers import Layer
from sparse_model.model import SparseEncoder

DENSITY = 0.125
LENGTHS = (16_384, 65_536)
FASTEST_DENSE = [SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION]
Row = dict[str, Any]
Inputs = tuple[Tensor, Tensor, Tensor]


def encoder(num_kv_heads: int = 8) -> SparseEncoder:
    """8 layers, width 512, 8 heads, blocks of 128 steps; random weights."""
    config = ModelConfig(
        num_numeric=16, cardinalities=(), num_outputs=1, width=512, num_layers=8, num_heads=8,
        num_kv_heads=num_kv_heads, ffn_width=1408, block_size=128,
    )  # fmt: skip
    with torch.device("cuda"):
        model = SparseEncoder(config).bfloat16()
    torch.nn.init.normal_(model.head.weight, std=0.02)  # it starts as zeros, and zero gradients run faster
    return model


def plain(model: SparseEncoder, inputs: Inputs) -> Tensor:
    """The dense encoder in ordinary PyTorch, with the weights of `model`; the selector is left out."""
    x = model.embed(*inputs)
    cos, sin = _angles(x.shape[1], model.config.head_dim // 2, x.dtype)
    for layer in model.layers:
        assert isinstance(layer, Layer)
        x = x + _plain_attention(layer, layer.attention_norm(x), cos, sin)
        gate, value = layer.ffn.to_hidden(layer.ffn_norm(x)).chunk(2, dim=-1)
        x = x + layer.ffn.to_out(silu(gate) * value)
    return model.head(model.norm(x))


def _plain_attention(layer: Layer, x_BNW: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    attention, channels = layer.attention, layer.attention.config.head_dim
    q = attention.to_q(x_BNW).unflatten(-1, (-1, channels)).transpose(1, 2)
    k, v = attention.to_kv(x_BNW).unflatten(-1, (2, -1, channels)).permute(2, 0, 3, 1, 4)
    out = scaled_dot_product_attention(_rotated(q, cos, sin), _rotated(k, cos, sin), v)
    return attention.to_out(out.transpose(1, 2).flatten(2))


def _angles(num_steps: int, half: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    frequency = 10_000.0 ** (-torch.arange(half, device="cuda") / half)
    angle_ND = torch.arange(num_steps, device="cuda")[:, None] * frequency
    return angle_ND.cos().to(dtype), angle_ND.sin().to(dtype)


def _rotated(x_BHND: Tensor, cos_ND: Tensor, sin_ND: Tensor) -> Tensor:
    first, second = x_BHND.chunk(2, dim=-1)
    return torch.cat([first * cos_ND - second * sin_ND, first * sin_ND + second * cos_ND], dim=-1)


class Variant(NamedTuple):
    """One encoder that is measured."""

    name: str
    budget: Budget | None = None
    plain: bool = False
    recompute: bool = False
    recorded: bool = False
    num_kv_heads: int = 8

    def run(self, model: SparseEncoder, inputs: Inputs) -> Tensor:
        if self.plain:
            return plain(model, inputs)
        return model.predict(*inputs, self.budget, recompute=self.recompute).outputs_BNO

    def bound(self, model: SparseEncoder, inputs: Inputs) -> Callable[[], object]:
        """The forward pass over `inputs`, ready to be called again and again."""
        if not self.recorded:
            return lambda: self.run(model, inputs)
        recorded = Captured(model, *inputs, self.budget)
        return lambda: recorded(*inputs)


SPARSE = Variant("sparse", Budget(DENSITY))
INFERENCE = [
    Variant("plain", plain=True),
    Variant("dense"),
    Variant("dense, recorded", recorded=True),
    SPARSE,
    Variant("sparse, recorded", Budget(DENSITY), recorded=True),
    Variant("sparse, 2 kv heads", Budget(DENSITY), num_kv_heads=2),
]
TRAINING = [
    Variant("plain", plain=True),
    Variant("dense"),
    Variant("dense, recompute", recompute=True),
    SPARSE,
    Variant("sparse, recompute", Budget(DENSITY), recompute=True),
]


def inference(variant: Variant, num_steps: int) -> Row:
    """Milliseconds and peak GiB of one forward pass over one sequence."""
    with torch.no_grad(), sdpa_kernel(FASTEST_DENSE, set_priority=True):
        model, inputs = _fresh(variant, num_steps)
        return _measure(variant.bound(model, inputs), repeats=9 if num_steps <= 65_536 else 2)


def training_step(variant: Variant, num_steps: int) -> Row:
    """Milliseconds and peak GiB of forward + backward over one sequence; no optimiser step."""
    model, inputs = _fresh(variant, num_steps)

    def work() -> None:
        with sdpa_kernel(FASTEST_DENSE, set_priority=True):
            variant.run(model, inputs).float().square().mean().backward()
        model.zero_grad(set_to_none=True)

    return _measure(work, repeats=5)


def _fresh(variant: Variant, num_steps: int) -> tuple[SparseEncoder, Inputs]:
    """Model and inputs, the only things on the GPU; peaks are counted from here on, a recording's too."""
    gc.collect()
    # 32 MiB for every stream that ever multiplied: a recording and a backward pass leave theirs behind
    torch._C._cuda_clearCublasWorkspaces()  # pyright: ignore[reportAttributeAccessIssue]
    torch.cuda.empty_cache()
    model, inputs = encoder(variant.num_kv_heads), _inputs(num_steps)
    torch.cuda.reset_peak_memory_stats()
    return model, inputs


def _inputs(num_steps: int) -> Inputs:
    numeric = torch.randn(1, num_steps, 16, device="cuda", dtype=torch.bfloat16)
    return numeric, torch.ones_like(numeric), torch.zeros(1, num_steps, 0, dtype=torch.int64, device="cuda")


def _measure(work: Callable[[], object], repeats: int) -> Row:
    """Wall-clock time from call to result, host included; peak of what tensors hold, weights included."""
    work()
    times = [_wall_ms(work) for _ in range(repeats)]
    peak = torch.cuda.max_memory_allocated() / 2**30
    return {"ms": statistics.median(times), "slowest_ms": max(times), "gib": peak}


def _wall_ms(work: Callable[[], object]) -> float:
    torch.cuda.synchronize()
    started = time.perf_counter()
    work()
    torch.cuda.synchronize()
    return 1e3 * (time.perf_counter() - started)


def compare(variants: list[Variant], measure: Callable[[Variant, int], Row], num_steps: int) -> list[Row]:
    """One row per encoder at one length, with its speed and memory against both dense ones."""
    rows: dict[str, Row] = {}
    for variant in variants:
        print(f"{measure.__name__}, {num_steps} steps: {variant.name}", file=sys.stderr, flush=True)
        rows[variant.name] = {"encoder": variant.name, "steps": num_steps, **measure(variant, num_steps)}
    for row in rows.values():
        for against in ("plain", "dense"):
            row[f"speed_over_{against}"] = rows[against]["ms"] / row["ms"]
            row[f"memory_of_{against}"] = row["gib"] / rows[against]["gib"]
    return list(rows.values())


def growth(lengths: list[int]) -> list[Row]:
    """Time and memory of sparse inference up to a million steps."""
    rows = []
    for num_steps in lengths:
        print(f"growth: {num_steps} steps", file=sys.stderr, flush=True)
        measured = inference(SPARSE, num_steps)
        rows.append({"steps": num_steps, **measured, "kib_per_step": measured["gib"] * 2**20 / num_steps})
    return rows


def main(folder: Path | None = None) -> dict[str, Any]:
    """Measure, print, and write model.json into `folder`, anew after each table."""
    result: dict[str, Any] = {"environment": environment(), "config": encoder().config.to_dict()}
    tables: dict[str, Callable[[], list[Row]]] = {
        "inference": lambda: [row for n in LENGTHS for row in compare(INFERENCE, inference, n)],
        "training": lambda: [row for n in LENGTHS for row in compare(TRAINING, training_step, n)],
        "growth": lambda: growth([1 << power for power in range(14, 21)]),
    }
    for name, rows in tables.items():
        result[name] = rows()
        print(table(result[name]), flush=True)
        if folder is not None:
            (folder / "model.json").write_text(json.dumps(result, indent=1) + "\n")
    return result


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else None)
