"""The definition of the operation: slow, plain, any float dtype.

Shape suffixes: B batch, H heads, G key/value heads, S selector heads, N steps, D channels, Q query
blocks, J key blocks.
"""

import torch
from torch import Tensor

from sparse_model.attention.selection import BlockSelection, num_blocks_of


def attend(
    q_BHND: Tensor,
    k_BGND: Tensor,
    v_BGND: Tensor,
    selection: BlockSelection,
    causal: bool = False,
    lengths_B: Tensor | None = None,
    summaries: bool = True,
) -> Tensor:
    """Softmax attention over the steps of the blocks read and one summary for each block not read.

    The summary of a block is its mean key, whose logit gains the log of the block's number of
    steps, and its mean value. Rows that may read nothing, and padding rows, are zero. [B, H, N, D].
    """
    heads, num_steps = q_BHND.shape[1:3]
    block_size = selection.block_size
    k = k_BGND.repeat_interleave(heads // k_BGND.shape[1], dim=1)
    v = v_BGND.repeat_interleave(heads // v_BGND.shape[1], dim=1)
    read_BHQJ = selection.read_mask().repeat_interleave(heads // selection.indices_BSQK.shape[1], dim=1)
    steps = torch.arange(num_steps, device=q_BHND.device)
    block_of = steps // block_size
    valid_BN = steps[None] < (lengths_B[:, None] if lengths_B is not None else num_steps)
    visible = valid_BN[:, None, None, :] & ((steps[None, :] <= steps[:, None]) if causal else True)
    logits = q_BHND @ k.transpose(-1, -2) * q_BHND.shape[-1] ** -0.5
    logits = logits.masked_fill(~(read_BHQJ[:, :, block_of][..., block_of] & visible), -torch.inf)
    values = v
    if summaries:
        mean_k, mean_v, count_BJ = _summaries(k, v, valid_BN, block_size)
        past = (
            torch.arange(count_BJ.shape[1], device=q_BHND.device)[None, :] < block_of[:, None]
            if causal
            else True
        )
        open_ = (count_BJ > 0)[:, None, None, :] & past & ~read_BHQJ[:, :, block_of]
        summary = q_BHND @ mean_k.transpose(-1, -2) * q_BHND.shape[-1] ** -0.5
        summary = summary + count_BJ.clamp_min(1).to(q_BHND.dtype).log()[:, None, None, :]
        logits = torch.cat([logits, summary.masked_fill(~open_, -torch.inf)], dim=-1)
        values = torch.cat([v, mean_v], dim=2)
    weights = logits.softmax(-1).nan_to_num(0.0)  # a row with nothing to read is all -inf
    return (weights @ values).masked_fill(~valid_BN[:, None, :, None], 0.0)


def _summaries(k: Tensor, v: Tensor, valid_BN: Tensor, block_size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Mean key and mean value of every block over its valid steps, and their number [B, J]."""
    num_blocks = num_blocks_of(k.shape[2], block_size)
    member_NJ = torch.arange(k.shape[2], device=k.device)[:, None] // block_size
    member_NJ = (member_NJ == torch.arange(num_blocks, device=k.device)).to(k.dtype)
    member_BNJ = member_NJ * valid_BN[..., None].to(k.dtype)
    count_BJ = member_BNJ.sum(1)
    weight_BJN = (member_BNJ / count_BJ.clamp_min(1)[:, None]).transpose(1, 2).unsqueeze(1)
    return weight_BJN @ k, weight_BJN @ v, count_BJ.expand(k.shape[0], -1)
