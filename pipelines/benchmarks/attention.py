"""Attention alone, one GPU: the operation with its selection, against dense and FlexAttention.

`python -m pipelines.benchmarks.attention [folder]` prints tables and writes attention.json.
Batch 1, 8 heads, bfloat16, bidirectional, 1/8 of the key blocks of 128 steps, one ranking of 16 channels for
all heads unless a row says otherwise. Times are medians on the device, with selection included unless a
column says otherwise.
"""

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from pipelines.benchmarks.timing import environment, median_ms
from sparse_model.attention import BlockSelection, attend, select, sparse_attention
from sparse_model.config import Budget

HEADS, BLOCK, DENSITY, SELECTOR_DIM = 8, 128, 0.125, 16
Row = dict[str, Any]


def operation(num_steps: int, channels: int, rankings: int = 1, flex: bool = False) -> Row:
    """One line of the table: forward, and forward + backward, of dense, ours and (if asked) FlexAttention."""
    q, k, v, grad, sq, sk = _inputs(num_steps, channels, rankings)
    num_selected = Budget(DENSITY).num_selected(-(-num_steps // BLOCK))
    chosen = select(sq, sk, num_selected, BLOCK)

    def ours(q: Tensor, k: Tensor, v: Tensor, summaries: bool = True) -> Tensor:
        return attend(q, k, v, select(sq, sk, num_selected, BLOCK), summaries=summaries)

    row: Row = {"steps": num_steps, "channels": channels, "rankings": rankings}
    row["select_ms"] = median_ms(lambda: select(sq, sk, num_selected, BLOCK))
    row["attend_ms"] = median_ms(lambda: attend(q, k, v, chosen))
    row["ours_ms"], row["ours_train_ms"] = _both(ours, q, k, v, grad)
    with _fastest_dense():
        row["dense_ms"], row["dense_train_ms"] = _both(scaled_dot_product_attention, q, k, v, grad)
    row["speedup"] = row["dense_ms"] / row["ours_ms"]
    row["train_speedup"] = row["dense_train_ms"] / row["ours_train_ms"]
    row["select_share"] = row["select_ms"] / row["ours_ms"]
    if flex:
        flex_work = _flex(chosen, num_steps)
        row["flex_ms"], row["flex_train_ms"] = _both(flex_work, q, k, v, grad)
        row["train_speedup_over_flex"] = row["flex_train_ms"] / row["ours_train_ms"]
        _, row["without_summaries_train_ms"] = _both(partial(ours, summaries=False), q, k, v, grad)
        row["without_summaries_over_flex"] = row["flex_train_ms"] / row["without_summaries_train_ms"]
    return row


def automatic(num_steps: int, channels: int = 64) -> Row:
    """ "auto" against dense at one length: it must never lose by more than launch noise."""
    q, k, v, _, sq, sk = _inputs(num_steps, channels, rankings=1)
    row: Row = {"steps": num_steps, "channels": channels}
    for name in ("auto", "dense", "triton"):
        row[f"{name}_ms"] = median_ms(
            lambda name=name: sparse_attention(
                q, k, v, sq, sk, Budget(DENSITY), block_size=BLOCK, implementation=name
            )
        )  # fmt: skip
    return row | {"auto_over_dense": row["auto_ms"] / row["dense_ms"]}


def _inputs(num_steps: int, channels: int, rankings: int) -> tuple[Tensor, ...]:
    q, k, v, grad = torch.randn(
        4, 1, HEADS, num_steps, channels, device="cuda", dtype=torch.bfloat16
    ).unbind()
    sq, sk = torch.randn(
        2, 1, rankings, num_steps, SELECTOR_DIM, device="cuda", dtype=torch.bfloat16
    ).unbind()
    return q, k, v, grad, sq, sk


def _both(work: Callable[..., Tensor], q: Tensor, k: Tensor, v: Tensor, grad: Tensor) -> tuple[float, float]:
    """Milliseconds of the forward alone, and of forward + backward."""
    with torch.no_grad():
        forward = median_ms(lambda: work(q, k, v))
    leaves = [t.detach().requires_grad_() for t in (q, k, v)]
    return forward, median_ms(lambda: torch.autograd.grad(work(*leaves), leaves, grad))


@contextmanager
def _fastest_dense() -> Iterator[None]:
    from torch.nn.attention import SDPBackend, sdpa_kernel

    with sdpa_kernel([SDPBackend.CUDNN_ATTENTION]):
        yield


def _flex(chosen: BlockSelection, num_steps: int) -> Callable[..., Tensor]:
    """FlexAttention reading the same lists, which it gets for free. It reads no summaries: the same function
    is ours without them."""
    from torch.nn.attention.flex_attention import BlockMask, flex_attention

    share = HEADS // chosen.indices_BSQK.shape[1]
    counts = chosen.counts_BSQ.int().repeat_interleave(share, 1)
    lists = chosen.indices_BSQK.int().repeat_interleave(share, 1)
    blocks = chosen.num_blocks
    wide = torch.zeros(1, HEADS, blocks, blocks, dtype=torch.int32, device=lists.device)
    wide[..., : lists.shape[-1]] = lists
    none = torch.zeros_like(counts)
    mask = BlockMask.from_kv_blocks(
        none, torch.zeros_like(wide), counts, wide, BLOCK, seq_lengths=(num_steps, num_steps)
    )
    compiled = torch.compile(flex_attention, dynamic=False)
    return lambda q, k, v: compiled(q, k, v, block_mask=mask)


def table(rows: list[Row]) -> str:
    """Rows as aligned text, numbers with three digits."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    text = [columns] + [[_short(row.get(name, "")) for name in columns] for row in rows]
    widths = [max(len(line[i]) for line in text) for i in range(len(columns))]
    return "\n".join("  ".join(cell.rjust(w) for cell, w in zip(line, widths, strict=True)) for line in text)


def _short(value: Any) -> str:
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def main(folder: Path | None = None) -> dict[str, Any]:
    """Measure every table, print them, and write attention.json into `folder`."""
    rows = [operation(n, d) for d in (64, 128) for n in (16_384, 32_768, 65_536, 131_072)]
    rows += [operation(n, 64, rankings=2) for n in (32_768, 65_536)]
    print(table(rows), flush=True)
    auto = [automatic(1 << power) for power in range(8, 18)]
    print(table(auto), flush=True)
    flex = [operation(n, 64, flex=True) for n in (32_768, 65_536)]
    print(table(flex), flush=True)
    result = {"environment": environment(), "operation": rows, "automatic": auto, "flex": flex}
    if folder is not None:
        (folder / "attention.json").write_text(json.dumps(result, indent=1) + "\n")
    return result


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else None)
