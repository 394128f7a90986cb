"""Several trainings of one kind judged as one: their mean metric, on the same resampled windows."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from validation.statistics import Metric, Scored, Statistic, Weights


def side_by_side(each: Sequence[Scored]) -> Scored:
    """The outputs of several trainings one after the other in the last axis."""
    scores, targets, mask = (
        np.concatenate([getattr(one, field) for one in each], axis=-1)
        for field in ("scores", "targets", "mask")
    )
    return Scored(scores, targets, mask)


def one_by_one(scored: Scored, num_trainings: int) -> list[Scored]:
    """Inverse of `side_by_side`."""
    parts = [np.split(array, num_trainings, -1) for array in (scored.scores, scored.targets, scored.mask)]
    return [Scored(*each) for each in zip(*parts, strict=True)]


def mean_over_trainings(metric: Metric, num_trainings: int) -> Metric:
    """The mean of the metric over trainings that lie side by side."""

    def prepare(scored: Scored) -> Statistic:
        each = [metric.prepare(one) for one in one_by_one(scored, num_trainings)]

        def statistic(weights: Weights) -> Any:
            return np.mean([one(weights) for one in each], axis=0)

        return statistic

    return Metric(metric.name, metric.higher_is_better, prepare)
