"""A KPI's interval against its threshold, as shares of a row's own scale."""

import math
from dataclasses import dataclass

from validation.gates import Check
from validation.kpis import KINDS
from validation.thresholds import bound_of

_MARGIN = 0.12  # of the scale, at either end


@dataclass(frozen=True)
class Bar:
    """Places from 0 (left) to 100 (right); None where there is nothing to draw."""

    value: float | None
    low: float | None
    high: float | None
    bound: float
    allowed_from: float
    allowed_to: float


def bar_of(check: Check) -> Bar | None:
    """None where nothing was measured, or where value and threshold are no numbers to place."""
    kpi = check.measured
    if kpi is None or math.isnan(kpi.value):
        return None
    bound = bound_of(kpi, check.threshold)
    ends = [each for each in (kpi.low, kpi.value, kpi.high, bound) if math.isfinite(each)]
    if kpi.versus is not None:
        ends.append(0.0)  # no difference at all
    first, last = min(ends), max(ends)
    span = (last - first) or max(abs(first), 1e-9)
    start, scale = first - _MARGIN * span, 100 / (span * (1 + 2 * _MARGIN))

    def place(value: float) -> float | None:
        if math.isnan(value):
            return None
        return min(100.0, max(0.0, (value - start) * scale))

    at = place(bound)
    assert at is not None  # a bound is a number
    is_up = KINDS[kpi.name].higher_is_better
    return Bar(
        value=place(kpi.value),
        low=place(kpi.low),
        high=place(kpi.high),
        bound=at,
        allowed_from=at if is_up else 0.0,
        allowed_to=100.0 if is_up else at,
    )
