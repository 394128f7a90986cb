"""Elementwise parts of a layer as one GPU kernel each: rotation by position, gate of the feed-forward.

PyTorch runs them as five to ten kernels that read and write the whole sequence each. Computed in float32
whatever the tensors hold. Imported by sparse_model.layers on a GPU only.

Shape suffixes: B batch, H heads, N steps, D channels, F hidden channels; `...` any leading dimensions.
"""

# Triton compiles the kernels and knows their types; it is not installed everywhere.
# pyright: reportMissingImports=false, reportAttributeAccessIssue=false, reportIndexIssue=false
# pyright: reportCallIssue=false, reportArgumentType=false, reportGeneralTypeIssues=false
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from sparse_model.attention.triton_problem import key_of, launch

_ROWS, _COLUMNS = 32, 512


@triton.jit(do_not_specialize=["heads", "num_steps", "first_step"])
def _rotation(
    x_ptr, out_ptr, frequency_ptr, x_b, x_h, x_n, out_b, out_h, out_n, heads, num_steps, first_step, sign,
    HALF: tl.constexpr, HALF_POW2: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Channels j and j + HALF of step n, counted from `first_step`, turned by sign * n * frequency[j]; all
    heads of ROWS steps."""
    steps, pair = tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.arange(0, HALF_POW2)
    inside = (steps < num_steps)[:, None] & (pair < HALF)[None, :]
    frequency = tl.load(frequency_ptr + pair, mask=pair < HALF, other=0.0)
    # whole turns are taken off in float64: the fast cosine is exact near zero only
    angle = ((first_step + steps).to(tl.float32)[:, None] * frequency[None, :]).to(tl.float64)
    angle = (angle - tl.floor(angle * 0.15915494309189535 + 0.5) * 6.283185307179586).to(tl.float32)
    cos, sin = tl.cos(angle), tl.sin(angle) * sign
    at = steps.to(tl.int64)[:, None]
    for head in range(0, heads):
        x = x_ptr + tl.program_id(1).to(tl.int64) * x_b + head * x_h + at * x_n + pair[None, :]
        out = out_ptr + tl.program_id(1).to(tl.int64) * out_b + head * out_h + at * out_n + pair[None, :]
        first = tl.load(x, mask=inside, other=0.0).to(tl.float32)
        second = tl.load(x + HALF, mask=inside, other=0.0).to(tl.float32)
        tl.store(out, (first * cos - second * sin).to(out_ptr.dtype.element_ty), mask=inside)
        tl.store(out + HALF, (first * sin + second * cos).to(out_ptr.dtype.element_ty), mask=inside)


def _rotate_into(out_BHND: Tensor, x_BHND: Tensor, frequency: Tensor, sign: float, first_step: int) -> None:
    batch, heads, num_steps, channels = x_BHND.shape
    half, grid = channels // 2, (triton.cdiv(num_steps, _ROWS), batch)
    launch(
        _rotation, grid, key_of(x_BHND, out_BHND),
        x_BHND, out_BHND, frequency, *x_BHND.stride()[:3], *out_BHND.stride()[:3], heads, num_steps,
        first_step, sign,
        HALF=half, HALF_POW2=triton.next_power_of_2(half), ROWS=_ROWS, num_warps=4,
    )  # fmt: skip


def rotate_(x_BHND: Tensor, frequency: Tensor, first_step: int = 0) -> None:
    """Rotate in place (see sparse_model.layers.rotary); channels side by side, any other strides."""
    _rotate_into(x_BHND, x_BHND, frequency, 1.0, first_step)


class Rotate(torch.autograd.Function):
    """`sparse_model.layers.rotary` with its gradient, which is the rotation back."""

    @staticmethod
    def forward(ctx: Any, x_BHND: Tensor, frequency: Tensor, first_step: int = 0) -> Tensor:
        ctx.frequency, ctx.first_step = frequency, first_step
        return _rotated(x_BHND, frequency, 1.0, first_step)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        return _rotated(grads[0], ctx.frequency, -1.0, ctx.first_step), None, None


def _rotated(x_BHND: Tensor, frequency: Tensor, sign: float, first_step: int) -> Tensor:
    x_BHND = x_BHND if x_BHND.stride(3) == 1 else x_BHND.contiguous()
    out = torch.empty_like(x_BHND)
    _rotate_into(out, x_BHND, frequency, sign, first_step)
    return out


@triton.jit(do_not_specialize=["rows"])
def _gate(hidden_ptr, out_ptr, hidden_row, out_row, rows, width, COLUMNS: tl.constexpr):
    """silu(left half) * right half of one row's COLUMNS channels; `out` may be the left half itself."""
    row, column = tl.program_id(0).to(tl.int64), tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = column < width
    at = hidden_ptr + row * hidden_row + column
    gate = tl.load(at, mask=inside, other=0.0).to(tl.float32)
    value = tl.load(at + width, mask=inside, other=0.0).to(tl.float32)
    out = gate * tl.sigmoid(gate) * value
    tl.store(out_ptr + row * out_row + column, out.to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["rows"])
def _gate_backward(hidden_ptr, grad_ptr, out_ptr, grad_row, rows, width, COLUMNS: tl.constexpr):
    """Gradient of both halves, side by side as they lie in `hidden`."""
    row, column = tl.program_id(0).to(tl.int64), tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = column < width
    at = row * 2 * width + column
    gate = tl.load(hidden_ptr + at, mask=inside, other=0.0).to(tl.float32)
    value = tl.load(hidden_ptr + at + width, mask=inside, other=0.0).to(tl.float32)
    grad = tl.load(grad_ptr + row * grad_row + column, mask=inside, other=0.0).to(tl.float32)
    share = tl.sigmoid(gate)
    of_gate = grad * value * share * (1.0 + gate * (1.0 - share))
    tl.store(out_ptr + at, of_gate.to(out_ptr.dtype.element_ty), mask=inside)
    tl.store(out_ptr + at + width, (grad * gate * share).to(out_ptr.dtype.element_ty), mask=inside)


def gate_(hidden_MF: Tensor) -> Tensor:
    """silu(left half) * right half, written over the left half [M, F/2], which is returned."""
    rows, width = hidden_MF.shape[0], hidden_MF.shape[1] // 2
    grid = (rows, triton.cdiv(width, _COLUMNS))
    stride = hidden_MF.stride(0)
    launch(
        _gate, grid, key_of(hidden_MF), hidden_MF, hidden_MF, stride, stride, rows, width,
        COLUMNS=_COLUMNS, num_warps=4,
    )  # fmt: skip
    return hidden_MF[:, :width]


class Gate(torch.autograd.Function):
    """silu(left half) * right half of the last dimension, keeping nothing for the gradient but its input."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor) -> Tensor:
        hidden = hidden.contiguous()
        ctx.save_for_backward(hidden)
        width = hidden.shape[-1] // 2
        rows, out = hidden.numel() // (2 * width), hidden.new_empty(*hidden.shape[:-1], width)
        grid = (rows, triton.cdiv(width, _COLUMNS))
        launch(
            _gate, grid, key_of(hidden, out), hidden, out, 2 * width, width, rows, width,
            COLUMNS=_COLUMNS, num_warps=4,
        )  # fmt: skip
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (hidden,), grad = ctx.saved_tensors, grads[0].contiguous()
        width = grad.shape[-1]
        rows, out = grad.numel() // width, torch.empty_like(hidden)
        grid = (rows, triton.cdiv(width, _COLUMNS))
        launch(
            _gate_backward, grid, key_of(hidden, grad), hidden, grad, out, width, rows, width,
            COLUMNS=_COLUMNS, num_warps=4,
        )  # fmt: skip
        return out
