"""When what is live has to go: the pure decision from a history of live KPIs to a breach, or none.

A window of observation breaches as a gate fails: when even the optimistic end of its interval is on the
wrong side of the bound. A model on its very bound does so in one window of forty, at 95%; three of them say
that it is not there. A window whose value keeps the bound starts the count anew. Between the two, and without
evidence (NaN, too few requests), it neither breaches nor clears: what cannot be told is not thereby well.
"""

import math
from collections.abc import Iterable, Sequence
from itertools import takewhile

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
    since = takewhile(lambda kpi: not _keeps(kpi, rule), reversed(telling))
    broke = [kpi for kpi in since if _breaks(kpi, rule)]
    if len(broke) < rule.windows:
        return None
    last = broke[: rule.windows][::-1]
    return Breach(rule=rule, windows=tuple(last), reason=_reason(name, last, rule))


def _tells(kpi: Kpi, rule: Rollback, needed: int) -> bool:
    reference = kpi.reference_value if rule.relative_margin is not None else 0.0
    is_number = math.isfinite(kpi.value) and reference is not None and math.isfinite(reference)
    return is_number and kpi.n >= needed


def _keeps(kpi: Kpi, rule: Rollback) -> bool:
    bound = bound_of(kpi, rule)
    return kpi.value >= bound if KINDS[kpi.name].higher_is_better else kpi.value <= bound


def _breaks(kpi: Kpi, rule: Rollback) -> bool:
    """Even at the optimistic end; an end that is not known breaks nothing."""
    bound = bound_of(kpi, rule)
    return kpi.high < bound if KINDS[kpi.name].higher_is_better else kpi.low > bound


def _reason(name: str, windows: Iterable[Kpi], rule: Rollback) -> str:
    values = ", ".join(f"{_estimate(kpi)} (allowed {bound_of(kpi, rule):.3g})" for kpi in windows)
    versus = f" vs {rule.versus}" if rule.versus else ""
    return (
        f"{name}{versus} broke its bound in {rule.windows} windows, with none between that kept it: {values}"
    )


def _estimate(kpi: Kpi) -> str:
    if kpi.low == kpi.high:
        return f"{kpi.value:.3g}"
    return f"{kpi.value:.3g} [{kpi.low:.3g}, {kpi.high:.3g}]"
