"""The batches of a training: each a pure function of (seed, step), cut into equal parts for its processes.

Shape letters: T steps of a window (lookback + horizon), O targets.
"""

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from pipelines.data.windows import WindowBatch, Windows
from pipelines.training_plan import Mode, TrainingPlan


class Batches(Dataset[list[Tensor]]):
    """The parts of batches number `first` to `first + count` that are process number `rank`'s, in order.

    A part holds its windows as `to_tensors` gives them and, last, float32 [T, O]: at how many windows of the
    whole batch a step is scored. So the parts' losses add up to the batch's, however unequal they are.
    """

    def __init__(
        self,
        windows: Windows,
        plan: TrainingPlan,
        mode: Mode,
        seed: int,
        first: int,
        count: int,
        rank: int = 0,
    ) -> None:
        self.windows, self.plan, self.seed = windows, plan, seed
        self.mode: Mode = mode
        self.first, self.count, self.rank = first, count, rank
        ranges = windows.cutoff_ranges("train")
        self.first_cutoffs, self.counts = ranges[:, 0], np.cumsum(ranges[:, 1] + 1 - ranges[:, 0])

    def __len__(self) -> int:
        return self.count * self.plan.accumulate

    def __getitem__(self, index: int) -> list[Tensor]:
        step, turn = self.first + index // self.plan.accumulate, index % self.plan.accumulate
        share = self.plan.length_share(step, self.mode)
        lookback, size = self.plan.batch_shape(share, self.windows.lookback, self.windows.horizon)
        cutoffs = self._drawn(step, size)
        part = np.split(cutoffs, self.plan.num_parts)[self.plan.part_of(self.rank, turn)]
        scored = torch.from_numpy(self.windows.num_scored(cutoffs, lookback))
        return [*to_tensors(self.windows.batch(part, lookback)), scored]

    def _drawn(self, step: int, size: int) -> np.ndarray:
        """Cutoffs of all that there are, each as likely as any; the list of them is never made."""
        random = np.random.default_rng((self.seed, step))
        number: np.ndarray = random.integers(self.counts[-1], size=size)  # pyright: ignore[reportAssignmentType]
        entity = np.asarray(np.searchsorted(self.counts, number, side="right"))
        before = np.concatenate([[0], self.counts])[entity]
        return self.first_cutoffs[entity] + number - before


class ValidationBatches(Dataset[list[Tensor]]):
    """Fixed windows of the validation part, evenly spread over its time; every process judges them all."""

    def __init__(self, windows: Windows, num_windows: int) -> None:
        picked = windows.some_cutoffs("validation", num_windows)
        self.windows, self.groups = windows, np.array_split(picked, max(1, len(picked) // 4))

    def __len__(self) -> int:
        return len(self.groups)

    def __getitem__(self, index: int) -> list[Tensor]:
        return to_tensors(self.windows.batch(self.groups[index], None))


def to_tensors(batch: WindowBatch) -> list[Tensor]:
    """Numeric, known, categorical, target, target mask: what a model is trained on."""
    arrays = (batch.numeric, batch.known, batch.categorical, batch.target, batch.target_mask)
    return [torch.from_numpy(np.ascontiguousarray(array)) for array in arrays]
