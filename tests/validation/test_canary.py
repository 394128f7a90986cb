"""A step of the ladder passes on enough good requests, fails on bad ones, and holds in between."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from validation.betting import mean_interval, median_interval, rate_capital, rate_interval
from validation.canary import CanaryPolicy, Pair, judge_step
from validation.gates import Outcome

POLICY = CanaryPolicy()
FINE = Pair(assigned=False, fault="", disagreement=0.02, latency_ratio=0.8)


def pairs(count: int, **changes) -> list[Pair]:
    return [Pair(**({**FINE.__dict__, **changes})) for _ in range(count)]


@pytest.mark.parametrize("share", [0.0, 0.05])
def test_nothing_is_no_evidence(share: float) -> None:
    assert judge_step([], share, POLICY).outcome is Outcome.HOLD


def test_enough_good_requests_pass_and_fewer_hold() -> None:
    assert judge_step(pairs(600), 0.0, POLICY).outcome is Outcome.PASS
    assert judge_step(pairs(300), 0.0, POLICY).outcome is Outcome.HOLD  # 1% errors could still be


def test_at_a_share_only_the_candidates_own_callers_count_as_enough() -> None:
    mixed = pairs(600) + pairs(99, assigned=True)
    assert judge_step(mixed, 0.05, POLICY).outcome is Outcome.HOLD
    assert judge_step(mixed + pairs(1, assigned=True), 0.05, POLICY).outcome is Outcome.PASS


@pytest.mark.parametrize(
    ("changes", "said"),
    [({"disagreement": 0.3}, "disagreement 0.3"), ({"latency_ratio": 1.5}, "latency ratio 1.5")],
)
def test_a_candidate_that_answers_otherwise_or_later_fails(changes: dict[str, float], said: str) -> None:
    verdict = judge_step(pairs(200, **changes), 0.25, POLICY)
    assert verdict.outcome is Outcome.FAIL
    [reason] = [reason for reason in verdict.reasons if reason.startswith("FAIL")]
    assert said in reason


def test_one_fault_is_no_breach_and_three_in_a_row_are() -> None:
    failed = pairs(1, fault="late", disagreement=None, latency_ratio=None)
    assert judge_step(pairs(50) + failed, 0.05, POLICY).outcome is Outcome.HOLD
    assert judge_step(pairs(50) + 3 * failed, 0.05, POLICY).outcome is Outcome.FAIL
    scattered = [pair for _ in range(8) for pair in pairs(20) + failed]
    assert judge_step(scattered, 0.05, POLICY).outcome is Outcome.FAIL  # 5% of them, one at a time


@given(st.lists(st.tuples(st.booleans(), st.booleans()), max_size=60))
def test_few_requests_never_pass_whatever_they_say(seen: list[tuple[bool, bool]]) -> None:
    some = [Pair(assigned, "died" if died else "", None, None) for assigned, died in seen]
    assert judge_step(some, 0.05, POLICY).outcome is not Outcome.PASS


@pytest.mark.parametrize("shares", [(0.05, 1.0), (0.0, 0.5, 0.25), (0.0,), (0.0, 2.0)])
def test_a_ladder_starts_in_shadow_and_climbs(shares: tuple[float, ...]) -> None:
    with pytest.raises(ValidationError):
        CanaryPolicy(shares=shares)


@pytest.mark.parametrize("rate", [0.005, 0.05, 0.5])
def test_looking_after_every_request_misses_the_true_rate_as_rarely_as_promised(rate: float) -> None:
    """Over 1,500 sequences of 400 requests, each looked at 400 times."""
    random, missed, enough = np.random.default_rng(7), 0, np.log(2 / 0.05)
    for _ in range(1500):
        seen = (random.random(400) < rate).astype(float)
        missed += rate_capital(seen, rate) >= enough or rate_capital(1 - seen, 1 - rate) >= enough
    assert missed / 1500 <= 0.05


def test_intervals_hold_the_truth_and_shrink() -> None:
    random = np.random.default_rng(0)
    seen, ratios, differences = (
        random.random(4000) < 0.03,
        random.lognormal(0, 0.3, 4000),
        random.beta(2, 40, 4000),
    )
    for few, many, truth in (
        (rate_interval(seen[:200], 0.95), rate_interval(seen, 0.95), 0.03),
        (median_interval(ratios[:200], 0.95), median_interval(ratios, 0.95), 1.0),
        (mean_interval(differences[:200], 0.95), mean_interval(differences, 0.95), 2 / 42),
    ):
        assert few.low < truth < few.high
        assert many.low < truth < many.high
        assert many.high - many.low < (few.high - few.low) / 2


def test_without_values_an_interval_says_nothing() -> None:
    assert (rate_interval(np.array([], bool), 0.95).low, rate_interval(np.array([], bool), 0.95).high) == (
        0,
        1,
    )
    assert median_interval(np.array([]), 0.95).high == np.inf
