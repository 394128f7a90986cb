"""What rounding to 16-bit integers does to a checkpoint's answers: the yardstick for an engine that does so.

The engine (kernel/integers.h) rounds each map's input by row, its weights by column, queries by row, keys and
values by block, and the attention's weights. Here the model does the same, the weights of the attention
excepted, and adds up in whatever its tensors hold.
"""

from copy import deepcopy
from math import floor, sqrt
from typing import Literal

from torch import Tensor, nn
from torch.nn.functional import pad

from sparse_model.layers import Attention, Layer
from sparse_model.model import SparseEncoder

Precision = Literal["fp32", "int16"]
_DEPTH = 256
_SUM = 2_147_483_000


def rounded_model(model: SparseEncoder) -> SparseEncoder:
    """A copy that rounds where the engine does. Only its plain form, with gradients enabled, does so."""
    copy = deepcopy(model).requires_grad_(False)
    for layer in copy.layers:
        assert isinstance(layer, Layer)
        attention = layer.attention
        for linear in (
            attention.to_q,
            attention.to_kv,
            attention.to_out,
            layer.ffn.to_hidden,
            layer.ffn.to_out,
        ):
            linear.weight.copy_(_rounded(linear.weight, (1,), min(linear.in_features, _DEPTH)))
            linear.register_forward_pre_hook(_round_input)
        setattr(attention, "heads", _RoundedHeads(attention))  # noqa: B010
    return copy


class _RoundedHeads:
    """In place of `Attention.heads`."""

    def __init__(self, attention: Attention) -> None:
        self._attention = attention

    def __call__(self, x_BNW: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        config = self._attention.config
        q, k, v = Attention.heads(self._attention, x_BNW)
        return (
            _rounded(q, (-1,), config.head_dim),
            _by_block(k, config.block_size, config.head_dim),
            _by_block(v, config.block_size, config.block_size),
        )


def _round_input(linear: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
    return (_rounded(inputs[0], (-1,), min(inputs[0].shape[-1], _DEPTH)),)


def _by_block(x_BHND: Tensor, size: int, depth: int) -> Tensor:
    blocks = pad(x_BHND, (0, 0, 0, -x_BHND.shape[2] % size)).unflatten(2, (-1, size))
    return _rounded(blocks, (3, 4), depth).flatten(2, 3)[:, :, : x_BHND.shape[2]]


def _rounded(x: Tensor, over: tuple[int, ...], depth: int) -> Tensor:
    """Whole multiples of a scale; the largest of those that share it gets the largest magnitude."""
    magnitude = min(32_767, floor(sqrt(_SUM / depth)))
    unit = x.abs().amax(over, keepdim=True).clamp_min(1e-30) / magnitude
    return (x / unit).round() * unit
