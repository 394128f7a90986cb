"""Anomaly scores without labels: hide spans of steps, let the model fill them in, measure the surprise."""

import torch
from torch import Tensor

SPAN = 16  # steps hidden together: longer than noise, so that the neighbours do not give the answer away
NUM_FOLDS = 4


def fold_of(num_steps: int, fold: int) -> Tensor:
    """bool [N]: the spans hidden in one of NUM_FOLDS complementary passes."""
    return (torch.arange(num_steps) // SPAN) % NUM_FOLDS == fold


def hide_spans(known_BNF: Tensor, mask_BNO: Tensor, random: torch.Generator) -> tuple[Tensor, Tensor]:
    """Hide one fold, drawn at random: its values become unknown and only its steps count in the loss."""
    fold = int(torch.randint(NUM_FOLDS, (1,), generator=random))
    hidden = fold_of(known_BNF.shape[1], fold).to(known_BNF.device)[None, :, None]
    return known_BNF * ~hidden, mask_BNO * hidden
