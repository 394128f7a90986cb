"""What a selector's lists leave unread of a model's attention, per layer and head; needs no labels.

Shape suffixes: B batch, L layers, H heads, S selector heads, P probe steps, Q query blocks, J key blocks.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from sparse_model.config import Budget
from sparse_model.layers import Attention
from sparse_model.losses import missed_mass, peaked_rows, rows_at
from sparse_model.model import SparseEncoder


class Coverage(NamedTuple):
    """Errors of every layer's heads on the rows that decide what to read, [L, H] each.

    A block that is not read errs by the softmax mass its summary does not carry; errors of different blocks
    add up in squares, as those of unrelated values do. 0 is exact; 1 is all of the attention in wrong places.
    """

    at_stake: Tensor
    """If nothing were read but summaries: near 0 for a diffuse head, which any list serves."""
    left: Tensor
    """On the blocks that the lists leave unread."""


@torch.no_grad()
def coverage(
    model: SparseEncoder,
    numeric_BNF: Tensor,
    known_BNF: Tensor,
    categorical_BNC: Tensor,
    budget: Budget,
    num_probes: int = 256,
) -> Coverage:
    """Compare lists and attention on `num_probes` rows per sequence and layer, drawn where most is at stake.

    Every layer is given the input that dense layers leave it: what is judged is its own lists.
    """
    x = model.embed(numeric_BNF, known_BNF, categorical_BNC)
    parts: list[Coverage] = []
    for layer in model.layers:
        attention = layer.attention
        assert isinstance(attention, Attention)
        parts.append(_of_layer(attention, layer.attention_norm(x), budget, num_probes))  # pyright: ignore
        x, _ = layer(x, None)
    return Coverage(*(torch.stack(values) for values in zip(*parts, strict=True)))


def _of_layer(attention: Attention, x_BNW: Tensor, budget: Budget, num_probes: int) -> Coverage:
    size, heads = attention.config.block_size, attention.config.num_heads
    q, k, _ = (t.float() for t in attention.heads(x_BNW))
    causal = attention.config.causal
    steps_BP = peaked_rows(q, k, num_probes, size, causal=causal)
    missed_BHPJ = missed_mass(rows_at(q, steps_BP), k, size, None, steps_BP if causal else None)
    read_BSQJ = attention.select(x_BNW, budget).read_mask()
    read_BSPJ = read_BSQJ.take_along_dim((steps_BP // size)[:, None, :, None], dim=2)
    unread_BHPJ = ~read_BSPJ.repeat_interleave(heads // read_BSPJ.shape[1], dim=1)
    return Coverage(_error(missed_BHPJ), _error(missed_BHPJ * unread_BHPJ))


def _error(missed_BHPJ: Tensor) -> Tensor:
    return missed_BHPJ.square().sum(-1).mean((0, 2)).sqrt()
