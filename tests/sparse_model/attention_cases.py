"""Random attention problems, shared by the CPU and GPU tests."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from sparse_model.attention import BlockSelection, select_blocks
from sparse_model.attention.selection import num_blocks_of
from sparse_model.attention.sharded import Fetched


@dataclass(frozen=True)
class Shape:
    """One attention problem; `lengths` is None when every step of every sequence exists."""

    batch: int
    heads: int
    groups: int
    rankings: int
    steps: int
    channels: int
    block_size: int
    selected: int
    causal: bool = False
    lengths: tuple[int, ...] | None = None
    seed: int = 0


def tensors_of(shape: Shape, dtype: torch.dtype, device: str = "cpu") -> tuple[Tensor, Tensor, Tensor]:
    """Random q, k, v of a problem, drawn in float64 on the CPU: every dtype and device sees the same."""
    generator = torch.Generator().manual_seed(shape.seed)

    def draw(heads: int) -> Tensor:
        size = (shape.batch, heads, shape.steps, shape.channels)
        return torch.randn(size, generator=generator, dtype=torch.float64).to(device, dtype)

    return draw(shape.heads), draw(shape.groups), draw(shape.groups)


def lengths_of(shape: Shape, device: str = "cpu") -> Tensor | None:
    return None if shape.lengths is None else torch.tensor(shape.lengths, device=device)


def selection_of(shape: Shape, device: str = "cpu") -> BlockSelection:
    """Random blocks with a different number of them for every query block."""
    generator = torch.Generator().manual_seed(shape.seed + 1)
    blocks = num_blocks_of(shape.steps, shape.block_size)
    scores = torch.rand(shape.batch, shape.rankings, blocks, blocks, generator=generator)
    lengths = lengths_of(shape)
    chosen = select_blocks(scores, min(shape.selected, blocks), shape.block_size, shape.causal, lengths)
    fewer = torch.randint(0, shape.selected + 1, chosen.counts_BSQ.shape, generator=generator)
    counts = torch.minimum(chosen.counts_BSQ, fewer)
    return BlockSelection(chosen.indices_BSQK.to(device), counts.to(device), shape.block_size)


def shard_of(
    shape: Shape, rank: int, count: int, dtype: torch.dtype, device: str = "cpu"
) -> tuple[Tensor, Fetched, tuple[Tensor, Tensor], BlockSelection]:
    """One shard's queries, blocks in mixed order, summaries and lists, as `Shards` would have them."""
    q, k, v = tensors_of(shape, dtype, device)
    num_blocks = shape.steps // shape.block_size
    first = rank * num_blocks // count
    order = torch.randperm(num_blocks, generator=torch.Generator().manual_seed(rank))
    k, v = (t.unflatten(2, (num_blocks, -1)) for t in (k, v))
    k_TX, v_TX = (t[:, :, order].flatten(0, 2).flatten(1) for t in (k, v))
    start = num_blocks * torch.arange(shape.batch * shape.groups).view(shape.batch, shape.groups, 1)
    place = (start + torch.argsort(order)).roll(-first, 2).to(device)
    mean_k, mean_v = (t.mean(3).roll(-first, 2) for t in (k, v))
    whole = selection_of(shape, device)
    rows = slice(first, first + num_blocks // count)
    mine = BlockSelection(
        (whole.indices_BSQK[:, :, rows] - first) % num_blocks, whole.counts_BSQ[:, :, rows], shape.block_size
    )
    return q.chunk(count, dim=2)[rank], Fetched(k_TX, v_TX, place), (mean_k, mean_v), mine


def shard_gradients(
    work: Callable[..., Tensor],
    shape: Shape,
    rank: int,
    count: int,
    dtype: torch.dtype,
    device: str = "cpu",
    summaries: bool = True,
    drawn: torch.dtype | None = None,
) -> list[Tensor]:
    """Output of `work` for one shard, and gradients of its queries, of the blocks it reads, of the means; in
    `dtype`, of numbers that `drawn` holds exactly."""
    q, fetched, means, mine = shard_of(shape, rank, count, drawn or dtype, device)
    leaves = [t.to(dtype, copy=True).requires_grad_() for t in (q, fetched.k_TX, fetched.v_TX, *means)]
    q, k, v, *means = leaves
    out = work(q, Fetched(k, v, fetched.place_BGJ), tuple(means) if summaries else None, mine)
    grad = torch.randn(out.shape, generator=torch.Generator().manual_seed(9)).to(device, drawn or dtype)
    asked = leaves if summaries else leaves[:3]
    return [out.detach(), *torch.autograd.grad(out, asked, grad.to(dtype))]
