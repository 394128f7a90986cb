"""When what is live has to go: the pure decision from a history of live KPIs to a breach, or none.

A window of observation breaches when its own value is on the wrong side of the bound. That one window does so
by chance is what `windows` in a row guard against: a model one standard error on the right side does it three
times in a row with probability 0.16 ** 3 = 0.4%. A window without evidence (NaN, too few requests) neither
breaches nor clears: a model that is not measured is not thereby well.
"""

import math
from collections.abc import Iterable, Sequence

from pydantic import Field

from validation.gates import Stage
from validation.kpis import KINDS, Kpi
from validation.record import Record
from validation.thresholds import Rollback, Sample, bound_of


class RollbackPolicy(Sample):
    """What takes a live model back at one stage, and how much evidence a window needs to count."""

    stage: Stage
    rules: tuple[Rollback, ...] = Field(min_length=1)


class Breach(Record):
    """A rule that was broken often enough, with the windows that broke it, oldest first."""

    rule: Rollback
    windows: tuple[Kpi, ...]
    reason: str


def breached(
    history: Sequence[Kpi], policy: RollbackPolicy, *, checkpoint: str, task_metric: str
) -> Breach | None:
    """The first rule that the live model broke in its last windows, None while it keeps them all. Pure.

    `history` holds what was measured live, one Kpi per rule and window of observation, oldest first; what is
    about another checkpoint or a slice is passed over. `task_metric` is the job's main metric.
    """
    found = (_breach(history, rule, policy, checkpoint, task_metric) for rule in policy.rules)
    return next((breach for breach in found if breach is not None), None)


def _breach(
    history: Sequence[Kpi], rule: Rollback, policy: RollbackPolicy, checkpoint: str, task_metric: str
) -> Breach | None:
    name = rule.name_in(task_metric)
    own = (name, rule.versus, "", checkpoint)
    seen = [kpi for kpi in history if (kpi.name, kpi.versus, kpi.slice, kpi.checkpoint) == own]
    telling = [kpi for kpi in seen if _tells(kpi, rule, policy.needed(name))]
    last = telling[-rule.windows :]
    if len(last) < rule.windows or not all(_breaks(kpi, rule) for kpi in last):
        return None
    return Breach(rule=rule, windows=tuple(last), reason=_reason(name, last, rule))


def _tells(kpi: Kpi, rule: Rollback, needed: int) -> bool:
    reference = kpi.reference_value if rule.relative_margin is not None else 0.0
    is_number = math.isfinite(kpi.value) and reference is not None and math.isfinite(reference)
    return is_number and kpi.n >= needed


def _breaks(kpi: Kpi, rule: Rollback) -> bool:
    bound = bound_of(kpi, rule)
    return kpi.value < bound if KINDS[kpi.name].higher_is_better else kpi.value > bound


def _reason(name: str, windows: Iterable[Kpi], rule: Rollback) -> str:
    values = ", ".join(f"{kpi.value:.3g} (allowed {bound_of(kpi, rule):.3g})" for kpi in windows)
    versus = f" vs {rule.versus}" if rule.versus else ""
    return f"{name}{versus} broke its bound in {rule.windows} windows in a row: {values}"
