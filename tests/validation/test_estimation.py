"""The estimated metric is the realised one where scores keep their meaning; its error is tracked."""

import math

import numpy as np
import pytest

from validation.estimation import estimate_auroc
from validation.statistics import METRICS, Scored


def scored(seed: int, shift: float = 0.0) -> Scored:
    """Chances and what came of them; `shift` moves the mix of cases."""
    generator = np.random.default_rng(seed)
    chances = 1 / (1 + np.exp(-generator.normal(shift - 1, 1.5, size=(80, 50))))
    outcomes = (generator.random(chances.shape) < chances).astype(float)
    return Scored(chances**2, outcomes, np.ones_like(chances))  # badly calibrated, rightly ranked


@pytest.mark.parametrize("shift", [0.0, -1.5, 2.0])
def test_it_foresees_what_another_mix_of_cases_does(shift: float) -> None:
    known, new = scored(0), scored(1, shift)
    estimate = estimate_auroc(known, new.scores.ravel())
    assert estimate is not None
    assert estimate.value == pytest.approx(METRICS["auroc"](new), abs=0.02)
    assert estimate.reference_value == METRICS["auroc"](known)
    assert (estimate.num_checked, math.isnan(estimate.error)) == (0, True)


def test_its_error_is_that_of_earlier_ones() -> None:
    estimate = estimate_auroc(scored(0), scored(1).scores.ravel(), [0.02, 0.04])
    assert estimate is not None
    assert (estimate.error, estimate.num_checked) == (pytest.approx(0.03), 2)


def test_where_one_outcome_alone_is_known_nothing_is_estimated() -> None:
    known = scored(0)
    alone = Scored(known.scores, np.zeros_like(known.targets), known.mask)
    assert estimate_auroc(alone, known.scores.ravel()) is None
    assert estimate_auroc(known, np.zeros(0)) is None
