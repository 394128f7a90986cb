"""The GPU path: custom operators around the kernels, so that autograd, torch.compile and export see them.

Shape suffixes: B batch, H heads, G key/value heads, S selector heads, N steps, E selector channels,
D channels, Q query blocks, J key blocks.

Every sum has a fixed order, so forward and backward repeat bit by bit.
"""

# Triton compiles the kernels and knows their types; it is not installed everywhere.
# pyright: reportMissingImports=false, reportAttributeAccessIssue=false, reportIndexIssue=false
# pyright: reportCallIssue=false, reportArgumentType=false, reportGeneralTypeIssues=false
import os
from typing import Any

import torch
import triton
from torch import Tensor

from sparse_model.attention import triton_launch, triton_selection
from sparse_model.attention.selection import BlockSelection, num_blocks_of
from sparse_model.attention.triton_problem import Lists, problem_of

_INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


def attend(
    q_BHND: Tensor,
    k_BGND: Tensor,
    v_BGND: Tensor,
    selection: BlockSelection,
    causal: bool = False,
    lengths_B: Tensor | None = None,
    summaries: bool = True,
) -> Tensor:
    """Same function as `reference.attend`; float16, bfloat16 or float32, products summed in float32."""
    _check(q_BHND, selection)
    indices, counts, size = selection.indices_BSQK, selection.counts_BSQ, selection.block_size
    return _attention(q_BHND, k_BGND, v_BGND, indices, counts, size, causal, lengths_B, summaries)[0]


def _check(q_BHND: Tensor, selection: BlockSelection) -> None:
    if not (q_BHND.is_cuda or _INTERPRETED):
        raise ValueError(f"implementation: 'triton' needs a GPU, but q is on {q_BHND.device}")
    if q_BHND.dtype not in (torch.float16, torch.bfloat16, torch.float32):
        raise ValueError(f"q: implementation 'triton' takes 16- and 32-bit floats, not {q_BHND.dtype}")
    if q_BHND.shape[-1] % 8 or not 16 <= q_BHND.shape[-1] <= 256:
        raise ValueError(f"q: 'triton' takes 16 to 256 channels in steps of 8, not {q_BHND.shape[-1]}")
    if selection.block_size not in (16, 32, 64, 128):
        raise ValueError(f"selection: 'triton' takes blocks of 16, 32, 64 or 128, not {selection.block_size}")


@torch.library.custom_op("dankai::block_sparse_attention", mutates_args=())
def _attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    indices: Tensor,
    counts: Tensor,
    block_size: int,
    causal: bool,
    lengths: Tensor | None,
    summaries: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Output and what the backward pass needs: log-sum-exp of the rows, mean keys and values, lists."""
    p = problem_of(q, k, indices, block_size, causal, lengths, summaries)
    lists = triton_launch.lists_of(p, indices, counts)
    means = triton_launch.summaries_of(p, k, v)
    out, lse = triton_launch.launch_forward(p, q, k, v, lists, means)
    return out, lse, *means, lists.full_BSQ, lists.bits_BSQW


@_attention.register_fake
def _(q, k, v, indices, counts, block_size, causal, lengths, summaries):  # type: ignore[no-untyped-def]
    batch, rankings, blocks, _ = indices.shape
    means = k.new_empty(batch, k.shape[1], blocks if summaries else 0, k.shape[3])
    full = counts.new_empty(counts.shape, dtype=torch.int32)
    bits = counts.new_empty((batch, rankings, blocks, (blocks + 31) // 32), dtype=torch.int32)
    lse = q.new_empty(q.shape[:3], dtype=torch.float32)
    return torch.empty_like(q), lse, means, torch.empty_like(means), full, bits


@torch.library.custom_op("dankai::block_sparse_attention_backward", mutates_args=())
def _attention_backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    mean_k: Tensor,
    mean_v: Tensor,
    indices: Tensor,
    counts: Tensor,
    full: Tensor,
    bits: Tensor,
    block_size: int,
    causal: bool,
    lengths: Tensor | None,
    summaries: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v; the summaries' gradients are spread over the steps they average."""
    p = problem_of(q, k, indices, block_size, causal, lengths, summaries)
    grad = grad if grad.stride(3) == 1 else grad.contiguous()
    product = triton_launch.row_products(p, out, grad)
    lists = Lists(indices.contiguous(), counts.contiguous(), full, bits)
    return triton_launch.launch_backward(p, grad, q, k, v, lse, product, lists, (mean_k, mean_v))


@_attention_backward.register_fake
def _(grad, q, k, v, *_others):  # type: ignore[no-untyped-def]
    return torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)


def _save_for_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    q, k, v, indices, counts, block_size, causal, lengths, summaries = inputs
    out, lse, mean_k, mean_v, full, bits = output
    ctx.save_for_backward(q, k, v, out, lse, mean_k, mean_v, indices, counts, full, bits, lengths)
    ctx.settings = block_size, causal, summaries


def _backward(ctx: Any, grad: Tensor, *_unused: Tensor) -> tuple[Tensor | None, ...]:
    *saved, lengths = ctx.saved_tensors
    block_size, causal, summaries = ctx.settings
    grads = _attention_backward(grad, *saved, block_size, causal, lengths, summaries)
    return (*grads, None, None, None, None, None, None)


_attention.register_autograd(_backward, setup_context=_save_for_backward)


@torch.library.custom_op("dankai::block_scores", mutates_args=())
def block_scores(
    sq_BSNE: Tensor, sk_BSNE: Tensor, block_size: int, causal: bool = False, lengths_B: Tensor | None = None
) -> Tensor:
    """Same function as `selection.block_scores`, from float16 products; no gradient."""
    return triton_launch.launch_scores(sq_BSNE, sk_BSNE, block_size, causal, lengths_B)


@block_scores.register_fake
def _(sq_BSNE, sk_BSNE, block_size, causal=False, lengths_B=None):  # type: ignore[no-untyped-def]
    batch, rankings, num_steps, _ = sq_BSNE.shape
    blocks = num_blocks_of(num_steps, block_size)
    return sq_BSNE.new_empty((batch, rankings, blocks, blocks), dtype=torch.float32)


@torch.library.custom_op("dankai::best_blocks", mutates_args=())
def _best_blocks(
    scores: Tensor, num_selected: int, block_size: int, num_steps: int, causal: bool, lengths: Tensor | None
) -> tuple[Tensor, Tensor]:
    batch, rankings, num_blocks, _ = scores.shape
    indices = scores.new_empty((batch, rankings, num_blocks, num_selected), dtype=torch.int32)
    counts = scores.new_empty((batch, rankings, num_blocks), dtype=torch.int32)
    wide = triton.next_power_of_2(num_blocks)
    triton_selection.best_blocks[(num_blocks, batch * rankings)](
        scores.contiguous(), indices, counts, lengths, rankings, num_steps, num_blocks, num_selected,
        BLOCK=block_size, J_POW2=wide, CAUSAL=causal, HAS_LIMIT=lengths is not None,
        num_warps=4 if wide < 2048 else 8,
    )  # fmt: skip
    return indices, counts


@_best_blocks.register_fake
def _(scores, num_selected, block_size, num_steps, causal, lengths):  # type: ignore[no-untyped-def]
    shape = scores.shape[:3]
    return scores.new_empty((*shape, num_selected), dtype=torch.int32), scores.new_empty(
        shape, dtype=torch.int32
    )


def select_blocks(
    scores_BSQJ: Tensor,
    num_selected: int,
    block_size: int,
    causal: bool = False,
    lengths_B: Tensor | None = None,
) -> BlockSelection:
    """Same function as `selection.select_blocks`, without sorting and without waiting for the GPU."""
    num_steps = scores_BSQJ.shape[-1] * block_size
    indices, counts = _best_blocks(
        scores_BSQJ.detach(), num_selected, block_size, num_steps, causal, lengths_B
    )
    return BlockSelection(indices, counts, block_size)
