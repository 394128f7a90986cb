"""The portable fast path: gathers the blocks that are read, chunk by chunk of query blocks.

Shape suffixes: B batch, H heads, G key/value heads, S selector heads, N steps, D channels, Q query
blocks, J key blocks, K selected blocks, C query blocks of one chunk, R steps of a block, L keys seen.
"""

import torch
from torch import Tensor
from torch.nn.functional import embedding, pad, scaled_dot_product_attention

from sparse_model.attention.selection import BlockSelection
from sparse_model.attention.side_by_side import side_by_side

_CHUNK_ELEMENTS = 400_000  # gathered key elements held at once: stays near the cache


def attend(
    q_BHND: Tensor,
    k_BGND: Tensor,
    v_BGND: Tensor,
    selection: BlockSelection,
    causal: bool = False,
    lengths_B: Tensor | None = None,
    summaries: bool = True,
) -> Tensor:
    """Same function as `reference.attend`, in time and memory linear in the blocks read."""
    batch, heads, num_steps, channels = q_BHND.shape
    size, num_blocks = selection.block_size, selection.num_blocks
    q, k, v = (_in_blocks(t, num_blocks, size) for t in (q_BHND, k_BGND, v_BGND))
    limit_B = torch.full((batch,), num_steps, device=q.device) if lengths_B is None else lengths_B
    steps_JR = torch.arange(num_blocks * size, device=q.device).view(num_blocks, size)
    valid_BJR = steps_JR < limit_B[:, None, None]
    mean_k = mean_v = bias_BHQJ = None
    if summaries:
        mean_k, mean_v, count_BJ = _summaries(k, v, valid_BJR)
        bias_BHQJ = _summary_bias(selection, count_BJ, causal, heads, q.dtype)
    chunk = max(1, _CHUNK_ELEMENTS // (batch * heads * selection.indices_BSQK.shape[-1] * size * channels))
    whole = None if torch.is_grad_enabled() else torch.empty_like(q)  # in inference there is no second copy

    def read(first: int) -> Tensor:
        rows = slice(first, min(first + chunk, num_blocks))
        keys, values, bias = _read(k, v, selection, rows, steps_JR, valid_BJR, causal, heads)
        if mean_k is not None and mean_v is not None and bias_BHQJ is not None:
            summary_bias = bias_BHQJ[:, :, rows].unsqueeze(3)
            keys = torch.cat([keys, _per_chunk(mean_k, heads, keys.shape[2])], dim=3)
            values = torch.cat([values, _per_chunk(mean_v, heads, keys.shape[2])], dim=3)
            bias = torch.cat([bias, summary_bias.expand(*bias.shape[:4], -1)], dim=-1)
        part = softmax_read(q[:, :, rows], keys, values, bias)
        return part if whole is None else whole[:, :, rows].copy_(part)

    parts = side_by_side(read, range(0, num_blocks, chunk), q.device)
    whole = torch.cat(parts, dim=2) if whole is None else whole
    result_BHND = whole.flatten(2, 3)[:, :, :num_steps]
    if lengths_B is None:
        return result_BHND
    padding = torch.arange(num_steps, device=q.device) >= limit_B[:, None]
    return result_BHND.masked_fill(padding[:, None, :, None], 0.0)


def _in_blocks(t_BHND: Tensor, num_blocks: int, size: int) -> Tensor:
    """[B, H, J, R, D], the last block filled up with zeros where the steps do not fill it."""
    extra = num_blocks * size - t_BHND.shape[2]
    return (pad(t_BHND, (0, 0, 0, extra)) if extra else t_BHND).unflatten(2, (num_blocks, size))


def _read(
    k_BGJRD: Tensor,
    v_BGJRD: Tensor,
    selection: BlockSelection,
    rows: slice,
    steps_JR: Tensor,
    valid_BJR: Tensor,
    causal: bool,
    heads: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Keys and values [B, H, C, K*R, D] of the blocks read, and their bias [B, H, C, 1 or R, K*R]."""
    batch, groups = k_BGJRD.shape[:2]
    share = heads // selection.indices_BSQK.shape[1]
    index_BHCK = selection.indices_BSQK[:, :, rows].repeat_interleave(share, dim=1)
    counts_BHC = selection.counts_BSQ[:, :, rows].repeat_interleave(share, dim=1)
    at_batch = torch.arange(batch, device=index_BHCK.device).view(-1, 1, 1, 1)
    at_group = (torch.arange(heads, device=index_BHCK.device) // (heads // groups)).view(1, -1, 1, 1)
    block = (at_batch * groups + at_group) * k_BGJRD.shape[2] + index_BHCK
    keys, values = (rows_of(t, block) for t in (k_BGJRD, v_BGJRD))
    used = torch.arange(index_BHCK.shape[-1], device=index_BHCK.device) < counts_BHC.unsqueeze(-1)
    open_ = (valid_BJR[at_batch, index_BHCK] & used.unsqueeze(-1)).flatten(3, 4).unsqueeze(3)
    if causal:
        open_ = open_ & (steps_JR[index_BHCK].flatten(3, 4).unsqueeze(3) <= steps_JR[rows].unsqueeze(-1))
    bias = torch.zeros(open_.shape, dtype=k_BGJRD.dtype, device=open_.device)
    return keys, values, bias.masked_fill(~open_, -torch.inf)


def rows_of(t_BGJRD: Tensor, block_BHCK: Tensor) -> Tensor:
    """Whole blocks by their number in [B * G * J], side by side, [B, H, C, K*R, D].

    A table look-up, because its backward adds whole rows where an index's adds single numbers.
    """
    rows = embedding(block_BHCK, t_BGJRD.reshape(-1, t_BGJRD.shape[3] * t_BGJRD.shape[4]))
    return rows.unflatten(-1, t_BGJRD.shape[3:]).flatten(3, 4)


def _summaries(k_BGJRD: Tensor, v_BGJRD: Tensor, valid_BJR: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean key and mean value of every block [B, G, J, D] over its valid steps, and their number [B, J]."""
    count_BJ = valid_BJR.sum(-1)
    weight = (valid_BJR.to(k_BGJRD.dtype) / count_BJ.clamp_min(1).unsqueeze(-1))[:, None, :, :, None]
    return (k_BGJRD * weight).sum(3), (v_BGJRD * weight).sum(3), count_BJ


def _per_chunk(mean_BGJD: Tensor, heads: int, num_rows: int) -> Tensor:
    """The block summaries seen from every head and every query block of a chunk, [B, H, C, J, D]."""
    per_head = mean_BGJD.repeat_interleave(heads // mean_BGJD.shape[1], dim=1)
    return per_head.unsqueeze(2).expand(-1, -1, num_rows, -1, -1)


def _summary_bias(
    selection: BlockSelection, count_BJ: Tensor, causal: bool, heads: int, dtype: torch.dtype
) -> Tensor:
    """log(number of steps) for blocks read as a summary, -inf for the others, [B, H, Q, J]."""
    open_ = ~selection.read_mask() & (count_BJ > 0)[:, None, None, :]
    if causal:
        block = torch.arange(count_BJ.shape[1], device=count_BJ.device)
        open_ = open_ & (block[None, :] < block[:, None])
    bias_BSQJ = count_BJ.clamp_min(1).to(dtype).log()[:, None, None, :].masked_fill(~open_, -torch.inf)
    return bias_BSQJ.repeat_interleave(heads // bias_BSQJ.shape[1], dim=1)


def softmax_read(q_BHCRD: Tensor, keys_BHCLD: Tensor, values_BHCLD: Tensor, bias: Tensor) -> Tensor:
    """Attention of each query block over its own list of keys, [B, H, C, R, D]; rows with none are zero."""
    q, keys, values = (t.flatten(0, 1) for t in (q_BHCRD, keys_BHCLD, values_BHCLD))
    mask = bias.flatten(0, 1).expand(-1, -1, q.shape[2], -1)
    return scaled_dot_product_attention(q, keys, values, attn_mask=mask).view_as(q_BHCRD)
