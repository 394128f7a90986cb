"""Which tile is fastest for each kernel: the sweep behind the constants in sparse_model/attention/triton.py.

Run on a GPU: `python -m pipelines.benchmarks.tiles`. One JSON line per configuration.
"""

import json
import sys
from typing import Any

import torch
from torch import Tensor

from pipelines.benchmarks.timing import median_ms
from sparse_model.attention import BlockSelection
from sparse_model.attention import triton as gpu
from sparse_model.attention import triton_launch as launch
from sparse_model.attention.triton_problem import problem_of

FORWARD = {
    64: [
        (128, 128, 8, 3),
        (128, 128, 8, 2),
        (128, 64, 8, 3),
        (128, 64, 4, 3),
        (64, 128, 4, 2),
        (64, 64, 4, 3),
        (64, 64, 4, 4),
    ],
    128: [(128, 128, 8, 2), (128, 64, 8, 2), (128, 64, 8, 3), (64, 64, 4, 2)],
}
BACKWARD = {
    64: [(64, 128, 8, 2), (64, 128, 8, 3), (64, 64, 4, 2), (128, 128, 8, 2), (128, 64, 8, 2)],
    128: [(64, 128, 8, 2), (64, 64, 8, 2), (64, 64, 4, 2)],
}  # fmt: skip


def random_problem(
    num_steps: int, channels: int, block_size: int, density: float, heads: int = 8, rankings: int = 2
) -> tuple[Tensor, Tensor, Tensor, BlockSelection]:
    """bf16 q, k, v of one sequence and random block lists of the given density."""
    q, k, v = torch.randn(3, 1, heads, num_steps, channels, device="cuda", dtype=torch.bfloat16).unbind()
    blocks = -(-num_steps // block_size)
    scores = torch.rand(1, rankings, blocks, blocks, device="cuda")
    return q, k, v, gpu.select_blocks(scores, max(1, int(density * blocks)), block_size)


def sweep(
    num_steps: int, channels: int, block_size: int = 128, density: float = 0.125
) -> list[dict[str, Any]]:
    """Time the forward and backward kernels alone, for every tile listed above."""
    q, k, v, chosen = random_problem(num_steps, channels, block_size, density)
    p = problem_of(q, k, v, chosen.indices_BSQK, chosen.counts_BSQ, block_size, False, None, True)
    lists, means = launch.lists_of(p, chosen.indices_BSQK, chosen.counts_BSQ), launch.summaries_of(p, k, v)
    rows = []

    def measure(kernel: str, tile: launch.Tile | None, flops: float, work: Any) -> None:
        row: dict[str, Any] = {
            "kernel": kernel,
            "steps": num_steps,
            "channels": channels,
            "tile": tile,
        }
        try:
            row["ms"] = median_ms(work)
            row["tflops"] = flops / row["ms"] / 1e9
        except Exception as error:  # a tile that does not fit is a result, too
            row["error"] = repr(error)[:200]
        print(json.dumps(row), flush=True)
        rows.append(row)

    flops = 4 * num_steps**2 * channels * q.shape[1] * density
    for tile in [None, *(launch.Tile(*t) for t in FORWARD[channels])]:
        measure("forward", tile, flops, lambda t=tile: launch.launch_forward(p, q, k, v, lists, means, t))
    lse = launch.launch_forward(p, q, k, v, lists, means)[1]
    grad, product = torch.randn_like(q), torch.randn_like(lse)
    for tile in [None, *(launch.Tile(*t) for t in BACKWARD[channels])]:
        measure(
            "backward", tile, 2.5 * flops,
            lambda t=tile: launch.launch_backward(p, grad, q, k, v, lse, product, lists, means, t),
        )  # fmt: skip
    return rows


def parts(
    num_steps: int, rankings: int = 2, block_size: int = 128, density: float = 0.125
) -> list[dict[str, Any]]:
    """Time what surrounds the attention kernels: ranking, choosing, lists, summaries."""
    q, k, v, chosen = random_problem(num_steps, 64, block_size, density, rankings=rankings)
    sq, sk = torch.randn(2, 1, rankings, num_steps, 16, device="cuda", dtype=torch.bfloat16)
    p = problem_of(q, k, v, chosen.indices_BSQK, chosen.counts_BSQ, block_size, False, None, True)
    scores = gpu.block_scores(sq, sk, block_size)
    lists = launch.lists_of(p, chosen.indices_BSQK, chosen.counts_BSQ)
    works = {
        "block_scores": lambda: gpu.block_scores(sq, sk, block_size),
        "select_blocks": lambda: gpu.select_blocks(scores, p.slots, block_size),
        "torch.topk+sort": lambda: scores.topk(p.slots, sorted=False).indices.sort(-1),
        "bits": lambda: launch.lists_of(p, chosen.indices_BSQK, chosen.counts_BSQ),
        "transposed_lists": lambda: launch.transposed_lists(p, lists.bits_BSQW),
        "summaries": lambda: launch.summaries_of(p, k, v),
    }
    rows = [
        {"part": n, "steps": num_steps, "rankings": rankings, "block": block_size, "ms": median_ms(w)}
        for n, w in works.items()
    ]
    print(*map(json.dumps, rows), sep="\n", flush=True)
    return rows


if __name__ == "__main__":
    steps = int(sys.argv[1]) if len(sys.argv) > 1 else 65_536
    parts(steps)
    parts(steps, rankings=1)
    for channels in (64, 128):
        sweep(steps, channels)
