"""The power that is promised is the power that is simulated."""

import math
from functools import partial

import pytest

from validation.calibration import Case, error_rates
from validation.kpis import kpi
from validation.power import deviation_of, power, windows_needed
from validation.statistics import Interval

at_95 = partial(power, confidence=0.95)
# validation.calibration: a paired difference of deviation 0.3, where a loss of 0.1 is allowed
simulated = partial(at_95, deviation=0.3, margin=0.1)


@pytest.mark.parametrize("num_windows", [40, 80, 120])
def test_it_is_the_share_of_simulated_gates_that_pass(num_windows: int) -> None:
    case = Case(name="equal", windows=(num_windows,), num_at_bound=0)
    rates = error_rates(case, confidence=0.95, looks=(1.0,), num_resamples=200, num_draws=400)
    assert simulated(num_windows) == pytest.approx(rates.passed, abs=0.07)


def test_by_hand() -> None:
    """Deviation 1, margin 0.1, 1,570 windows: 3.96 standard errors, 1.96 of them the interval's."""
    assert at_95(1570, deviation=1, margin=0.1) == pytest.approx(0.977, abs=0.002)
    assert at_95(1570, deviation=1, margin=0.0, difference=0.1) == pytest.approx(0.977, abs=0.002)
    assert at_95(1570, deviation=1, margin=0.0) == pytest.approx(0.025, abs=0.002)


def test_the_windows_needed_are_the_fewest() -> None:
    def chance(num_windows: int) -> float:
        return simulated(num_windows)

    needed = windows_needed(0.8, chance, fewest=30)
    assert needed is not None
    assert chance(needed) >= 0.8 > chance(needed - 1)
    assert windows_needed(0.8, chance, fewest=5000) == 5000
    hopeless = windows_needed(0.8, lambda n: at_95(n, deviation=1, margin=0.0), fewest=30)
    assert hopeless is None


def test_fewer_windows_than_an_interval_needs_never_pass() -> None:
    assert simulated(8, overlap=4) == 0


def test_the_deviation_of_an_interval_is_what_made_it() -> None:
    half = 1.96 * 0.3 / math.sqrt(10_000)
    found = Interval(value=0, low=-half, high=half, n=10_000, confidence=0.95)
    measured = kpi("mae", found, checkpoint="c", snapshot="s", versus="dense")
    assert deviation_of(measured, overlap=1) == pytest.approx(0.3, rel=0.02)
    assert math.isnan(deviation_of(measured.model_copy(update={"confidence": None}), overlap=1))
