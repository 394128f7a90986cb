"""What a pilot knows before it answers anybody: which layers of a frozen model its lists do not serve.

A layer whose peaked attention the lists would miss is kept dense. That costs its share of the saving, which the
cost measurements then show, because they run the model as it is.
"""

import logging
from collections.abc import Iterable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from sparse_model.config import Budget
from sparse_model.coverage import coverage
from sparse_model.model import SparseEncoder

_LOG = logging.getLogger(__name__)


def errors_left(model: SparseEncoder, batches: Iterable[Sequence[Tensor]], budget: Budget) -> list[float]:
    """Of every layer, what the lists leave unread of its neediest head (see sparse_model.coverage).

    Mean over `batches`, whose first three tensors are numeric, known and categorical columns; no labels needed.
    """
    device = next(model.parameters()).device
    torch.manual_seed(0)  # the rows compared are drawn: the same ones for the same model
    left = [
        coverage(model, *(column.to(device) for column in batch[:3]), budget).left.amax(1)
        for batch in batches
    ]
    return torch.stack(left).mean(0).tolist()


def with_dense_layers(model: SparseEncoder, is_weak: Sequence[bool]) -> SparseEncoder:
    """The same weights, with the weak layers reading everything."""
    layers = tuple(number for number, weak in enumerate(is_weak) if weak)
    if not layers:
        return model
    _LOG.warning("pilot: layers %s stay dense, no list serves their attention within the budget", layers)
    kept = SparseEncoder(replace(model.config, dense_layers=layers))
    kept.load_state_dict(model.state_dict())
    return kept.to(next(model.parameters()).device)
