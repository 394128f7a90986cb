"""How many windows the margins of a policy need, given how much a stored evaluation's windows varied."""

from collections.abc import Iterable, Iterator
from functools import partial

from pipelines.evaluation import Evaluation
from validation.errors import InputError
from validation.gates import Check, StagePolicy
from validation.kpis import KINDS
from validation.policy import Policy
from validation.power import deviation_of, power, windows_needed
from validation.record import Record
from validation.thresholds import bound_of


class Plan(Record):
    """One margin: the chance of passing it with the windows there are, and the windows that it needs."""

    what: str
    margin: float
    """How much may be lost, in the KPI's unit."""
    deviation: float
    """Per window, of the paired difference, dependence between windows included."""
    num_windows: int | None
    """Windows that there are; None where numbers were stated."""
    power_now: float | None
    needed: dict[str, int | None]
    """Windows by the chance that is wanted ("0.8"); None: no number of windows is enough."""


def plan_evaluation(
    evaluation: Evaluation,
    policy: Policy,
    *,
    margins: Iterable[float],
    wanted: Iterable[float],
    difference: float,
    look: int,
) -> list[Plan]:
    """A plan for every margin over windows that the gate asked; `margins` in their place if given.

    Raises InputError where it asked none, or measured none.
    """
    rules, margins, wanted = policy.stage(evaluation.stage), list(margins), list(wanted)
    plans = [
        _plan(
            _named(check),
            margin=margin,
            deviation=deviation_of(check.measured, evaluation.overlap),
            num_windows=check.measured.n,
            overlap=evaluation.overlap,
            confidence=rules.confidence_at(look),
            fewest=_fewest(check, rules),
            wanted=wanted,
            difference=difference,
        )
        for check in evaluation.verdict.checks
        if check.measured is not None and _is_margin_over_windows(check)
        for margin in margins or [abs(bound_of(check.measured, check.threshold))]
    ]
    if not plans:
        raise InputError(
            f"the {evaluation.stage} gate measured no margin over windows; state --deviation and --margin"
        )
    return plans


def plan_stated(
    policy: Policy,
    *,
    deviation: float,
    margins: Iterable[float],
    wanted: Iterable[float],
    difference: float,
    overlap: int,
    look: int,
) -> list[Plan]:
    """Plans from numbers that somebody states, without an evaluation."""
    return [
        _plan(
            "stated",
            margin=margin,
            deviation=deviation,
            num_windows=None,
            overlap=overlap,
            confidence=policy.stage("training").confidence_at(look),
            fewest=policy.min_windows,
            wanted=list(wanted),
            difference=difference,
        )
        for margin in margins
    ]


def _plan(
    what: str,
    *,
    margin: float,
    deviation: float,
    num_windows: int | None,
    overlap: int,
    confidence: float,
    fewest: int,
    wanted: list[float],
    difference: float,
) -> Plan:
    chance = partial(
        power,
        deviation=deviation,
        margin=margin,
        difference=difference,
        confidence=confidence,
        overlap=overlap,
    )
    return Plan(
        what=what,
        margin=margin,
        deviation=deviation,
        num_windows=num_windows,
        power_now=chance(num_windows) if num_windows else None,
        needed={f"{each:g}": windows_needed(each, chance, fewest) for each in wanted},
    )


def _is_margin_over_windows(check: Check) -> bool:
    measured = check.measured
    if measured is None or check.threshold.versus is None:
        return False
    return KINDS[measured.name].counted == "windows" and measured.high > measured.low


def _named(check: Check) -> str:
    assert check.measured is not None
    where = f" for {check.measured.slice}" if check.measured.slice else ""
    return f"{check.kpi} vs {check.threshold.versus}{where}"


def _fewest(check: Check, rules: StagePolicy) -> int:
    return check.threshold.min_group if check.slice else rules.min_windows


def sentences(plans: Iterable[Plan], difference: float) -> Iterator[str]:
    """Each plan in words and numbers."""
    truth = f"truly better by {difference:g}" if difference else "truly as good"
    for plan in plans:
        now = (
            f"; with {plan.num_windows} windows it passes with {plan.power_now:.0%}"
            if plan.num_windows
            else ""
        )
        needs = ", ".join(
            f"{num:,} windows for {float(chance):.0%}"
            if num
            else f"no number of windows for {float(chance):.0%}"
            for chance, num in plan.needed.items()
        )
        yield f"{plan.what}: a loss of {plan.margin:.3g} is allowed, {truth}: it takes {needs}{now}"
