"""How many windows a margin needs: the chance that a gate passes a model that deserves it.

A paired difference over n windows is about normal with standard error deviation / sqrt(n), where `deviation`
is that of one window's difference, dependence between windows included. The gate passes it when the lower end
of its interval keeps the margin; few blocks make that end lie further out (statistics.expanded_tail).
"""

import math
from collections.abc import Callable

from validation.kpis import Kpi
from validation.statistics import MIN_BLOCKS, block_length_for, freedom

_MOST_WINDOWS = 10_000_000


def power(
    num_windows: int,
    *,
    deviation: float,
    margin: float,
    difference: float = 0.0,
    confidence: float,
    overlap: int = 1,
) -> float:
    """Chance of PASS with `num_windows`, of a model truly better by `difference` that may lose `margin`.

    All in the KPI's unit, "better" and "lose" in its direction; `confidence` is two-sided.
    """
    from scipy.special import nctdtr

    error, length = deviation / math.sqrt(num_windows), block_length_for(num_windows, overlap)
    if math.ceil(num_windows / length) < MIN_BLOCKS:
        return 0.0
    if error == 0:
        return float(margin + difference >= 0)
    away = min(
        (margin + difference) / error, 30.0
    )  # beyond, the function loses its digits and the chance is 1
    freely = freedom(num_windows, length, overlap)
    return 1 - float(nctdtr(freely, away, _reach(freely, confidence)))


def windows_needed(wanted: float, chance: Callable[[int], float], fewest: int) -> int | None:
    """Fewest windows, from `fewest` up, with which `chance` reaches `wanted`; None if none do."""
    few, many = fewest - 1, fewest
    while chance(many) < wanted:
        few, many = many, 2 * many
        if many > _MOST_WINDOWS:
            return None
    while many - few > 1:
        middle = (few + many) // 2
        few, many = (few, middle) if chance(middle) >= wanted else (middle, many)
    return many


def deviation_of(kpi: Kpi, overlap: int) -> float:
    """Standard deviation per window behind a measured interval; NaN where there is none."""
    if kpi.confidence is None:
        return math.nan
    freely = freedom(kpi.n, block_length_for(kpi.n, overlap), overlap)
    return (kpi.high - kpi.low) / (2 * _reach(freely, kpi.confidence)) * math.sqrt(kpi.n)


def _reach(freedom: float, confidence: float) -> float:
    """Standard errors between a value and the end of its interval."""
    from scipy.special import stdtrit

    return float(stdtrit(freedom, (1 + confidence) / 2)) if freedom > 0 else math.inf
