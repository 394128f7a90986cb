"""What a pilot knows before it answers anybody: whether sparse reading reproduces the frozen model.

That needs windows and no labels. Where the answers differ too much, the layers whose peaked attention the
lists miss most are kept dense. It costs their share of the saving, which the cost measurements then show,
because they run the model as it is.
"""

import logging
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from sparse_model.config import Budget
from sparse_model.coverage import coverage
from sparse_model.model import SparseEncoder

_LOG = logging.getLogger(__name__)
Batches = Sequence[Sequence[Tensor]]
"""Numeric, known, categorical, target (not looked at), and the mask of the outputs that are asked for."""


def kept_dense_where_needed(
    model: SparseEncoder, batches: Batches, budget: Budget, max_disagreement: float
) -> SparseEncoder:
    """The model with as few dense layers as make its answers agree with the dense model's."""
    errors = errors_left(model, batches, budget)
    weakest_first = sorted(range(len(errors)), key=lambda layer: -errors[layer])
    kept = model
    for count in range(1, len(errors) + 1):
        if disagreement(kept, batches, budget) <= max_disagreement:
            break
        kept = with_dense_layers(model, weakest_first[:count])
    if kept.config.dense_layers:
        _LOG.warning("pilot: layers %s stay dense, or answers would differ", kept.config.dense_layers)
    return kept


@torch.no_grad()
def disagreement(model: SparseEncoder, batches: Batches, budget: Budget) -> float:
    """Share of the variance of the dense model's outputs that reading within `budget` does not reproduce.

    Over the outputs that are asked for; 0 is the same answers, 1 what answering with the mean would do.
    """
    pairs = [_answers(model, batch, budget) for batch in batches]
    dense, sparse = (torch.cat(part) for part in zip(*pairs, strict=True))
    missed, spread = (dense - sparse).square().sum(), (dense - dense.mean()).square().sum()
    return float(missed / spread.clamp_min(torch.finfo(spread.dtype).tiny))


def _answers(model: SparseEncoder, batch: Sequence[Tensor], budget: Budget) -> tuple[Tensor, Tensor]:
    numeric, known, categorical, _, mask = (column.to(next(model.parameters()).device) for column in batch)
    asked = mask > 0
    dense, sparse = model(numeric, known, categorical), model(numeric, known, categorical, budget)
    return dense[asked], sparse[asked]


def errors_left(model: SparseEncoder, batches: Batches, budget: Budget) -> list[float]:
    """What the lists leave unread of each layer's neediest head (sparse_model.coverage); mean of batches."""
    device = next(model.parameters()).device
    torch.manual_seed(0)  # the rows compared are drawn: the same ones for the same model
    left = [
        coverage(model, batch[0].to(device), batch[1].to(device), batch[2].to(device), budget).left.amax(1)
        for batch in batches
    ]
    return torch.stack(left).mean(0).tolist()


def with_dense_layers(model: SparseEncoder, layers: Sequence[int]) -> SparseEncoder:
    """The same weights with these layers reading everything."""
    kept = SparseEncoder(replace(model.config, dense_layers=tuple(sorted(layers))))
    kept.load_state_dict(model.state_dict())
    return kept.to(next(model.parameters()).device).train(model.training)
