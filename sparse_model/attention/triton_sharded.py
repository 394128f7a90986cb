"""The GPU kernels on one shard of a sequence: its own rows against blocks that lie anywhere. No gradient.

One launch a head, because only then may a list be longer than the shard has blocks: the kernels take the
number of blocks for the distance between the lists of two heads too.

Shape suffixes as in sharded.py.
"""

# Triton compiles the kernels and knows their types; it is not installed everywhere.
# pyright: reportMissingImports=false
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import pad

from sparse_model.attention import triton_launch
from sparse_model.attention.selection import BlockSelection
from sparse_model.attention.triton_problem import Lists, Problem, key_of

if TYPE_CHECKING:
    from sparse_model.attention.sharded import Fetched


def block_scores(sq_BSNE: Tensor, sk_BSNE: Tensor, block_size: int) -> Tensor:
    """Scores [B, S, Q, J] of the shard's query blocks; `sk` holds the whole sequence, the shard first."""
    num_rows, missing = sq_BSNE.shape[2] // block_size, sk_BSNE.shape[2] - sq_BSNE.shape[2]
    of_list = [
        triton_launch.launch_scores(
            pad(sq, (0, 0, 0, missing)), sk, block_size, False, None, num_rows=num_rows
        )
        for sq, sk in zip(*(t.flatten(0, 1)[:, None, None].unbind() for t in (sq_BSNE, sk_BSNE)), strict=True)
    ]
    return torch.cat(of_list).unflatten(0, sq_BSNE.shape[:2]).squeeze(2)


def attend(
    q_BHND: Tensor, fetched: "Fetched", means: tuple[Tensor, Tensor] | None, chosen: BlockSelection
) -> Tensor:
    """Same function as `sharded.attend_fetched`. Raises ValueError where a gradient is asked for."""
    if torch.is_grad_enabled() and any(t.requires_grad for t in (q_BHND, fetched.k_TX, fetched.v_TX)):
        raise ValueError("implementation: 'triton' has no gradient over shards; 'cpu' has, on any device")
    rankings, heads = chosen.indices_BSQK.shape[1], q_BHND.shape[1]
    out = torch.empty_like(q_BHND)
    for batch in range(q_BHND.shape[0]):
        for ranking in range(rankings):
            chosen_of_it = chosen.indices_BSQK[batch, ranking], chosen.counts_BSQ[batch, ranking]
            for head in range(ranking * (heads // rankings), (ranking + 1) * (heads // rankings)):
                group = head // (heads // fetched.place_BGJ.shape[1])
                mean = None if means is None else [t[batch, group][None, None].contiguous() for t in means]
                table = fetched._replace(place_BGJ=fetched.place_BGJ[batch, group])
                out[batch, head] = _one_head(
                    q_BHND[batch, head][None, None], table, mean, *chosen_of_it, chosen.block_size
                )[0, 0]
    return out


def _one_head(
    q: Tensor,
    table: "Fetched",
    means: list[Tensor] | None,
    indices_QK: Tensor,
    counts_Q: Tensor,
    block_size: int,
) -> Tensor:
    """Rows of one head; `table` is flat: its list places are those of one key/value head."""
    num_blocks = table.place_BGJ.shape[0]
    k, v = (t.view(1, 1, -1, q.shape[-1]) for t in (table.k_TX, table.v_TX))
    indices, counts = indices_QK.int()[None, None].contiguous(), counts_Q.int()[None, None].contiguous()
    problem = _problem(q, num_blocks, indices.shape[-1], block_size, means is not None)
    own = problem._replace(num_blocks=indices.shape[2])
    lists = triton_launch.lists_of(own, indices, counts)
    places = table.place_BGJ[indices_QK.long()].int()[None, None].contiguous()
    lists = Lists(places, lists.counts_BSQ, lists.full_BSQ, lists.bits_BSQW)
    mean_k, mean_v = means if means is not None else (k, v)
    return triton_launch.launch_forward(problem, q, k, v, lists, (mean_k, mean_v))[0]


def _problem(q: Tensor, num_blocks: int, slots: int, block_size: int, summaries: bool) -> Problem:
    """Rows of the shard, blocks of the sequence: `lengths_B` tells the kernels where the sequence ends."""
    end_B = torch.full((1,), num_blocks * block_size, dtype=torch.int32, device=q.device)
    return Problem(
        heads=1,
        groups=1,
        rankings=1,
        num_steps=q.shape[2],
        num_blocks=num_blocks,
        slots=slots,
        words=-(-num_blocks // 32),
        block_size=block_size,
        channels=q.shape[3],
        causal=False,
        summaries=summaries,
        lengths_B=end_B,
        batch=1,
        float32=q.dtype == torch.float32,
        key=key_of("sharded", num_blocks, slots, block_size, summaries, q),
    )
