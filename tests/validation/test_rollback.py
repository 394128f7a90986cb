"""What is live goes back when it broke a bound often enough in a row, and not before."""

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from validation.kpis import Kpi, kpi
from validation.rollback import RollbackPolicy, breached
from validation.statistics import Interval
from validation.thresholds import Rollback

ERRORS = Rollback(kpi="error_rate", at_most=0.01, windows=3)
METRIC = Rollback(kpi="task_metric", relative_margin=0.1, versus="baseline", windows=2)
POLICY = RollbackPolicy(stage="edge", rules=(ERRORS, METRIC), min_windows=30, min_timings=20, min_processes=1)
LIVE = {"checkpoint": "live", "task_metric": "auroc"}


def errors(share: float, n: int = 100, spread: float = 0.0, **changes: Any) -> Kpi:
    measured = Interval(value=share, low=share - spread, high=share + spread, n=n)
    return kpi("error_rate", measured, checkpoint="live", snapshot="s").model_copy(update=changes)


def metric(loss: float, **changes: Any) -> Kpi:
    """The live model's AUROC is `loss` below the baseline's 0.8; 0.08 is allowed."""
    measured = Interval(value=-loss, low=-loss - 0.01, high=-loss + 0.01, n=30)
    about = {"versus": "baseline", "reference_value": 0.8, "reference_checkpoint": "trees"}
    return kpi("auroc", measured, checkpoint="live", snapshot="s").model_copy(update={**about, **changes})


def test_three_in_a_row_and_not_two() -> None:
    assert breached([errors(0.02), errors(0.02)], POLICY, **LIVE) is None
    breach = breached([errors(0.0), errors(0.02), errors(0.03), errors(0.04)], POLICY, **LIVE)
    assert breach is not None
    assert breach.rule == ERRORS
    assert [each.value for each in breach.windows] == [0.02, 0.03, 0.04]
    assert breach.reason == (
        "error_rate broke its bound in 3 windows, with none between that kept it: "
        "0.02 (allowed 0.01), 0.03 (allowed 0.01), 0.04 (allowed 0.01)"
    )


def test_one_good_window_starts_the_count_anew() -> None:
    assert breached([errors(0.02), errors(0.02), errors(0.0), errors(0.02)], POLICY, **LIVE) is None


def test_the_bound_itself_is_kept() -> None:
    assert breached([errors(0.01)] * 5, POLICY, **LIVE) is None


@pytest.mark.parametrize(
    "silent", [errors(math.nan), errors(0.0, n=5), errors(0.0, checkpoint="old"), errors(0.0, slice="a=b")]
)
def test_a_window_without_evidence_neither_breaches_nor_clears(silent: Kpi) -> None:
    assert breached([silent] * 5, POLICY, **LIVE) is None
    assert breached([errors(0.02), errors(0.02), silent, errors(0.02)], POLICY, **LIVE) is not None


def test_a_margin_is_measured_from_the_reference() -> None:
    assert breached([metric(0.07), metric(0.07)], POLICY, **LIVE) is None
    assert breached([metric(0.085), metric(0.085)], POLICY, **LIVE) is None  # it may be chance
    breach = breached([metric(0.095), metric(0.095)], POLICY, **LIVE)
    assert breach is not None
    assert breach.rule == METRIC
    assert breach.reason.startswith("auroc vs baseline broke its bound in 2 windows, with none")
    for unknown in (None, math.nan):
        assert breached([metric(0.095, reference_value=unknown)] * 2, POLICY, **LIVE) is None


BREAKS, KEEPS, MAY_BE = errors(0.03, spread=0.01), errors(0.01, spread=0.01), errors(0.02, spread=0.015)
UNKNOWN = errors(0.02).model_copy(update={"low": math.nan, "high": math.nan})


def test_what_may_be_chance_takes_nothing_back_and_hides_nothing() -> None:
    assert breached([MAY_BE] * 9, POLICY, **LIVE) is None
    assert breached([UNKNOWN] * 9, POLICY, **LIVE) is None
    breach = breached([BREAKS, BREAKS, MAY_BE, BREAKS, MAY_BE], POLICY, **LIVE)
    assert breach is not None
    assert "0.03 [0.02, 0.04] (allowed 0.01)" in breach.reason


@given(windows=st.lists(st.sampled_from([BREAKS, KEEPS, MAY_BE, errors(math.nan)]), max_size=12))
def test_it_fires_exactly_when_three_broke_the_bound_since_one_last_kept_it(windows: list[Kpi]) -> None:
    count = 0
    for each in windows:
        count = 0 if each is KEEPS else count + (each is BREAKS)
    assert (breached(windows, POLICY, **LIVE) is not None) is (count >= 3)
