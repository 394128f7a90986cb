"""The GPU kernels on one shard of a sequence: its own rows against blocks that lie anywhere.

One launch a head, because only then may a list be longer than the shard has blocks: the kernels take the
number of blocks for the distance between the lists of two heads too. Every sum has a fixed order.

Shape suffixes as in sharded.py.
"""

# Triton compiles the kernels and knows their types; it is not installed everywhere.
# pyright: reportMissingImports=false, reportCallIssue=false, reportArgumentType=false
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from sparse_model.attention import triton_launch
from sparse_model.attention.selection import BlockSelection
from sparse_model.attention.triton_problem import Lists, Problem, key_of, problem_of

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
    """Same function as `sharded.attend_fetched`, with its gradient."""
    mean_k, mean_v = means or (None, None)
    lists = chosen.indices_BSQK, chosen.counts_BSQ
    return _Attention.apply(
        q_BHND, fetched.k_TX, fetched.v_TX, mean_k, mean_v, fetched.place_BGJ, *lists, chosen.block_size
    )


class _Head(NamedTuple):
    """What one head of one sequence reads, by the numbers of the blocks."""

    at: tuple[int, int]
    """Sequence and head."""
    of: tuple[int, int]
    """Sequence and key/value head."""
    p: Problem
    q: Tensor
    means: tuple[Tensor, Tensor] | None
    lists: Lists


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        q_BHND, k_TX, v_TX, _, _, place_BGJ, *_ = inputs
        out, lse = torch.empty_like(q_BHND), q_BHND.new_empty(q_BHND.shape[:3], dtype=torch.float32)
        k, v = (t.view(1, 1, -1, q_BHND.shape[-1]) for t in (k_TX, v_TX))
        for head in _heads(*inputs):
            place = place_BGJ[head.of][head.lists.indices_BSQK.long()].int()
            lists = head.lists._replace(indices_BSQK=place)
            rows = triton_launch.launch_forward(head.p, head.q, k, v, lists, head.means or (k, v))
            out[head.at], lse[head.at] = rows[0][0, 0], rows[1][0, 0]
        ctx.save_for_backward(*inputs[:-1], out, lse)
        ctx.block_size = inputs[-1]
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        *inputs, out, lse = ctx.saved_tensors
        sums = [torch.zeros_like(t, dtype=torch.float32) for t in inputs[:5] if t is not None]
        for head in _heads(*inputs, ctx.block_size):
            _add_gradients(sums, head, inputs, grads[0], out, lse)
        found = [total.to(t.dtype) for total, t in zip(sums, inputs, strict=False)]
        return *found, *(None,) * (9 - len(found))


def _add_gradients(
    sums: list[Tensor], head: _Head, inputs: list[Tensor], grad: Tensor, out: Tensor, lse: Tensor
) -> None:
    """Add one head's gradients to those of queries, blocks fetched and means.

    The pass over the keys takes the blocks in the order of their numbers, and those that nobody reads for as
    many copies of the first one: their gradient is zero.
    """
    _, k_TX, v_TX, _, _, place_BGJ, *_ = inputs
    place_J, size = place_BGJ[head.of], head.p.block_size
    k, v = (t.index_select(0, place_J).view(1, 1, -1, head.p.channels) for t in (k_TX, v_TX))
    mine, of_grad = (t[head.at][None, None].contiguous() for t in (out, grad))
    rows = head.p._replace(key=key_of(head.p.key, of_grad, k))
    keys = rows._replace(num_steps=k.shape[2], summaries=False, key=key_of(rows.key))
    bits = pad(head.lists.bits_BSQW, (0, 0, 0, rows.num_blocks - rows.query_blocks))
    dq, dk, dv, of_means = triton_launch.launch_backward(
        rows, of_grad, head.q, k, v, lse[head.at][None, None].contiguous(),
        triton_launch.row_products(rows, mine, of_grad), head.lists._replace(bits_BSQW=bits),
        head.means or (k[:, :, :0], v[:, :, :0]), of_keys=keys,
    )  # fmt: skip
    of_q, of_k, of_v, *of_both = sums
    of_q[head.at] = dq[0, 0]
    for table, d in ((of_k, dk), (of_v, dv)):
        table.index_add_(0, place_J, d.float().view(-1, size * rows.channels))
    for total, parts, scale in zip(of_both, of_means, (rows.scale, 1.0), strict=False):
        total[head.of] += parts.sum(0)[0, 0] * scale


def _heads(
    q_BHND: Tensor,
    k_TX: Tensor,
    v_TX: Tensor,
    mean_k_BGJD: Tensor | None,
    mean_v_BGJD: Tensor | None,
    place_BGJ: Tensor,
    indices_BSQK: Tensor,
    counts_BSQ: Tensor,
    block_size: int,
) -> Iterator[_Head]:
    """One after the other; `lengths_B` tells the kernels where the sequence ends, beyond the queries."""
    (batch, heads, _, channels), groups, num_blocks = q_BHND.shape, *place_BGJ.shape[1:]
    end_B = torch.full((1,), num_blocks * block_size, dtype=torch.int32, device=q_BHND.device)
    k, v = (t.view(1, 1, -1, channels) for t in (k_TX, v_TX))
    for b, head in ((b, head) for b in range(batch) for head in range(heads)):
        group, ranking = head * groups // heads, head * indices_BSQK.shape[1] // heads
        means = None
        if mean_k_BGJD is not None and mean_v_BGJD is not None:
            means = tuple(t[b, group][None, None].contiguous() for t in (mean_k_BGJD, mean_v_BGJD))
        q = q_BHND[b, head][None, None]
        chosen = tuple(t[b, ranking][None, None].int().contiguous() for t in (indices_BSQK, counts_BSQ))
        p = problem_of(q, k, v, *chosen, block_size, False, end_B, means is not None, num_blocks=num_blocks)
        of_rows = p._replace(num_blocks=p.query_blocks)
        yield _Head((b, head), (b, group), p, q, means, triton_launch.lists_of(of_rows, *chosen))
