"""Lightning's checkpoints of a training, read without running anything that is in them."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipelines.training_plan import TrainingPlan
from validation.errors import InputError


def resume_point(folder: Path, plan: TrainingPlan) -> Path | None:
    """The newest checkpoint of an interrupted training. Raises InputError on one that must not be gone on
    from."""
    last = folder / "last.ckpt"
    if not last.is_file():
        return None
    begun = TrainingPlan.model_validate(_checkpoint(last)["plan"])
    for name in ("precision", "strategy", "tokens_per_step"):
        before, asked = getattr(begun, name), getattr(plan, name)
        if before != asked:
            fix = f"set it back, or remove {folder} to start anew"
            raise InputError(f"{last}: training.{name}: begun with {before}, {asked} is asked now; {fix}")
    return last


def weights_in(path: Path) -> dict[str, Tensor]:
    """Weights in a checkpoint."""
    return _checkpoint(path)["state_dict"]


def _checkpoint(path: Path) -> dict[str, Any]:
    """Anything in a checkpoint but tensors and plain values is refused, and nothing run."""
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
        return {"state_dict": found["state_dict"], "plan": found["plan"]}
    except Exception as error:  # whatever torch says of a damaged or a dangerous file
        fix = "remove it, and the training starts anew"
        raise InputError(f"{path}: no checkpoint that may be read ({type(error).__name__}); {fix}") from None
