"""Intervals that stay valid however often one looks: for evidence that arrives while decisions are made.

A gambler bets against every candidate mean m; a fair game makes nobody rich, so an m at which the capital
once passes 2/alpha is left out. Source: Waudby-Smith and Ramdas, Estimating means of bounded random variables
by betting (JRSS B, 2024); the bets are their approximate Kelly bets (aGRAPA).
"""

import math
from bisect import bisect_left
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from validation.statistics import Interval

Floats = NDArray[np.float64]

_MOST = 0.9  # of the capital, at most, on one bet: a single surprise must not end the game
_BISECTIONS = 24


def rate_interval(happened: NDArray[np.bool_], confidence: float) -> Interval:
    """How often something happens, from whether it did, in the order of arrival; [0, 1] from nothing.

    Over all lengths of the sequence together the interval misses the true rate with probability
    1 - confidence at most: it may be asked after every value, and stopping when it pleases does no harm.
    """
    return _interval(happened.astype(np.float64), confidence, rate_capital)


def mean_interval(values: Floats, confidence: float) -> Interval:
    """Mean of values in [0, 1] in their order of arrival: a `rate_interval` for any of them."""
    return _interval(values, confidence, mean_capital)


def median_interval(values: Floats, confidence: float) -> Interval:
    """Median of values of any size, in the order of their arrival; as valid as `mean_interval`.

    It ends where the share of values up to there, or from there on, is certainly over one half.
    """
    if not len(values):
        return Interval(value=math.nan, low=-math.inf, high=math.inf, n=0, confidence=confidence)
    ordered, enough = np.unique(values), _enough(confidence)

    def bounds_above(index: int) -> bool:
        return rate_capital((values <= ordered[index]).astype(np.float64), 0.5) >= enough

    def is_not_below(index: int) -> bool:
        return rate_capital((values >= ordered[index]).astype(np.float64), 0.5) < enough

    places = range(len(ordered))
    above = bisect_left(places, True, key=bounds_above)
    below = bisect_left(places, True, key=is_not_below) - 1
    return Interval(
        value=float(np.median(values)),
        low=float(ordered[below]) if below >= 0 else -math.inf,
        high=float(ordered[above]) if above < len(ordered) else math.inf,
        n=len(values),
        confidence=confidence,
    )


def rate_capital(values: Floats, mean: float) -> float:
    """Log of the most that betting on "more than `mean`" ever made of 1; values are 0 or 1.

    A bet sees only what came before it.
    """
    edge = _expected(values, mean) - mean
    return _most_made(values, mean, edge / (mean * (1.0 - mean)))


def mean_capital(values: Floats, mean: float) -> float:
    """As `rate_capital`, for any values in [0, 1]: their spread is learned too."""
    expected = _expected(values, mean)
    variance = (0.25 + _sum_before((values - expected) ** 2)) / np.arange(1, len(values) + 1)
    edge = expected - mean
    return _most_made(values, mean, edge / (variance + edge**2))


def _most_made(values: Floats, mean: float, bets: Floats) -> float:
    bets = np.clip(bets, 0.0, _MOST / mean)
    return float(np.cumsum(np.log1p(bets * (values - mean))).max(initial=0.0))


def _expected(values: Floats, mean: float) -> Floats:
    """What the gambler expects next: the mean so far, with one value of `mean` put before it."""
    return (mean + _sum_before(values)) / np.arange(1, len(values) + 1)


def _interval(values: Floats, confidence: float, capital: Callable[[Floats, float], float]) -> Interval:
    if not len(values):
        return Interval(value=math.nan, low=0.0, high=1.0, n=0, confidence=confidence)
    mean, enough = float(values.mean()), _enough(confidence)
    low = _innermost(mean, lambda m: capital(values, m) >= enough)
    high = 1.0 - _innermost(1.0 - mean, lambda m: capital(1.0 - values, m) >= enough)
    return Interval(value=mean, low=low, high=high, n=len(values), confidence=confidence)


def _sum_before(values: Floats) -> Floats:
    return np.cumsum(values) - values


def _enough(confidence: float) -> float:
    """Log of the capital at which a mean is given up; half of alpha for each side."""
    return math.log(2.0 / (1.0 - confidence))


def _innermost(mean: float, is_out: Callable[[float], bool]) -> float:
    """The candidate nearest below `mean` that is left out; 0 when none is."""
    out, within = 0.0, mean
    for _ in range(_BISECTIONS):
        middle = (out + within) / 2
        if middle > 0.0 and is_out(middle):
            out = middle
        else:
            within = middle
    return out
