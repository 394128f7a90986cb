"""Which key blocks each query block reads.

Shape suffixes: B batch, S selector heads, N steps, E selector channels, Q query blocks, J key blocks,
K selected blocks.

Blocks are ranked by their single best pair of steps, not by pooled blocks: pooling a block into one
vector loses the one step that matters.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from sparse_model.attention.side_by_side import side_by_side

_TILE_ROWS, _TILE_KEYS = 256, 1024  # ranking tile: small enough to be reduced while still in cache


@dataclass(frozen=True)
class BlockSelection:
    """Key blocks read by each query block, for each selector head."""

    indices_BSQK: Tensor
    """int64 or int32, ascending block numbers; entries from `counts` on are padding and not read."""
    counts_BSQ: Tensor
    """int64 or int32, number of valid entries."""
    block_size: int

    @property
    def num_blocks(self) -> int:
        return self.indices_BSQK.shape[2]

    def read_mask(self, num_key_blocks: int | None = None) -> Tensor:
        """bool [B, S, Q, J]: which blocks are read exactly. `num_key_blocks` where J is not Q."""
        slots = torch.arange(self.indices_BSQK.shape[-1], device=self.indices_BSQK.device)
        used_BSQK = slots < self.counts_BSQ.unsqueeze(-1)
        batch, heads, num_blocks, _ = self.indices_BSQK.shape
        hits = torch.zeros(batch, heads, num_blocks, num_key_blocks or num_blocks, device=slots.device)
        return hits.scatter_add(-1, self.indices_BSQK.long(), used_BSQK.to(hits.dtype)) > 0


def num_blocks_of(num_steps: int, block_size: int) -> int:
    """Blocks needed to cover `num_steps`; the last one may be partial."""
    return -(-num_steps // block_size)


def _permitted_blocks(scores_BSQJ: Tensor, block_size: int, causal: bool, lengths_B: Tensor | None) -> Tensor:
    """bool [B or 1, 1, Q or 1, J]: key blocks that hold a step the query block may see."""
    num_rows, num_blocks = scores_BSQJ.shape[-2:]
    block = torch.arange(num_blocks, device=scores_BSQJ.device)
    permitted = torch.ones(1, 1, 1, num_blocks, dtype=torch.bool, device=block.device)
    if causal:
        permitted = permitted & (block[None, :] <= block[:num_rows, None])
    if lengths_B is not None:
        length = lengths_B.to(block.device)[:, None]
        permitted = permitted & (block * block_size < length).view(-1, 1, 1, num_blocks)
    return permitted


def block_scores(
    sq_BSNE: Tensor, sk_BSNE: Tensor, block_size: int, causal: bool = False, lengths_B: Tensor | None = None
) -> Tensor:
    """Importance of every key block to every query block, [B, S, Q, J].

    For a row and a key block let m be the largest q'.k' / sqrt(E) over the block's permitted steps.
    The score of a pair of blocks is the largest, over the rows of the query block, of m minus the
    row's log-sum-exp of m over all key blocks, so that rows compare with each other. Maxima instead
    of all steps in the normaliser: one exponential per block, not per step. Linear memory in N (tiles
    are reduced as they are made); blocks without a permitted step get -inf. The queries may be those of
    the first blocks alone.
    """
    sq_BSNE = _filled_up(sq_BSNE * sq_BSNE.shape[-1] ** -0.5, -sq_BSNE.shape[2] % block_size)
    sk_BSEN = _filled_up(sk_BSNE, -sk_BSNE.shape[2] % block_size).transpose(-1, -2).contiguous()
    open_BN = None  # every step exists, or repeats one that does: nothing to mask
    if lengths_B is not None:
        open_BN = torch.arange(sk_BSEN.shape[-1], device=sq_BSNE.device) < lengths_B[:, None]
    rows = max(block_size, _TILE_ROWS // block_size * block_size)

    def score(first: int) -> Tensor:
        return _score_rows(sq_BSNE, sk_BSEN, open_BN, slice(first, first + rows), block_size, causal)

    parts = side_by_side(score, range(0, sq_BSNE.shape[2], rows), sq_BSNE.device)
    return torch.cat(parts, dim=2)


def _filled_up(t_BSNE: Tensor, extra: int) -> Tensor:
    """The last block filled up with copies of the last step, which move no maximum."""
    return torch.cat([t_BSNE, t_BSNE[:, :, -1:].expand(-1, -1, extra, -1)], dim=2) if extra else t_BSNE


def _score_rows(
    sq: Tensor, sk_BSEN: Tensor, open_BN: Tensor | None, rows: slice, block_size: int, causal: bool
) -> Tensor:
    """Scores of the query blocks in `rows` against all key blocks, [B, S, blocks in rows, J]."""
    keys = max(block_size, _TILE_KEYS // block_size * block_size)
    row_steps = torch.arange(sq.shape[2], device=sq.device)[rows]
    maxima = []
    for first in range(0, sk_BSEN.shape[-1], keys):
        columns = slice(first, first + keys)
        logits = sq[:, :, rows] @ sk_BSEN[..., columns]
        if open_BN is not None:
            logits = logits.masked_fill(~open_BN[:, None, None, columns], -torch.inf)
        if causal and first + keys > rows.start:
            steps = torch.arange(first, first + logits.shape[-1], device=sq.device)
            logits = logits.masked_fill(steps > row_steps[:, None], -torch.inf)
        maxima.append(logits.unflatten(-1, (-1, block_size)).amax(-1))
    m_BSRJ = torch.cat(maxima, dim=-1)
    relative = m_BSRJ - m_BSRJ.logsumexp(-1, keepdim=True)
    if open_BN is not None:
        relative = relative.masked_fill(~open_BN[:, None, rows, None], -torch.inf)
    return relative.unflatten(2, (-1, block_size)).amax(3)


def select_blocks(
    scores_BSQJ: Tensor,
    num_selected: int,
    block_size: int,
    causal: bool = False,
    lengths_B: Tensor | None = None,
    top_p: float | None = None,
) -> BlockSelection:
    """The `num_selected` best permitted key blocks of each query block; its own block is always kept.

    With `top_p`, only as many of them as hold that share of the scores' softmax: easy rows read less.
    The scores may be those of the first query blocks alone.
    Raises ValueError naming the argument for a budget outside 1..J or NaN scores.
    """
    num_rows, num_blocks = scores_BSQJ.shape[-2:]
    check_budget(num_selected, num_blocks, top_p)
    if not torch.compiler.is_compiling() and bool(scores_BSQJ.isnan().any()):
        raise ValueError("scores: hold NaN, so no block can be ranked")
    permitted = _permitted_blocks(scores_BSQJ, block_size, causal, lengths_B)
    own = torch.eye(num_rows, num_blocks, dtype=torch.bool, device=scores_BSQJ.device)
    ranked = scores_BSQJ.detach().masked_fill(own & permitted, torch.inf).masked_fill(~permitted, -torch.inf)
    counts_BSQ = permitted.sum(-1).clamp_max(num_selected).expand(ranked.shape[:3])
    indices = ranked.topk(num_selected, dim=-1).indices
    if top_p is not None:
        counts_BSQ = counts_BSQ.minimum(_nucleus(scores_BSQJ.detach(), permitted, indices, top_p))
    slots = torch.arange(num_selected, device=indices.device)
    # padding sorts behind every real block, then is clamped back into range
    indices = indices.masked_fill(slots >= counts_BSQ.unsqueeze(-1), num_blocks).sort(-1).values
    return BlockSelection(indices.clamp_max(num_blocks - 1), counts_BSQ, block_size)


def check_budget(num_selected: int, num_blocks: int, top_p: float | None) -> None:
    """Raise ValueError naming the argument of `select_blocks` that lies outside its range."""
    if not 1 <= num_selected <= num_blocks:
        raise ValueError(f"num_selected: must lie in 1..{num_blocks} (the block count), got {num_selected}")
    if top_p is not None and not 0.0 < top_p <= 1.0:
        raise ValueError(f"top_p: must lie in (0, 1], got {top_p!r}")


def _nucleus(scores_BSQJ: Tensor, permitted: Tensor, ranked_BSQK: Tensor, top_p: float) -> Tensor:
    """How many ranked blocks it takes to hold `top_p` of the softmax over permitted blocks; at least one."""
    share_BSQJ = scores_BSQJ.masked_fill(~permitted, -torch.inf).softmax(-1).nan_to_num(0.0)
    share_BSQK = share_BSQJ.gather(-1, ranked_BSQK)
    before_BSQK = share_BSQK.cumsum(-1) - share_BSQK
    return (before_BSQK < top_p).sum(-1).clamp_min(1)
