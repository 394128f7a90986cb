"""Other ways to choose the same number of blocks: what a learned ranking has to beat, and its upper bound.

Shape suffixes: B batch, N steps, W width, H heads, S selector heads, Q query blocks, J key blocks,
P rows of a chunk, A asked steps.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import pad

from sparse_model.attention.selection import BlockSelection, num_blocks_of, select_blocks
from sparse_model.config import Budget
from sparse_model.layers import Attention
from sparse_model.losses import missed_mass
from sparse_model.model import SparseEncoder

Scores = Callable[[Attention, Tensor], Tensor]
"""(attention, its input [B, N, W]) -> block scores [B, S, Q, J]; ties are broken at random."""
_ROWS = 256  # rows scored at once


def use(model: SparseEncoder, scores: Scores | None) -> SparseEncoder:
    """Let every layer of `model` select by `scores`, or by its own selector again (None)."""
    for layer in model.layers:
        attention = layer.attention
        if not isinstance(attention, Attention):
            raise TypeError(f"layers: {type(attention).__name__} does not select blocks")
        vars(attention).pop("select", None)
        if scores is not None:
            vars(attention)["select"] = _selector(attention, scores)
    return model


def _selector(attention: Attention, scores: Scores) -> Callable[..., BlockSelection]:
    def select(x_BNW: Tensor, budget: Budget, lengths_B: Tensor | None = None, _noise: float = 0.0):
        size = attention.config.block_size
        with torch.no_grad():
            scores_BSQJ = scores(attention, x_BNW).float()
            scores_BSQJ = scores_BSQJ + 1e-6 * torch.rand_like(scores_BSQJ)
        num_selected = budget.num_selected(num_blocks_of(x_BNW.shape[1], size))
        return select_blocks(scores_BSQJ, num_selected, size, lengths_B=lengths_B)

    return select


def random_blocks(attention: Attention, x_BNW: Tensor) -> Tensor:
    """Blocks drawn anew for every query block, sequence and step of training."""
    blocks, rankings = num_blocks_of(x_BNW.shape[1], attention.config.block_size), _rankings(attention)
    return torch.rand(x_BNW.shape[0], rankings, blocks, blocks, device=x_BNW.device)


def local_and_strided(attention: Attention, x_BNW: Tensor) -> Tensor:
    """Half of the budget nearest blocks, half blocks a fixed stride apart (Child et al. 2019).

    Nearest blocks and stride points take turns in the ranking, so that every budget is split evenly.
    """
    blocks = num_blocks_of(x_BNW.shape[1], attention.config.block_size)
    block = torch.arange(blocks, device=x_BNW.device)
    distance_QJ = (block[:, None] - block[None, :]).abs().float()
    coarse_J = torch.tensor([_trailing_zeros(j, blocks) for j in range(blocks)], device=x_BNW.device)
    order_J = (-coarse_J * blocks + block).argsort().argsort().float()
    near_QJ = distance_QJ.argsort(dim=-1).argsort(dim=-1).float()
    rank_QJ = torch.minimum(2 * near_QJ, 2 * order_J + 1)
    return (-rank_QJ).expand(x_BNW.shape[0], _rankings(attention), -1, -1)


def _trailing_zeros(number: int, limit: int) -> int:
    """How coarse a grid still holds block `number`: 0 for odd numbers, most for block 0."""
    return limit.bit_length() if number == 0 else (number & -number).bit_length() - 1


def mean_pooled(attention: Attention, x_BNW: Tensor) -> Tensor:
    """Queries against mean keys, as MoBA ranks (Lu et al. 2025), with our way of uniting rows and heads."""
    size, rankings = attention.config.block_size, _rankings(attention)
    q, k, _ = attention.heads(x_BNW)
    blocks = num_blocks_of(q.shape[2], size)
    extra = blocks * size - q.shape[2]
    k = k.repeat_interleave(q.shape[1] // k.shape[1], dim=1).float()
    mean_k = pad(k, (0, 0, 0, extra)).unflatten(2, (blocks, size)).mean(3)
    parts = []
    for rows in pad(q.float(), (0, 0, 0, extra), mode="replicate").split(_rows(size), dim=2):
        logits = rows @ mean_k.transpose(-1, -2) * q.shape[-1] ** -0.5
        parts.append(logits.log_softmax(-1).unflatten(2, (-1, size)).amax(3))
    return torch.cat(parts, dim=2).unflatten(1, (rankings, -1)).amax(2)


def attention_oracle(attention: Attention, x_BNW: Tensor) -> Tensor:
    """What summaries miss of each block, from the attention itself: the best that any ranking could know."""
    size, rankings = attention.config.block_size, _rankings(attention)
    q, k, _ = (t.float() for t in attention.heads(x_BNW))
    extra = num_blocks_of(q.shape[2], size) * size - q.shape[2]
    parts = []
    for rows in pad(q, (0, 0, 0, extra), mode="replicate").split(_rows(size), dim=2):
        missed = missed_mass(rows, k, size).unflatten(2, (-1, size)).amax(3)
        parts.append(missed.unflatten(1, (rankings, -1)).amax(2))
    return torch.cat(parts, dim=2)


def planted_oracle(asked_BA: Tensor, sources_BA: Tensor) -> Scores:
    """Knows for every asked step the step that holds its answer."""

    def scores(attention: Attention, x_BNW: Tensor) -> Tensor:
        size = attention.config.block_size
        blocks, batch = num_blocks_of(x_BNW.shape[1], size), torch.arange(len(asked_BA))[:, None]
        wanted = torch.zeros(len(asked_BA), 1, blocks, blocks, device=x_BNW.device)
        wanted[batch.to(x_BNW.device), 0, asked_BA // size, sources_BA // size] = 1.0
        return wanted.expand(-1, _rankings(attention), -1, -1)

    return scores


def _rankings(attention: Attention) -> int:
    return attention.config.selector_heads


def _rows(block_size: int) -> int:
    return max(block_size, _ROWS // block_size * block_size)
