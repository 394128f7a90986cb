"""Drift: how far a new batch is from what the model knows, and whether that calls for a new training.

Decides by effect sizes (validation.effects), not p-values: with many rows every difference is significant and
few matter. Six kinds: inputs, outcomes, relations between columns, predictions, what the selector reads,
performance.
"""

import math
from collections.abc import Collection, Iterable, Sequence
from typing import Annotated, Literal

from pydantic import Field

from validation.effects import Effect, Measure, Name
from validation.estimation import Estimate
from validation.record import Record
from validation.statistics import Interval

Decision = Literal["none", "watch", "retrain"]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Subject = tuple[str, str]
SIGNED: frozenset[Measure] = frozenset({"level", "scatter"})
FEWEST_CHECKED = 3  # estimates whose outcomes are known by now, before the next one may ask for a training


class Floors(Record):
    """The smallest difference worth a word, in each measure's own unit (validation.effects)."""

    shift: Positive
    spread: Positive
    missing: Positive
    shares: Positive
    rate: Positive
    level: Positive
    scatter: Positive
    relation: Positive
    lags: Positive
    entropy: Positive
    missed: Positive

    def of(self, measure: Measure) -> float:
        return getattr(self, measure)


class DriftPolicy(Record):
    """When a difference is worth a look, and when it is worth a training.

    A difference has strength 1 at its floor, or at a multiple of what batches of the reference usually differ
    by, where that is more: `usual_multiple` for distances, which are never 0, `signed_multiple` for what lies
    on both sides of 0, `outcome_multiple` for how often outcomes happen: one number, where columns are many.
    It is worth a look when the mean of `debounce` batches in a row is that strong, or one batch is `far`;
    what was said of a column in the last `remember` batches is not said again.
    """

    min_rows: Annotated[int, Field(ge=1)]
    reference: Literal["same_weeks", "training"]
    floors: Floors
    usual_multiple: Positive
    signed_multiple: Positive
    outcome_multiple: Positive
    far: Annotated[Positive, Field(ge=1)]
    debounce: Annotated[int, Field(ge=1)]
    remember: Annotated[int, Field(ge=0)]
    retrain_share_of_features: Annotated[float, Field(gt=0, le=1)]
    performance_relative_margin: Annotated[float, Field(ge=0, lt=1)]


class PerformanceChange(Record):
    """metric(batch) - metric(reference) with its interval, where the batch's labels are known."""

    metric: str
    higher_is_better: bool
    reference_value: float
    change: Interval


class DriftReport(Record):
    """What moved, what follows, and why in words. `effects` are of all kinds but performance."""

    decision: Decision
    reasons: tuple[str, ...]
    num_rows_reference: int
    num_rows_batch: int
    reference: str = "training"
    """What it was compared with: the training part, or the same weeks of the year before."""
    effects: tuple[Effect, ...] = ()
    noted: tuple[Effect, ...] = ()
    """Those that are far, or have lasted; strongest first."""
    performance: PerformanceChange | None = None
    estimate: Estimate | None = None


def detect_drift(
    effects: Iterable[Effect],
    num_rows: tuple[int, int],
    policy: DriftPolicy,
    *,
    earlier: Sequence[DriftReport] = (),
    performance: PerformanceChange | None = None,
    estimate: Estimate | None = None,
    reference: str = "training",
) -> DriftReport:
    """What to make of measured effects between a reference and a batch of `num_rows` rows.

    `earlier` are the reports of the batches before, newest last. Raises ValueError without any effect.
    """
    measured = tuple(effect.model_copy(update={"strength": strength(effect, policy)}) for effect in effects)
    if not measured:
        raise ValueError("nothing was compared")
    blank = DriftReport(
        decision="none",
        reasons=(),
        num_rows_reference=num_rows[0],
        num_rows_batch=num_rows[1],
        reference=reference,
        effects=measured,
        performance=performance,
        estimate=estimate,
    )
    lasting = _lasting([*(report.effects for report in earlier), measured], policy)
    report = blank.model_copy(update={"noted": _noted(measured, lasting, policy)})
    told = {_about(effect) for each in earlier[-policy.remember :] for effect in each.noted}
    decision, reasons = _decide(report, lasting, told if policy.remember else set(), policy)
    return report.model_copy(update={"decision": decision, "reasons": reasons})


def _about(effect: Effect) -> Subject:
    return effect.kind, effect.subject


def strength(effect: Effect, policy: DriftPolicy) -> float:
    """How many times its limit an effect is."""
    return abs(effect.value) / limit(effect, policy)


def limit(effect: Effect, policy: DriftPolicy) -> float:
    """In the effect's own unit."""
    return max(policy.floors.of(effect.measure), _multiple(effect.measure, policy) * effect.usual)


def _multiple(measure: Measure, policy: DriftPolicy) -> float:
    if measure == "rate":
        return policy.outcome_multiple
    return policy.signed_multiple if measure in SIGNED else policy.usual_multiple


def noted(history: Sequence[Sequence[Effect]], policy: DriftPolicy) -> tuple[Effect, ...]:
    """What is worth a look in the last of consecutive batches, strongest first."""
    return _noted(history[-1], _lasting(history, policy), policy)


def _noted(effects: Sequence[Effect], lasting: Collection[Name], policy: DriftPolicy) -> tuple[Effect, ...]:
    found = [(strength(effect, policy), effect) for effect in effects]
    ranked = sorted(found, key=lambda pair: pair[0], reverse=True)
    return tuple(effect for over, effect in ranked if over >= policy.far or effect.name in lasting)


def _lasting(history: Sequence[Sequence[Effect]], policy: DriftPolicy) -> set[Name]:
    """Names of effects whose mean over the last `debounce` batches is at its limit; most of them take part,
    as one batch counts for no more than half of them."""
    recent, most = history[-policy.debounce :], max(1.0, policy.debounce / 2)
    if len(recent) < policy.debounce:
        return set()
    times = [{effect.name: effect.value / limit(effect, policy) for effect in each} for each in recent]
    return {
        name
        for name in set.intersection(*map(set, times))
        if abs(sum(max(-most, min(most, each[name])) for each in times)) >= len(times)
    }


def _decide(
    report: DriftReport, lasting: Collection[Name], told: Collection[Subject], policy: DriftPolicy
) -> tuple[Decision, tuple[str, ...]]:
    """Realised performance outranks everything; what moved matters as far as that is not certain."""
    rows = min(report.num_rows_reference, report.num_rows_batch)
    if rows < policy.min_rows:
        return "watch", (f"{rows} rows are too few to tell drift from chance, {policy.min_rows} needed",)
    moved, why_moved = _decide_by_distance(report, lasting, told, policy)
    if report.performance is None or not math.isfinite(report.performance.change.low):
        guessed, why_guessed = _decide_by_estimate(report.estimate, policy)
        return _worse(guessed, moved), (*why_guessed, *why_moved)
    outcome, reason = _decide_by_performance(report.performance, policy)
    if outcome == "none" and moved == "retrain":
        harmless = "what moved did not hurt the model, so no retraining"
        return _news(report, told), (reason, *why_moved, harmless)
    return _worse(outcome, moved), (reason, *why_moved)


def _worse(one: Decision, other: Decision) -> Decision:
    order: list[Decision] = ["none", "watch", "retrain"]
    return max(one, other, key=order.index)


def _decide_by_performance(performance: PerformanceChange, policy: DriftPolicy) -> tuple[Decision, str]:
    change = performance.change
    allowed = policy.performance_relative_margin * abs(performance.reference_value)
    worst, value, best = (
        (change.low, change.value, change.high)
        if performance.higher_is_better
        else (-change.high, -change.value, -change.low)
    )
    said = (
        f"{performance.metric} changed by {change.value:.3g} [{change.low:.3g}, {change.high:.3g}] "
        f"from {performance.reference_value:.3g}, a loss of {allowed:.3g} is allowed"
    )
    if best < -allowed:
        return "retrain", f"{said}: worse for certain"
    if worst >= -allowed:
        return "none", f"{said}: kept"
    return ("none", f"{said}: probably kept") if value >= -allowed else ("watch", f"{said}: not certain")


def _decide_by_estimate(estimate: Estimate | None, policy: DriftPolicy) -> tuple[Decision, tuple[str, ...]]:
    """An estimate counts beyond its own error; one that was never checked asks for a look at the most."""
    if estimate is None:
        return "none", ()
    allowed = policy.performance_relative_margin * abs(estimate.reference_value)
    is_checked = estimate.num_checked >= FEWEST_CHECKED
    lost = estimate.reference_value - estimate.value
    error = (
        f"off by {estimate.error:.3g} on average, {estimate.num_checked} times" if is_checked else "unchecked"
    )
    said = (
        f"{estimate.metric} is estimated at {estimate.value:.3g} ({error}), "
        f"from {estimate.reference_value:.3g}, a loss of {allowed:.3g} is allowed"
    )
    if lost <= allowed:
        return "none", (said,)
    return ("retrain" if is_checked and lost > allowed + estimate.error else "watch"), (said,)


def _decide_by_distance(
    report: DriftReport, lasting: Collection[Name], told: Collection[Subject], policy: DriftPolicy
) -> tuple[Decision, tuple[str, ...]]:
    """A look at what is news; a training where it is far, has lasted, and is much or the model's own."""
    if not report.noted:
        return "none", ("nothing moved far, or for long",)
    reasons = [_describe(effect) for effect in report.noted]
    far = {
        _about(effect) for effect in report.noted if effect.strength >= policy.far and effect.name in lasting
    }
    inputs = {effect.subject for effect in report.effects if effect.kind == "inputs"}
    moved = {subject for kind, subject in far if kind == "inputs"}
    if inputs and len(moved) / len(inputs) >= policy.retrain_share_of_features:
        reasons.insert(0, f"{len(moved)} of {len(inputs)} features are far from the reference")
        return "retrain", tuple(reasons)
    is_about_model = any(kind in ("predictions", "selection") for kind, _ in far)
    return ("retrain" if is_about_model else _news(report, told)), tuple(reasons)


def _news(report: DriftReport, told: Collection[Subject]) -> Decision:
    """An alarm rings once for a column, however long it stays away."""
    return "watch" if any(_about(effect) not in told for effect in report.noted) else "none"


_WORDS: dict[Measure, str] = {
    "shift": "moved by {value:.2g} standard deviations",
    "spread": "spreads differently (log ratio {value:.2g})",
    "missing": "is missing in {value:.1%} more or fewer rows",
    "shares": "has {value:.1%} of its rows in other values",
    "rate": "happens more or less often (by {value:+.2g} standard deviations)",
    "level": "moved by {value:+.2g} standard deviations more than the other columns say",
    "scatter": "varies more or less by itself (log ratio {value:+.2g})",
    "relation": "relates differently to another column (correlation by {value:.2g})",
    "lags": "lie elsewhere ({value:.1%} of the reads)",
    "entropy": "are spread differently (entropy by {value:.2g})",
    "missed": "is missed by {value:.1%} more",
}


def _describe(effect: Effect) -> str:
    usual = f", usual {effect.usual:.2g}" if effect.usual else ""
    said = _WORDS[effect.measure].format(value=effect.value)
    return f"{effect.subject} {said} ({effect.strength:.1f} x the limit{usual})"
