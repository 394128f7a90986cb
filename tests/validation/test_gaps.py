"""The largest gap between groups: which two, how much, and beside a reference."""

import numpy as np
import pytest

from validation.gaps import largest_gap
from validation.statistics import METRICS, Scored, resample_weights

WEIGHTS = resample_weights(60, 4, 400, seed=0)
HOW = {"confidence": 0.95, "block_length": 4}


def errors(mean: float, seed: int = 0) -> Scored:
    noise = np.random.default_rng(seed).normal(size=(60, 20)) * 0.1
    return Scored(mean + noise, np.zeros_like(noise), np.ones_like(noise))


def test_it_lies_between_the_best_and_the_worst_group() -> None:
    groups = {"a": errors(1.0), "b": errors(1.5, 1), "c": errors(1.2, 2)}
    gap = largest_gap(METRICS["mae"], groups, None, WEIGHTS, **HOW)
    assert gap is not None
    assert (gap.best, gap.worst) == ("a", "b")
    assert gap.size.value == pytest.approx(0.5, abs=0.02)
    assert gap.size.low < gap.size.value < gap.size.high


def test_beside_a_reference_only_what_it_grew_by_counts() -> None:
    groups = {"a": errors(1.0), "b": errors(1.5, 1)}
    same = largest_gap(METRICS["mae"], groups, groups, WEIGHTS, **HOW)
    assert same is not None
    assert (same.size.low, same.size.value, same.size.high) == (0, 0, 0)
    grown = largest_gap(METRICS["mae"], groups, {"a": errors(1.0, 3), "b": errors(1.2, 4)}, WEIGHTS, **HOW)
    assert grown is not None
    assert grown.size.value == pytest.approx(0.3, abs=0.02)


def test_one_group_has_no_gap() -> None:
    assert largest_gap(METRICS["mae"], {"a": errors(1.0)}, None, WEIGHTS, **HOW) is None
