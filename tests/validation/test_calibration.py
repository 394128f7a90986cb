"""The gate errs as often as it says: simulated on the very bound, where either decision is chance alone.

`dankai gate simulate --calibration` runs every case; its results are pipelines/benchmarks/results/gates.json.
"""

import pytest

from validation.calibration import CASES, Case, error_rates

NUM_DRAWS = 2000
TOLERANCE = 0.0035 * 3  # three standard errors of a rate of 2.5% over 2,000 draws
OVERLAPPING = Case(name="overlapping windows, many", windows=(120,), overlap=4)
GROUPS_AT_BOUND = Case(name="four groups on their bounds", windows=(60,), num_groups=4, num_at_bound=4)
ONE_HARMED = Case(name="four groups, one on its bound", windows=(60,), overlap=2, num_groups=4)
LOOKS = Case(name="three looks", windows=(60, 120, 180), overlap=4)

RANKED = Case(name="AUROC, separate windows", windows=(40,), metric="auroc")


@pytest.mark.parametrize(
    "case", [OVERLAPPING, GROUPS_AT_BOUND, ONE_HARMED, LOOKS], ids=lambda case: case.name
)
def test_neither_error_is_more_frequent_than_stated(case: Case) -> None:
    """With overlapping windows, many groups, and a gate that is asked again while it holds."""
    rates = error_rates(case, confidence=0.95, looks=(0.8, 0.1, 0.1), num_resamples=200, num_draws=NUM_DRAWS)
    assert rates.stated == pytest.approx(0.025)
    assert rates.passed <= rates.stated + TOLERANCE
    assert rates.failed <= rates.stated + TOLERANCE


def test_neither_error_is_more_frequent_for_the_metric_and_margin_of_the_shipped_gates() -> None:
    """AUROC with a margin relative to a reference that is itself measured."""
    rates = error_rates(RANKED, confidence=0.95, looks=(1.0,), num_resamples=200, num_draws=400)
    allowed = rates.stated + 3 * rates.standard_error
    assert rates.passed <= allowed
    assert rates.failed <= allowed
    assert rates.passed + rates.failed > 0.01  # it decides at times: 5% is stated for both together


def test_without_the_shares_every_look_would_add_its_own_error() -> None:
    """What the test above would see if looks were not paid for."""
    naive = error_rates(LOOKS, confidence=0.95, looks=(1.0, 1.0, 1.0), num_resamples=200, num_draws=500)
    assert naive.passed + naive.failed > 0.08  # 5% is stated for both together


def test_the_gate_is_not_merely_timid() -> None:
    """A model as good as its reference mostly passes where the margin is three standard errors wide."""
    equal = Case(name="as good", windows=(120,), num_at_bound=0)
    rates = error_rates(equal, confidence=0.95, looks=(1.0,), num_resamples=200, num_draws=300)
    assert rates.passed > 0.8
    assert rates.failed == 0


def test_cases_are_named_apart() -> None:
    assert len({case.name for case in CASES}) == len(CASES)
