"""How far apart the best and the worst group are: a model may be good on average and bad for somebody."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from validation.statistics import Floats, Interval, Metric, Scored, Statistic, Weights, interval_of


class Gap(NamedTuple):
    """The largest difference of a metric between two groups, and which two they are."""

    best: str
    worst: str
    size: Interval


def largest_gap(
    metric: Metric,
    groups: Mapping[str, Scored],
    reference: Mapping[str, Scored] | None,
    weights: Weights,
    *,
    confidence: float,
    block_length: int,
    overlap: int = 1,
) -> Gap | None:
    """Between the subject's groups; with a `reference`, how much larger than between the reference's.

    All groups hold the same windows (see Scored.restrict), which `weights` [R, W] resample in blocks of
    `block_length`. Noise alone makes the largest of several gaps larger than it is, in the value and, more
    so, in the interval: it errs to the careful side. None with fewer than two groups.
    """
    if len(groups) < 2:
        return None
    ours = [metric.prepare(scored) for scored in groups.values()]
    theirs = [metric.prepare(reference[name]) for name in groups] if reference else []
    once = np.ones((1, weights.shape[1]), dtype=np.int64)
    value, draws = _gap(ours, once) - _gap(theirs, once), _gap(ours, weights) - _gap(theirs, weights)
    each = {name: metric(scored) for name, scored in groups.items()}
    ranked = sorted(each, key=each.__getitem__, reverse=metric.higher_is_better)
    smallest = min(groups.values(), key=lambda scored: scored.num_scored_windows)
    size = interval_of(float(value[0]), draws, smallest, confidence, block_length, overlap)
    return Gap(ranked[0], ranked[-1], size)


def _gap(statistics: Sequence[Statistic], weights: Weights) -> Floats:
    """[R]; none at all between no groups."""
    if not statistics:
        return np.zeros(len(weights))
    values = np.stack([statistic(weights) for statistic in statistics])
    return values.max(axis=0) - values.min(axis=0)
