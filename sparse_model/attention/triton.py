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
from torch import Tensor

from sparse_model.attention import triton_launch
from sparse_model.attention.selection import BlockSelection, check_budget, num_blocks_of
from sparse_model.attention.triton_problem import Lists, key_of, problem_of

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
    operands = q_BHND, k_BGND, v_BGND, indices, counts, size, causal, lengths_B, summaries
    return _attention(*operands)[0] if _traced(q_BHND) else _Attention.apply(*operands)


def _traced(t: Tensor) -> bool:
    """Whether somebody watches who must see the custom operators, whose dispatch costs eager runs time: a
    compiler, or a dispatch mode such as that of selective checkpointing."""
    watched = torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack() > 0
    return watched or type(t) not in (Tensor, torch.nn.Parameter)


def _check_device(name: str, t: Tensor) -> None:
    if not (t.is_cuda or _INTERPRETED):
        raise ValueError(f"implementation: 'triton' needs a GPU, but {name} is on {t.device}")


def _check(q_BHND: Tensor, selection: BlockSelection) -> None:
    _check_device("q", q_BHND)
    if q_BHND.dtype not in (torch.float16, torch.bfloat16, torch.float32):
        raise ValueError(f"q: implementation 'triton' takes 16- and 32-bit floats, not {q_BHND.dtype}")
    if q_BHND.shape[-1] % 8 or not 16 <= q_BHND.shape[-1] <= 256:
        raise ValueError(f"q: 'triton' takes 16 to 256 channels in steps of 8, not {q_BHND.shape[-1]}")
    if selection.block_size not in (16, 32, 64, 128):
        raise ValueError(f"selection: 'triton' takes blocks of 16, 32, 64 or 128, not {selection.block_size}")


def _forward(
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
    p = problem_of(q, k, v, indices, counts, block_size, causal, lengths, summaries)
    lists = triton_launch.lists_of(p, indices, counts)
    means = triton_launch.summaries_of(p, k, v)
    out, lse = triton_launch.launch_forward(p, q, k, v, lists, means)
    return out, lse, *means, lists.full_BSQ, lists.bits_BSQW


def _backward(
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
    grad = grad if grad.stride(3) == 1 else grad.contiguous()
    p = problem_of(q, k, v, indices, counts, block_size, causal, lengths, summaries)
    p = p._replace(key=key_of(p.key, grad, out))
    product = triton_launch.row_products(p, out, grad)
    lists = Lists(indices.contiguous(), counts.contiguous(), full, bits)
    return triton_launch.launch_backward(p, grad, q, k, v, lse, product, lists, (mean_k, mean_v))[:3]


def _save_for_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    q, k, v, indices, counts, block_size, causal, lengths, summaries = inputs
    out, lse, mean_k, mean_v, full, bits = output
    ctx.save_for_backward(q, k, v, out, lse, mean_k, mean_v, indices, counts, full, bits, lengths)
    ctx.settings = block_size, causal, summaries


def _saved(ctx: Any) -> tuple[Any, ...]:
    *tensors, lengths = ctx.saved_tensors
    block_size, causal, summaries = ctx.settings
    return *tensors, block_size, causal, lengths, summaries


class _Attention(torch.autograd.Function):
    """The eager way to the kernels."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        output = _forward(*inputs)
        _save_for_backward(ctx, inputs, output)
        return output[0]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return *_backward(grad, *_saved(ctx)), *(None,) * 6


# the way of torch.compile and torch.export, which see operators and not kernels
_attention = torch.library.custom_op("dankai::block_sparse_attention", mutates_args=())(_forward)
_attention_backward = torch.library.custom_op("dankai::block_sparse_attention_backward", mutates_args=())(
    _backward
)


@_attention.register_fake
def _(q, k, v, indices, counts, block_size, causal, lengths, summaries):  # type: ignore[no-untyped-def]
    batch, rankings, blocks, _ = indices.shape
    means = k.new_empty(batch, k.shape[1], blocks if summaries else 0, k.shape[3])
    full = counts.new_empty(counts.shape, dtype=torch.int32)
    bits = counts.new_empty((batch, rankings, blocks, (blocks + 31) // 32), dtype=torch.int32)
    lse = q.new_empty(q.shape[:3], dtype=torch.float32)
    return torch.empty_like(q), lse, means, torch.empty_like(means), full, bits


@_attention_backward.register_fake
def _(grad, q, k, v, *_others):  # type: ignore[no-untyped-def]
    return torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)


def _backward_of_op(ctx: Any, grad: Tensor, *_unused: Tensor) -> tuple[Tensor | None, ...]:
    return *_attention_backward(grad, *_saved(ctx)), *(None,) * 6


_attention.register_autograd(_backward_of_op, setup_context=_save_for_backward)


def block_scores(
    sq_BSNE: Tensor, sk_BSNE: Tensor, block_size: int, causal: bool = False, lengths_B: Tensor | None = None
) -> Tensor:
    """Same function as `selection.block_scores`, from float16 products; no gradient."""
    _check_device("sq", sq_BSNE)
    score = _block_scores if _traced(sq_BSNE) else triton_launch.launch_scores
    return score(sq_BSNE.detach(), sk_BSNE.detach(), block_size, causal, lengths_B)


@torch.library.custom_op("dankai::block_scores", mutates_args=())
def _block_scores(sq: Tensor, sk: Tensor, block_size: int, causal: bool, lengths: Tensor | None) -> Tensor:
    return triton_launch.launch_scores(sq, sk, block_size, causal, lengths)


@_block_scores.register_fake
def _(sq, sk, block_size, causal, lengths):  # type: ignore[no-untyped-def]
    batch, rankings, num_steps, _ = sq.shape
    blocks = num_blocks_of(num_steps, block_size)
    return sq.new_empty((batch, rankings, blocks, blocks), dtype=torch.float32)


def select_blocks(
    scores_BSQJ: Tensor,
    num_selected: int,
    block_size: int,
    causal: bool = False,
    lengths_B: Tensor | None = None,
    top_p: float | None = None,
) -> BlockSelection:
    """Same function as `selection.select_blocks`, without sorting and without waiting for the GPU."""
    check_budget(num_selected, scores_BSQJ.shape[-1], top_p)
    num_steps = scores_BSQJ.shape[-1] * block_size
    choose = _best_blocks if _traced(scores_BSQJ) else triton_launch.launch_best_blocks
    indices, counts = choose(
        scores_BSQJ.detach(), num_selected, block_size, num_steps, causal, lengths_B, top_p
    )
    return BlockSelection(indices, counts, block_size)


@torch.library.custom_op("dankai::best_blocks", mutates_args=())
def _best_blocks(
    scores: Tensor,
    num_selected: int,
    block_size: int,
    num_steps: int,
    causal: bool,
    lengths: Tensor | None,
    top_p: float | None,
) -> tuple[Tensor, Tensor]:
    return triton_launch.launch_best_blocks(
        scores, num_selected, block_size, num_steps, causal, lengths, top_p
    )


@_best_blocks.register_fake
def _(scores, num_selected, block_size, num_steps, causal, lengths, top_p):  # type: ignore[no-untyped-def]
    counts = scores.new_empty(scores.shape[:3], dtype=torch.int32)
    return scores.new_empty((*scores.shape[:3], num_selected), dtype=torch.int32), counts
