"""Intervals of samples without an order: timings and memory peaks.

Timings of one process are treated as independent. A burst of other work on the machine slows several in a
row, so intervals are somewhat too narrow there; several processes, in turns with the other side, spread it.
"""

import math

import numpy as np

from validation.statistics import Floats, Interval, percentile_interval


def ratio_interval(
    samples_a: Floats,
    samples_b: Floats,
    *,
    quantile: float = 0.5,
    confidence: float,
    num_resamples: int,
    seed: int,
) -> Interval:
    """quantile(a) / quantile(b) of two unpaired samples [n] of timings or memory peaks, all above 0.

    The bootstrap never leaves the samples: it is roughly right from `samples_needed` samples of each on.
    """
    generator = np.random.default_rng(seed)
    a, b = np.asarray(samples_a, dtype=np.float64), np.asarray(samples_b, dtype=np.float64)
    n = min(len(a), len(b))
    if n < 1 or not (np.isfinite(a).all() and np.isfinite(b).all() and (a > 0).all() and (b > 0).all()):
        return Interval(value=math.nan, low=math.nan, high=math.nan, n=n, confidence=confidence)

    def draws(samples: Floats) -> Floats:
        picked = samples[generator.integers(len(samples), size=(num_resamples, len(samples)))]
        return np.quantile(picked, quantile, axis=1)

    value = float(np.quantile(a, quantile) / np.quantile(b, quantile))
    if n == 1:
        return Interval(value=value, low=math.nan, high=math.nan, n=n, confidence=confidence)
    widened = value + math.sqrt(n / (n - 1)) * (draws(a) / draws(b) - value)
    return percentile_interval(value, widened, confidence, n - 1, n)


def quantile_interval(samples: Floats, quantile: float, *, confidence: float) -> Interval:
    """A quantile of independent samples [n >= 1], its ends two of the samples, whatever their distribution.

    How many samples lie below the true quantile is binomial (David and Nagaraja, Order Statistics, 3rd ed.,
    section 7.1). An end is infinite where even the outermost sample errs too often (see samples_needed).
    """
    from scipy.special import bdtr, bdtrc

    ordered, n = np.sort(np.asarray(samples, dtype=np.float64)), len(samples)
    tail, places = (1 - confidence) / 2, np.arange(n)
    lower = ordered[bdtr(places, n, quantile) <= tail]  # with this chance a sample lies above the truth
    upper = ordered[bdtrc(places, n, quantile) <= tail]  # and with this below it
    return Interval(
        value=float(np.quantile(ordered, quantile)),
        low=float(lower[-1]) if len(lower) else -math.inf,
        high=float(upper[0]) if len(upper) else math.inf,
        n=n,
        confidence=confidence,
    )


def share_interval(num_hits: int, n: int, *, confidence: float) -> Interval:
    """The share of n >= 1 cases that were hits, limits exact (Clopper and Pearson, Biometrika 26, 1934)."""
    from scipy.special import betaincinv

    tail = (1 - confidence) / 2
    return Interval(
        value=num_hits / n,
        low=float(betaincinv(num_hits, n - num_hits + 1, tail)) if num_hits else 0.0,
        high=float(betaincinv(num_hits + 1, n - num_hits, 1 - tail)) if num_hits < n else 1.0,
        n=n,
        confidence=confidence,
    )


def samples_needed(quantile: float, confidence: float) -> int:
    """How many samples a quantile's interval needs for both its ends: 368 for the 99th percentile at 95%."""
    tail = (1 - confidence) / 2
    return math.ceil(math.log(tail) / math.log(max(quantile, 1 - quantile)))
