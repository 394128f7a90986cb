"""How often the gate errs, measured: the real statistics and the real judge on simulated windows.

Each case puts a model exactly on its bound, where passing it and failing it are both decided by chance alone,
and counts how often either happens. The loss of every step is a window's own share plus noise; windows that
overlap share all but one of the pieces that their loss is a mean of.
"""

import math
from collections.abc import Iterator
from functools import partial

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
_METRIC = METRICS["mae"]


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
    threshold = Threshold(kpi="mae", margin=_MARGIN, versus="dense", slice=where)
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
    ours, theirs = _losses(case, generator)
    evidence = Evidence(
        checkpoint="candidate",
        snapshot="data",
        task_metric="mae",
        references={"dense": "dense"},
        slices=("group",),
    )
    looks: tuple[Look, ...] = ()
    outcome = Outcome.HOLD
    for num_windows, drawn in zip(case.windows, weights, strict=True):
        looks = (*looks, Look(evidence=str(num_windows), num_windows=num_windows))
        asked = evidence.model_copy(update={"looks": looks})
        kpis = list(_kpis(case, rules, asked, ours[:num_windows], theirs[:num_windows], drawn))
        outcome = judge(kpis, rules, asked).outcome
        if outcome is not Outcome.HOLD:
            break
    return outcome


def _losses(case: Case, generator: np.random.Generator) -> tuple[Floats, Floats]:
    """Losses of candidate and reference [W, G]; half of their variance is common to a window's groups."""
    num = case.windows[-1]

    def noise() -> Floats:
        pieces = _draw(case, generator, (num + case.overlap - 1, case.num_groups + 1))
        smooth = np.stack([pieces[shift : shift + num] for shift in range(case.overlap)]).mean(axis=0)
        return (smooth[:, :1] + smooth[:, 1:]) / math.sqrt(2)

    theirs = _LEVEL + noise()
    loss = np.where(np.arange(case.num_groups) < case.num_at_bound, _MARGIN, 0.0)
    return theirs + loss + 0.3 * noise(), theirs


def _draw(case: Case, generator: np.random.Generator, shape: tuple[int, int]) -> Floats:
    if not case.heavy_tails:
        return generator.normal(size=shape)
    return np.clip(generator.standard_t(3, size=shape), -_LEVEL, _LEVEL) / math.sqrt(3)


def _kpis(
    case: Case, rules: StagePolicy, evidence: Evidence, ours: Floats, theirs: Floats, weights: Floats
) -> Iterator[Kpi]:
    is_grouped = case.num_groups > 1
    groups = [slice(index, index + 1) for index in range(case.num_groups)]
    pairs = [(_scored(ours[:, group]), _scored(theirs[:, group])) for group in groups]
    found = intervals_at_once(
        _METRIC,
        pairs,
        weights,
        confidence=rules.confidence_at(evidence.look),
        block_length=block_length_for(len(ours), case.overlap),
        overlap=case.overlap,
    )
    measured = partial(
        kpi, "mae", checkpoint="candidate", snapshot="data", versus="dense", reference_checkpoint="dense"
    )
    for index, (own, joint) in enumerate(found):
        yield measured(own, joint=joint if is_grouped else None, slice=f"group={index}" if is_grouped else "")


def _scored(losses: Floats) -> Scored:
    return Scored(losses, np.zeros_like(losses), np.ones_like(losses))
