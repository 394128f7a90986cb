"""Whether a candidate may answer more callers: one verdict per step of the ladder, from shared requests.

PASS takes the candidate one step up, FAIL sets its share to 0, HOLD waits for more requests. The intervals
hold however often a step is judged (validation.betting), so it is judged as requests come in.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated

import numpy as np
from pydantic import Field, field_validator

from validation.betting import mean_interval, median_interval, rate_interval
from validation.gates import Outcome, worst
from validation.record import Record
from validation.statistics import Interval

Share = Annotated[float, Field(ge=0, le=1)]


class CanaryPolicy(Record):
    """The ladder, and what a candidate may cost on it. Every bound is on requests of one step."""

    shares: Annotated[tuple[Share, ...], Field(min_length=2)] = (0.0, 0.05, 0.25, 1.0)
    """Share of the callers that the candidate answers, step by step; at 0 it answers in shadow."""
    min_requests: Annotated[int, Field(ge=1)] = 100
    """Requests of a step that the candidate has to be responsible for before the step can pass."""
    max_error_rate: Annotated[float, Field(gt=0, lt=1)] = 0.01
    """Share of the requests that the incumbent answers and the candidate does not."""
    max_disagreement: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """Mean difference of the answers: of probabilities, or in standard deviations of the target."""
    max_latency_ratio: Annotated[float, Field(gt=0)] = 1.1
    """Median over requests of candidate seconds / incumbent seconds."""
    max_faults_in_a_row: Annotated[int, Field(ge=1)] = 3
    """So many requests in a row that only the candidate failed end the ladder without further statistics."""
    confidence: Annotated[float, Field(ge=0.5, lt=1)] = 0.95

    @field_validator("shares")
    @classmethod
    def _climb(cls, shares: tuple[float, ...]) -> tuple[float, ...]:
        if shares[0] != 0.0 or any(not later > earlier for earlier, later in pairwise(shares)):
            raise ValueError("the ladder starts with 0 (shadow) and each step is larger than the one before")
        return shares


@dataclass(frozen=True)
class Pair:
    """One request that both were asked, and what came of it."""

    assigned: bool
    """The candidate was to answer the caller; otherwise it answered in shadow."""
    fault: str
    """Why the candidate gave no usable answer where the incumbent did; "" where it gave one."""
    disagreement: float | None
    """In [0, 1]; None unless both answered."""
    latency_ratio: float | None


class StepVerdict(Record):
    """What the requests of one step say about the candidate."""

    share: float
    outcome: Outcome
    reasons: tuple[str, ...]
    """One per check, in words and numbers, whatever came of it."""
    num_requests: int
    num_assigned: int
    """Requests that the candidate was responsible for: those of its callers; in shadow all."""
    num_faults: int
    error_rate: Interval
    disagreement: Interval
    latency_ratio: Interval


def judge_step(pairs: Sequence[Pair], share: float, policy: CanaryPolicy) -> StepVerdict:
    """Judge the requests of one step, in the order in which they came. Pure."""
    measured = measure(pairs, policy.confidence)
    assigned = len(pairs) if share == 0 else sum(pair.assigned for pair in pairs)
    checks = [
        _enough(assigned, policy.min_requests),
        _in_a_row(pairs, policy.max_faults_in_a_row),
        *(
            _check(name, measured[name], most)
            for name, most in (
                ("error rate", policy.max_error_rate),
                ("disagreement", policy.max_disagreement),
                ("latency ratio", policy.max_latency_ratio),
            )
        ),
    ]
    return StepVerdict(
        share=share,
        outcome=worst(outcome for outcome, _ in checks),
        reasons=tuple(f"{outcome}: {said}" for outcome, said in checks),
        num_requests=len(pairs),
        num_assigned=assigned,
        num_faults=sum(bool(pair.fault) for pair in pairs),
        error_rate=measured["error rate"],
        disagreement=measured["disagreement"],
        latency_ratio=measured["latency ratio"],
    )


def measure(pairs: Sequence[Pair], confidence: float) -> dict[str, Interval]:
    """Error rate, disagreement and latency ratio with their intervals."""
    disagreements = [pair.disagreement for pair in pairs if pair.disagreement is not None]
    ratios = [pair.latency_ratio for pair in pairs if pair.latency_ratio is not None]
    return {
        "error rate": rate_interval(np.array([bool(pair.fault) for pair in pairs], dtype=bool), confidence),
        "disagreement": mean_interval(np.array(disagreements, dtype=np.float64), confidence),
        "latency ratio": median_interval(np.array(ratios, dtype=np.float64), confidence),
    }


def _enough(num_assigned: int, needed: int) -> tuple[Outcome, str]:
    said = f"{num_assigned} requests were the candidate's, {needed} are needed"
    return (Outcome.PASS if num_assigned >= needed else Outcome.HOLD), said


def _in_a_row(pairs: Sequence[Pair], most: int) -> tuple[Outcome, str]:
    last = pairs[-most:]
    if len(last) == most and all(pair.fault for pair in last):
        return Outcome.FAIL, f"{most} requests in a row that only the candidate failed ({last[-1].fault})"
    return Outcome.PASS, f"no {most} requests in a row that only the candidate failed"


def _check(name: str, measured: Interval, most: float) -> tuple[Outcome, str]:
    numbers = f"{measured.value:.3g} [{measured.low:.3g}, {measured.high:.3g}] of {measured.n}"
    said = f"{name} {numbers}, allowed {most:g}"
    if measured.n == 0 or math.isnan(measured.value):
        return Outcome.HOLD, f"{name} was not measured"
    if measured.high <= most:
        return Outcome.PASS, said
    return (Outcome.FAIL if measured.low > most else Outcome.HOLD), said
