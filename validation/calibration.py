"""How often the gate errs, measured: the real statistics and the real judge on simulated windows.

Each case puts a model exactly on its bound, where passing it and failing it are both decided by chance alone,
and counts how often either happens. Losses (MAE, an absolute margin): that of every step is a window's own
share plus noise; windows that overlap share all but one of the pieces that their loss is a mean of. Scores
(AUROC, a relative margin, as the shipped gates ask): outcomes come more often in some stretches of time than
in others, scores are normal given the outcome, and windows that overlap score the same steps again.
"""

import math
from collections.abc import Iterator
from functools import partial
from typing import Any, Literal

import numpy as np
from pydantic import Field

from validation.evidence import Evidence, Look
from validation.gates import Outcome, StagePolicy, judge
from validation.kpis import Kpi, kpi
from validation.record import Record
from validation.simultaneous import intervals_at_once
from validation.statistics import METRICS, Floats, Scored, block_length_for, resample_weights
from validation.thresholds import Threshold

_MARGIN = 0.1
_LEVEL = 10.0  # of the reference's loss: far from 0, so that losses are all positive
_RELATIVE_MARGIN = 0.02  # of AUROC, as the shipped gates allow
_AUROC = 0.8  # the reference's, in truth
_STEPS_PER_STRIDE = 6  # of a window whose outcomes are ranked; it is `overlap` strides long
_RESCORED = 0.3  # spread of what differs when a step is scored again from another window

_Pair = tuple[Scored, Scored]  # candidate and reference, on the same windows


class Case(Record):
    """One situation: what is asked, on how many windows at each look, and where the truth lies."""

    name: str
    windows: tuple[int, ...] = Field(min_length=1)
    """How many windows there are at each look; each look holds those of the look before."""
    overlap: int = 1
    """Consecutive windows that share a step."""
    num_groups: int = 1
    """Groups asked about by a worst-group check; 1: one check over all steps."""
    num_at_bound: int = 1
    """Groups that lose exactly what is allowed; the others lose nothing."""
    heavy_tails: bool = False
    """Losses follow Student's t with 3 degrees of freedom instead of the normal law."""
    metric: Literal["mae", "auroc"] = "mae"
    """MAE is asked with an absolute margin, AUROC with one relative to the reference's."""


class Rates(Record):
    """What the gate said over many draws of one case."""

    case: Case
    num_draws: int
    passed: float
    failed: float
    stated: float
    """What either may be at most, on the bound, over all looks of the policy: (1 - confidence) / 2."""

    @property
    def standard_error(self) -> float:
        """Of either rate, were it as stated."""
        return math.sqrt(self.stated * (1 - self.stated) / self.num_draws)


CASES = (
    Case(name="one check, separate windows", windows=(60,)),
    Case(name="one check, overlapping windows", windows=(60,), overlap=4),
    Case(name="one check, overlapping windows, many", windows=(240,), overlap=4),
    Case(name="one check, heavy tails", windows=(60,), heavy_tails=True),
    Case(name="worst of 12 groups, one on its bound", windows=(60,), overlap=2, num_groups=12),
    Case(name="worst of 12 groups, all on their bounds", windows=(60,), num_groups=12, num_at_bound=12),
    Case(name="three looks, overlapping windows", windows=(60, 120, 180), overlap=4),
    Case(
        name="three looks at 6 groups, all on their bounds",
        windows=(60, 120, 180),
        num_groups=6,
        num_at_bound=6,
    ),
    Case(name="as good as the reference", windows=(60,), overlap=2, num_at_bound=0),
    Case(name="AUROC, separate windows", windows=(60,), metric="auroc"),
    Case(name="AUROC, overlapping windows", windows=(60,), overlap=4, metric="auroc"),
    Case(
        name="AUROC, worst of 4 groups, all on their bounds",
        windows=(60,),
        num_groups=4,
        num_at_bound=4,
        metric="auroc",
    ),
)


def error_rates(
    case: Case,
    *,
    confidence: float,
    looks: tuple[float, ...],
    num_resamples: int,
    num_draws: int,
    seed: int = 0,
) -> Rates:
    """Judge `num_draws` independent simulations of a case, each look by look until the gate decides."""
    rules = _rules(case, confidence, looks)
    weights = [_weights(rules, look, num, case, num_resamples) for look, num in enumerate(case.windows, 1)]
    generator = np.random.default_rng(seed)
    outcomes = [_decide(case, rules, weights, generator) for _ in range(num_draws)]
    return Rates(
        case=case,
        num_draws=num_draws,
        passed=outcomes.count(Outcome.PASS) / num_draws,
        failed=outcomes.count(Outcome.FAIL) / num_draws,
        stated=(1 - confidence) / 2,
    )


def _rules(case: Case, confidence: float, looks: tuple[float, ...]) -> StagePolicy:
    where = "worst:group" if case.num_groups > 1 else ""
    margin: dict[str, Any] = (
        {"margin": _MARGIN} if case.metric == "mae" else {"relative_margin": _RELATIVE_MARGIN}
    )
    threshold = Threshold(kpi=case.metric, versus="dense", slice=where, **margin)
    return StagePolicy(
        stage="training",
        thresholds=(threshold,),
        confidence=confidence,
        looks=looks,
        min_windows=30,
        min_timings=1,
        min_processes=1,
    )


def _weights(rules: StagePolicy, look: int, num_windows: int, case: Case, num_resamples: int) -> Floats:
    """Resamples of one look: as many beyond either end of its interval as at the policy's confidence."""
    more = (1 - rules.confidence) / (1 - rules.confidence_at(look))
    length = block_length_for(num_windows, case.overlap)
    drawn = resample_weights(num_windows, length, math.ceil(num_resamples * more), seed=look)
    return drawn.astype(np.float64)  # every simulated mean would convert them again


def _decide(case: Case, rules: StagePolicy, weights: list[Floats], generator: np.random.Generator) -> Outcome:
    draw = _losses if case.metric == "mae" else _ranked_scores
    pairs = draw(case, generator)
    evidence = Evidence(
        checkpoint="candidate",
        snapshot="data",
        task_metric=case.metric,
        references={"dense": "dense"},
        slices=("group",),
    )
    looks: tuple[Look, ...] = ()
    outcome = Outcome.HOLD
    for num_windows, drawn in zip(case.windows, weights, strict=True):
        looks = (*looks, Look(evidence=str(num_windows), num_windows=num_windows))
        asked = evidence.model_copy(update={"looks": looks})
        kpis = list(_kpis(case, rules, asked, pairs, drawn))
        outcome = judge(kpis, rules, asked).outcome
        if outcome is not Outcome.HOLD:
            break
    return outcome


def _losses(case: Case, generator: np.random.Generator) -> list[_Pair]:
    """Losses of every group, [W, 1] each; half of their variance is common to a window's groups."""
    num = case.windows[-1]

    def noise() -> Floats:
        pieces = _draw(case, generator, (num + case.overlap - 1, case.num_groups + 1))
        smooth = np.stack([pieces[shift : shift + num] for shift in range(case.overlap)]).mean(axis=0)
        return (smooth[:, :1] + smooth[:, 1:]) / math.sqrt(2)

    theirs = _LEVEL + noise()
    loss = np.where(np.arange(case.num_groups) < case.num_at_bound, _MARGIN, 0.0)
    ours = theirs + loss + 0.3 * noise()
    columns = [slice(group, group + 1) for group in range(case.num_groups)]
    return [(_scored(ours[:, column]), _scored(theirs[:, column])) for column in columns]


def _ranked_scores(case: Case, generator: np.random.Generator) -> list[_Pair]:
    """Scores of a binary outcome for every group, [W, S] each.

    A score is N(0, 1) where the outcome is 0 and N(d, 1) where it is 1: an AUROC of Phi(d / sqrt 2).
    """
    from scipy.special import ndtri

    worse = _AUROC * (1 - _RELATIVE_MARGIN)
    reference = math.sqrt(2) * float(ndtri(_AUROC))
    on_bound = math.sqrt(2) * float(ndtri(worse))
    num_strides = case.windows[-1] + case.overlap - 1
    shape = (num_strides, _STEPS_PER_STRIDE)

    def over_windows(steps: Floats) -> Floats:
        """[strides, steps] as the windows see them, [W, S]: each begins one stride after the one before."""
        return np.hstack([steps[shift : shift + case.windows[-1]] for shift in range(case.overlap)])

    def pair(is_at_bound: bool) -> _Pair:
        often = generator.beta(3, 6, size=(num_strides, 1))
        outcomes = (generator.random(shape) < often).astype(np.float64)
        shared, own, other = generator.normal(size=(3, *shape))
        targets = over_windows(outcomes)

        def scores(distance: float, alone: Floats) -> Floats:
            base = over_windows(math.sqrt(0.8) * shared + math.sqrt(0.2) * alone)
            again = generator.normal(size=base.shape)
            noise = (base + _RESCORED * again) / math.hypot(1, _RESCORED)
            return noise + distance * targets

        ours = scores(on_bound if is_at_bound else reference, own)
        return _scored(ours, targets), _scored(scores(reference, other), targets)

    return [pair(group < case.num_at_bound) for group in range(case.num_groups)]


def _draw(case: Case, generator: np.random.Generator, shape: tuple[int, int]) -> Floats:
    if not case.heavy_tails:
        return generator.normal(size=shape)
    return np.clip(generator.standard_t(3, size=shape), -_LEVEL, _LEVEL) / math.sqrt(3)


def _kpis(
    case: Case, rules: StagePolicy, evidence: Evidence, pairs: list[_Pair], weights: Floats
) -> Iterator[Kpi]:
    is_grouped, num_windows = case.num_groups > 1, weights.shape[1]
    seen = [(_first(ours, num_windows), _first(theirs, num_windows)) for ours, theirs in pairs]
    found = intervals_at_once(
        METRICS[case.metric],
        seen,
        weights,
        confidence=rules.confidence_at(evidence.look),
        block_length=block_length_for(num_windows, case.overlap),
        overlap=case.overlap,
    )
    measured = partial(
        kpi,
        case.metric,
        checkpoint="candidate",
        snapshot="data",
        versus="dense",
        reference_checkpoint="dense",
    )
    for index, ((own, joint), (_, reference)) in enumerate(zip(found, seen, strict=True)):
        yield measured(
            own,
            joint=joint if is_grouped else None,
            slice=f"group={index}" if is_grouped else "",
            reference_value=METRICS[case.metric](reference),
        )


def _scored(scores: Floats, targets: Floats | None = None) -> Scored:
    """Every step counts; losses are scores of a target that is 0."""
    return Scored(scores, np.zeros_like(scores) if targets is None else targets, np.ones_like(scores))


def _first(scored: Scored, num_windows: int) -> Scored:
    return Scored(scored.scores[:num_windows], scored.targets[:num_windows], scored.mask[:num_windows])
