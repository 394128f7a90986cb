"""Where a model read and with what attention, and what dense attention would have found beside it.

Everything here looks at the layers as the sparse model runs them: each is given the input that the layers
below it, reading within the budget, leave it. Attention mass is the softmax weight; a row's adds up to 1.

Shape suffixes: B batch, N steps, L layers, H heads, P rows (query steps) looked at, Q query blocks, J key
blocks, R steps of a block, D channels.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from sparse_model.attention import BlockSelection
from sparse_model.attention.selection import num_blocks_of
from sparse_model.config import Budget
from sparse_model.layers import Attention
from sparse_model.losses import log_block_mass, missed_mass
from sparse_model.model import SparseEncoder


class Reading(NamedTuple):
    """What some rows read, layer by layer and head by head."""

    steps_BLHPN: Tensor
    """Mass of every step that was read exactly; 0 where it was not."""
    summaries_BLHPJ: Tensor
    """Mass of every block that was read as its summary; 0 where it was read exactly."""
    is_read_BLHPJ: Tensor
    """bool: the row's query block read the key block exactly."""


class Audit(NamedTuple):
    """Dense attention's mass on what the rows' blocks did not read exactly, [B, L, H, P] each."""

    unread: Tensor
    """On blocks read as summaries only: 1 - unread is the selection's recall."""
    missed: Tensor
    """The part of `unread` that the summaries do not carry (losses.missed_mass): links that were missed."""


@torch.no_grad()
def explain(
    model: SparseEncoder,
    numeric_BNF: Tensor,
    known_BNF: Tensor,
    categorical_BNC: Tensor,
    budget: Budget,
    rows_P: Tensor,
) -> Reading:
    """What the steps `rows_P` (int64) read within `budget`: steps, blocks, summaries and their mass.

    Memory grows with the rows asked for times the steps of the sequence.
    """
    inputs = (numeric_BNF, known_BNF, categorical_BNC)
    readings = [_reading(*layer, budget, rows_P) for layer in _attention_inputs(model, inputs, budget)]
    return Reading(*(torch.stack(parts, dim=1) for parts in zip(*readings, strict=True)))


@torch.no_grad()
def audit(
    model: SparseEncoder,
    numeric_BNF: Tensor,
    known_BNF: Tensor,
    categorical_BNC: Tensor,
    budget: Budget,
    rows_P: Tensor,
) -> Audit:
    """Run the steps `rows_P` (int64) densely in every layer and see what reading within `budget` missed."""
    inputs = (numeric_BNF, known_BNF, categorical_BNC)
    audits = [_audit(*layer, budget, rows_P) for layer in _attention_inputs(model, inputs, budget)]
    return Audit(*(torch.stack(parts, dim=1) for parts in zip(*audits, strict=True)))


def selection_recall(
    model: SparseEncoder,
    numeric_BNF: Tensor,
    known_BNF: Tensor,
    categorical_BNC: Tensor,
    budget: Budget,
    probes_P: Tensor,
) -> Tensor:
    """Share of dense attention's mass that falls on the blocks read, [B, layers, heads]; mean over probes."""
    audited = audit(model, numeric_BNF, known_BNF, categorical_BNC, budget, probes_P)
    return (1.0 - audited.unread).mean(-1)


def _attention_inputs(
    model: SparseEncoder, inputs: tuple[Tensor, Tensor, Tensor], budget: Budget
) -> Iterator[tuple[Attention, Tensor]]:
    """Every layer's attention with the input [B, N, W] that the sparse model gives it."""
    x_BNW = model.embed(*inputs)
    for layer in model.layers:
        yield layer.attention, layer.attention_norm(x_BNW)  # pyright: ignore[reportReturnType, reportCallIssue]
        x_BNW, _ = layer(x_BNW, budget)


class _Rows(NamedTuple):
    """Logits of some rows in one layer."""

    steps_BHPN: Tensor
    summaries_BHPJ: Tensor
    """Of the mean key of every block, plus the log of its length."""
    is_read_BHPJ: Tensor


def _rows(attention: Attention, x_BNW: Tensor, budget: Budget, rows_P: Tensor) -> _Rows:
    config = attention.config
    q, k, _ = attention.heads(x_BNW)
    k_BHND = k.repeat_interleave(config.num_heads // config.num_kv_heads, dim=1)
    q_BHPD = q[:, :, rows_P] * config.head_dim**-0.5
    mean_BHJD, length_J = _summary_keys(k_BHND, config.block_size)
    steps_BHPN = q_BHPD @ k_BHND.transpose(-1, -2)
    summaries_BHPJ = q_BHPD @ mean_BHJD.transpose(-1, -2) + length_J.log()
    if config.causal:
        step_N, block_J = (torch.arange(t.shape[-1], device=q.device) for t in (steps_BHPN, summaries_BHPJ))
        steps_BHPN = steps_BHPN.masked_fill(step_N > rows_P[:, None], -torch.inf)
        is_past_PJ = block_J < (rows_P // config.block_size)[:, None]
        summaries_BHPJ = summaries_BHPJ.masked_fill(~is_past_PJ, -torch.inf)
    return _Rows(
        steps_BHPN,
        summaries_BHPJ,
        _is_read(attention.select(x_BNW, budget), rows_P, config.num_heads),
    )


def _summary_keys(k_BHND: Tensor, block_size: int) -> tuple[Tensor, Tensor]:
    """Mean key of every block, [B, H, J, D], and its number of steps, [J]."""
    num_steps = k_BHND.shape[2]
    num_blocks = num_blocks_of(num_steps, block_size)
    blocks = pad(k_BHND, (0, 0, 0, num_blocks * block_size - num_steps)).unflatten(2, (num_blocks, -1))
    first_J = torch.arange(num_blocks, device=k_BHND.device) * block_size
    length_J = (num_steps - first_J).clamp_max(block_size).to(k_BHND.dtype)
    return blocks.sum(3) / length_J[:, None], length_J


def _is_read(selection: BlockSelection, rows_P: Tensor, num_heads: int) -> Tensor:
    """bool [B, H, P, J]"""
    read_BSPJ = selection.read_mask()[:, :, rows_P // selection.block_size]
    return read_BSPJ.repeat_interleave(num_heads // read_BSPJ.shape[1], dim=1)


def _reading(
    attention: Attention, x_BNW: Tensor, budget: Budget, rows_P: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The softmax of the sparse model over steps read and summaries of the rest, taken apart again."""
    rows, size = _rows(attention, x_BNW, budget, rows_P), attention.config.block_size
    num_steps = rows.steps_BHPN.shape[-1]
    is_read_BHPN = rows.is_read_BHPJ.repeat_interleave(size, dim=-1)[..., :num_steps]
    steps = rows.steps_BHPN.masked_fill(~is_read_BHPN, -torch.inf)
    summaries = rows.summaries_BHPJ.masked_fill(rows.is_read_BHPJ, -torch.inf)
    mass = torch.cat([steps, summaries], dim=-1).softmax(-1)
    return mass[..., :num_steps], mass[..., num_steps:], rows.is_read_BHPJ


def _audit(attention: Attention, x_BNW: Tensor, budget: Budget, rows_P: Tensor) -> tuple[Tensor, Tensor]:
    config = attention.config
    q, k, _ = attention.heads(x_BNW)
    q_BHPD, k_BHND = q[:, :, rows_P], k.repeat_interleave(config.num_heads // config.num_kv_heads, dim=1)
    at_BP = rows_P.expand(len(q), -1) if config.causal else None
    mass_BHPJ = log_block_mass(q_BHPD, k_BHND, config.block_size, None, at_BP).exp()
    missed_BHPJ = missed_mass(q_BHPD, k, config.block_size, None, at_BP)
    unread = ~_is_read(attention.select(x_BNW, budget), rows_P, config.num_heads)
    return (mass_BHPJ * unread).sum(-1), (missed_BHPJ * unread).sum(-1)
