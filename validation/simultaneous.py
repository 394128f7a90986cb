"""Intervals of many groups that hold all at once, so that the worst of many is not called harmed by chance.

All groups share the same resamples of windows, so their joint distribution comes free: the largest
studentised deviation over the groups, on each resample, gives one critical value for all of them (max-T:
Westfall and Young, Resampling-Based Multiple Testing, 1993; Romano and Wolf, Econometrica 73, 2005). Groups
that move together cost less than Bonferroni would charge.
"""

import math
from collections.abc import Sequence

import numpy as np

from validation.statistics import (
    Floats,
    Interval,
    Metric,
    Scored,
    Statistic,
    Weights,
    expanded_tail,
    freedom,
    interval_of,
    quantiles,
    require_same_windows,
    widening,
)


def intervals_at_once(
    metric: Metric,
    groups: Sequence[tuple[Scored, Scored | None]],
    weights: Weights,
    *,
    confidence: float,
    block_length: int,
    overlap: int = 1,
) -> list[tuple[Interval, Interval]]:
    """For each group (candidate, reference): its own interval, and its part of the band over all groups.

    Of the metric itself where the reference is None, else of metric(candidate) - metric(reference). All
    groups hold the same windows (see Scored.restrict), which `weights` [R, W] resample (statistics.
    resample_weights) in blocks of `block_length`. Both are two-sided at `confidence`, the second for all
    groups together. Raises ValueError when two subjects of a group were scored on different steps.
    """
    statistics = [_statistic(metric, *group) for group in groups]
    scored = [candidate for candidate, _ in groups]
    columns = [statistic(weights) for statistic in statistics]
    own = [
        interval_of(_value(statistic, subject), draws, subject, confidence, block_length, overlap)
        for statistic, subject, draws in zip(statistics, scored, columns, strict=True)
    ]
    shapes = [(each.num_scored_windows, block_length, overlap) for each in scored]
    halves = _half_widths(own, columns, shapes, confidence)
    return [
        (each, each.model_copy(update={"low": each.value - half, "high": each.value + half}))
        for each, half in zip(own, halves, strict=True)
    ]


def _statistic(metric: Metric, candidate: Scored, reference: Scored | None) -> Statistic:
    ours = metric.prepare(candidate)
    if reference is None:
        return ours
    require_same_windows(candidate, reference)
    theirs = metric.prepare(reference)
    return lambda weights: ours(weights) - theirs(weights)


def _value(statistic: Statistic, scored: Scored) -> float:
    return float(statistic(np.ones((1, scored.num_windows), dtype=np.int64))[0])


def _half_widths(
    own: Sequence[Interval],
    columns: Sequence[Floats],
    shapes: Sequence[tuple[int, int, int]],
    confidence: float,
) -> list[float]:
    """Half the band's width for each group; NaN for a group without an interval of its own.

    `shapes`: windows, block length and overlap of each.
    """
    usable = [index for index, each in enumerate(own) if not math.isnan(each.low)]
    halves = [math.nan] * len(own)
    if usable:
        draws = np.stack([columns[index] for index in usable], axis=1)
        deviation = np.abs(draws - np.array([own[index].value for index in usable]))
        spread = np.nanstd(draws, axis=0, ddof=1)
        ratios = np.divide(deviation, spread, out=np.zeros_like(deviation), where=spread > 0)
        [critical] = quantiles(np.nan_to_num(ratios).max(axis=1), [confidence])
        for index, each in zip(usable, spread, strict=True):
            halves[index] = float(critical * each) * _expansion(confidence, *shapes[index])
    return halves


def _expansion(confidence: float, num_windows: int, block_length: int, overlap: int) -> float:
    """How much wider an interval of few windows is made (as interval_of does for percentiles)."""
    from scipy.special import ndtri

    tail = expanded_tail(confidence, freedom(num_windows, block_length, overlap))
    student = float(ndtri(tail) / ndtri((1 - confidence) / 2))
    return student * widening(num_windows, block_length, overlap)
