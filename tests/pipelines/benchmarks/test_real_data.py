"""The real-data benchmark judges several seeds as one, and says of each metric what is lost."""

import numpy as np
import pytest

from pipelines.benchmarks.real_data import DATASETS, DENSITY, lost_share, spec_of
from pipelines.benchmarks.trainings import mean_over_trainings, one_by_one, side_by_side
from validation.statistics import METRICS, Scored

HOW = {"confidence": 0.95, "num_resamples": 200, "block_length": 2, "seed": 0}


def scored(noise: float, seed: int, outputs: int = 2) -> Scored:
    """40 windows of 12 steps: 0/1 targets, and scores that follow them but for noise."""
    truth = np.random.default_rng(0).integers(0, 2, (40, 12, outputs)).astype(float)
    scores = truth + noise * np.random.default_rng(seed).standard_normal(truth.shape)
    return Scored(scores, truth, np.ones_like(truth))


def test_trainings_side_by_side_come_apart_again_and_are_averaged() -> None:
    each = [scored(0.5, seed) for seed in (1, 2, 3)]
    together = side_by_side(each)
    for before, after in zip(each, one_by_one(together, 3), strict=True):
        np.testing.assert_array_equal(before.scores, after.scores)
    mean = mean_over_trainings(METRICS["mse"], 3)
    assert mean(together) == pytest.approx(np.mean([METRICS["mse"](one) for one in each]))


@pytest.mark.parametrize("name", ["mse", "auroc"])
def test_what_is_lost_is_above_zero_when_worse_whatever_the_metrics_direction(name: str) -> None:
    good, bad = scored(0.5, 1), scored(1.0, 2)
    worse, better = (lost_share(METRICS[name], *pair, HOW) for pair in ((bad, good), (good, bad)))
    assert 0 < worse["low"] <= worse["value"] <= worse["high"]
    assert better["low"] <= better["value"] <= better["high"] < 0
    assert worse["value"] == pytest.approx(abs(METRICS[name](bad) / METRICS[name](good) - 1))


@pytest.mark.parametrize("dataset", DATASETS)
def test_models_are_selected_at_the_density_that_is_judged(dataset: str) -> None:
    plan = spec_of(dataset).training
    assert plan.target_density == DENSITY
    assert DENSITY in plan.densities
