"""A band over all groups: wider than each group's own interval, no wider than it has to be."""

import math

import numpy as np
import pytest

from validation.simultaneous import intervals_at_once
from validation.statistics import METRICS, Scored, interval, paired_interval, resample_weights

NUM_WINDOWS, BLOCK = 60, 4
HOW = {"confidence": 0.9, "block_length": BLOCK}
WEIGHTS = resample_weights(NUM_WINDOWS, BLOCK, 500, seed=0)


def losses(seed: int, num_groups: int, common: float = 0.0) -> np.ndarray:
    generator = np.random.default_rng(seed)
    shared, own = generator.normal(size=(NUM_WINDOWS, 1)), generator.normal(size=(NUM_WINDOWS, num_groups))
    return 5 + math.sqrt(common) * shared + math.sqrt(1 - common) * own


def scored(losses: np.ndarray) -> Scored:
    return Scored(losses, np.zeros_like(losses), np.ones_like(losses))


def groups(values: np.ndarray) -> list[tuple[Scored, None]]:
    return [(scored(values[:, [index]]), None) for index in range(values.shape[1])]


def mean_width(num_groups: int, common: float = 0.0) -> float:
    """Width of the band, over five simulations."""
    bands = [
        joint
        for seed in range(5)
        for _, joint in intervals_at_once(
            METRICS["mae"], groups(losses(seed, num_groups, common)), WEIGHTS, **HOW
        )
    ]
    return float(np.mean([band.high - band.low for band in bands]))


def test_each_groups_own_interval_is_the_one_it_has_alone() -> None:
    first, second = scored(losses(0, 1)), scored(losses(1, 1))
    ((own, _), (pair, _)) = intervals_at_once(
        METRICS["mae"], [(first, None), (first, second)], WEIGHTS, **HOW
    )
    same = {**HOW, "num_resamples": 500, "seed": 0}
    assert own == interval(METRICS["mae"], first, **same)
    assert pair == paired_interval(METRICS["mae"], first, second, **same)


def test_the_band_widens_with_groups_and_less_with_groups_that_move_together() -> None:
    alone, many, together = mean_width(1), mean_width(20), mean_width(20, common=0.95)
    assert many / alone == pytest.approx(1.71, rel=0.1)  # Bonferroni: z(1 - 0.05 / 20) / z(1 - 0.05)
    assert 1 < together / alone < 1.4


def test_a_group_without_an_interval_has_no_band_and_spoils_no_other() -> None:
    values = losses(0, 3)
    rare = np.zeros((NUM_WINDOWS, 1), dtype=bool)
    rare[:4] = True
    thin = (scored(values[:, [0]]).restrict(rare), None)
    (_, without), (_, fine), (_, other) = intervals_at_once(
        METRICS["mae"], [thin, *groups(values[:, 1:])], WEIGHTS, **HOW
    )
    assert math.isnan(without.low)
    assert math.isnan(without.high)
    assert all(math.isfinite(each.high - each.low) for each in (fine, other))


def test_a_group_that_differs_by_nothing_has_a_band_of_no_width() -> None:
    same = scored(losses(0, 1))
    ((_, joint),) = intervals_at_once(METRICS["mae"], [(same, same)], WEIGHTS, **HOW)
    assert (joint.low, joint.value, joint.high) == (0, 0, 0)


def test_groups_scored_on_other_windows_are_not_compared() -> None:
    here, there = losses(0, 1), losses(1, 1)
    other = Scored(there, np.ones_like(there), np.ones_like(there))
    with pytest.raises(ValueError, match="different windows"):
        intervals_at_once(METRICS["mae"], [(scored(here), other)], WEIGHTS, **HOW)
