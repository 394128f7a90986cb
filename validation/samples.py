"""Bootstrap intervals of samples without an order: timings and memory peaks."""

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
    """quantile(a) / quantile(b) of two unpaired samples [n] of timings or memory peaks, all above 0."""
    generator = np.random.default_rng(seed)
    a, b = np.asarray(samples_a, dtype=np.float64), np.asarray(samples_b, dtype=np.float64)
    n = min(len(a), len(b))
    if n < 2 or not (np.isfinite(a).all() and np.isfinite(b).all() and (a > 0).all() and (b > 0).all()):
        return Interval(value=math.nan, low=math.nan, high=math.nan, n=n, confidence=confidence)

    def draws(samples: Floats) -> Floats:
        picked = samples[generator.integers(len(samples), size=(num_resamples, len(samples)))]
        return np.quantile(picked, quantile, axis=1)

    value = float(np.quantile(a, quantile) / np.quantile(b, quantile))
    return percentile_interval(value, draws(a) / draws(b), confidence, n, n)


def quantile_interval(
    samples: Floats, quantile: float, *, confidence: float, num_resamples: int = 1000, seed: int = 0
) -> Interval:
    """A quantile of samples [n] with its bootstrap percentile interval."""
    picked = np.random.default_rng(seed).choice(samples, size=(num_resamples, len(samples)))
    tail = (1 - confidence) / 2
    low, high = np.quantile(np.quantile(picked, quantile, axis=1), [tail, 1 - tail])
    return Interval(
        value=float(np.quantile(samples, quantile)),
        low=float(low),
        high=float(high),
        n=len(samples),
        confidence=confidence,
    )
