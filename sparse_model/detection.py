"""Anomaly scores without labels: hide spans of steps, let the model fill them in, measure the surprise."""

import torch
from torch import Tensor

SPAN = 16  # steps hidden together: longer than noise, so that the neighbours do not give the answer away
NUM_FOLDS = 4


def fold_of(num_steps: int, fold: int) -> Tensor:
    """bool [N]: the spans hidden in one of NUM_FOLDS complementary passes."""
    return (torch.arange(num_steps) // SPAN) % NUM_FOLDS == fold


def drawn_spans(num_steps: int, random: torch.Generator) -> Tensor:
    """bool [N]: one fold, drawn at random, to be hidden in training; only its steps count in the loss."""
    return fold_of(num_steps, int(torch.randint(NUM_FOLDS, (1,), generator=random)))
