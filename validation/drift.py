"""Drift: how far a new batch is from the reference data, and whether that calls for a new training.

Decides by effect sizes, not p-values: with many rows every difference is significant and few matter. Arrays
hold one value per row. PSI is the sum over bins of (new share - old share) * ln(new share / old share).
"""

import math
from collections.abc import Collection, Mapping
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from validation.record import Record
from validation.statistics import Interval

Decision = Literal["none", "watch", "retrain"]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Array = NDArray[Any]

NUM_BINS = 10
SMALLEST_SHARE = 1e-4  # an empty bin counts as this much: its PSI stays finite and still is large


class DriftPolicy(Record):
    """When a difference is worth a look, and when it is worth a training."""

    min_rows: Annotated[int, Field(ge=1)]
    watch_psi: Positive
    retrain_psi: Positive
    retrain_share_of_features: Annotated[float, Field(gt=0, le=1)]
    performance_relative_margin: Annotated[float, Field(ge=0, lt=1)]


class FeatureDrift(Record):
    """How one column of the batch differs from the reference.

    psi: over reference quantiles (numeric) or values (categorical), missing being a bin of its own.
    ks: Kolmogorov-Smirnov statistic; mean_shift: in reference standard deviations (both only if numeric).
    total_variation: half the summed difference of the shares of the same bins.
    """

    feature: str
    psi: float
    total_variation: float
    ks: float | None = None
    mean_shift: float | None = None
    missing_share_reference: float
    missing_share_batch: float


class PerformanceChange(Record):
    """metric(batch) - metric(reference) with its interval, where the batch's labels are known."""

    metric: str
    higher_is_better: bool
    reference_value: float
    change: Interval


class DriftReport(Record):
    """What moved, what follows, and why in words."""

    decision: Decision
    reasons: tuple[str, ...]
    num_rows_reference: int
    num_rows_batch: int
    features: tuple[FeatureDrift, ...]
    prediction: FeatureDrift | None = None
    performance: PerformanceChange | None = None


def detect_drift(
    reference: Mapping[str, Array],
    batch: Mapping[str, Array],
    policy: DriftPolicy,
    *,
    categorical: Collection[str] = (),
    predictions: tuple[Array, Array] | None = None,
    performance: PerformanceChange | None = None,
) -> DriftReport:
    """Compare two sets of columns (name -> [rows]), the model's scores on them and how well it did.

    `predictions` are the scores on (reference, batch). Raises ValueError when the batch lacks a column.
    """
    missing = [name for name in reference if name not in batch]
    if missing:
        raise ValueError(f"the batch lacks {', '.join(missing)}")
    if not reference:
        raise ValueError("the reference has no columns")
    features = tuple(
        feature_drift(name, values, batch[name], is_categorical=name in categorical)
        for name, values in reference.items()
    )
    prediction = feature_drift("prediction", *predictions) if predictions else None
    num_rows = len(next(iter(reference.values()))), len(batch[next(iter(reference))])
    decision, reasons = _decide(min(num_rows), features, prediction, performance, policy)
    return DriftReport(
        decision=decision,
        reasons=reasons,
        num_rows_reference=num_rows[0],
        num_rows_batch=num_rows[1],
        features=features,
        prediction=prediction,
        performance=performance,
    )


def feature_drift(name: str, reference: Array, batch: Array, *, is_categorical: bool = False) -> FeatureDrift:
    """Effect sizes between two samples of one column; what is not numeric is categorical."""
    is_numeric = reference.dtype.kind in "fiub" and batch.dtype.kind in "fiub"
    compare = _numeric_drift if is_numeric and not is_categorical else _categorical_drift
    return compare(name, reference, batch)


def _numeric_drift(name: str, reference: Array, batch: Array) -> FeatureDrift:
    from scipy.stats import ks_2samp

    old, new = reference.astype(np.float64), batch.astype(np.float64)
    known_old, known_new = old[np.isfinite(old)], new[np.isfinite(new)]
    edges = _inner_edges(known_old)
    both_known = bool(len(known_old) and len(known_new))
    ks = float(np.asarray(ks_2samp(known_old, known_new, method="asymp"))[0]) if both_known else None
    return FeatureDrift(
        feature=name,
        **_distances(_bin_counts(known_old, edges, len(old)), _bin_counts(known_new, edges, len(new))),
        ks=ks,
        mean_shift=_mean_shift(known_old, known_new) if both_known else None,
        missing_share_reference=_share_missing(len(known_old), len(old)),
        missing_share_batch=_share_missing(len(known_new), len(new)),
    )


def _inner_edges(known: Array) -> Array:
    """Quantiles between the reference's bins, each once: a value that fills several bins makes one bin."""
    return np.unique(np.quantile(known, np.linspace(0, 1, NUM_BINS + 1)[1:-1])) if len(known) else np.zeros(0)


def _bin_counts(known: Array, edges: Array, num_rows: int) -> Array:
    """Counts per bin and, last, of the missing; a value on an edge falls into the bin below."""
    bins = np.bincount(np.searchsorted(edges, known, side="left"), minlength=len(edges) + 1)
    return np.append(bins, num_rows - len(known))


def _mean_shift(known_old: Array, known_new: Array) -> float:
    """In reference standard deviations; infinite when a constant column changed."""
    shift, spread = float(known_new.mean() - known_old.mean()), float(known_old.std())
    return shift / spread if spread else math.copysign(math.inf, shift) if shift else 0.0


def _categorical_drift(name: str, reference: Array, batch: Array) -> FeatureDrift:
    import pandas as pd

    codes, _ = pd.factorize(np.concatenate([reference.astype(object), batch.astype(object)]))
    counted = [np.bincount(part + 1, minlength=codes.max() + 2) for part in np.split(codes, [len(reference)])]
    return FeatureDrift(
        feature=name,
        **_distances(counted[0], counted[1]),
        missing_share_reference=_share_missing(len(reference) - counted[0][0], len(reference)),
        missing_share_batch=_share_missing(len(batch) - counted[1][0], len(batch)),
    )


def _share_missing(num_known: int, num_rows: int) -> float:
    return 1 - num_known / num_rows if num_rows else 0.0


def _distances(old_counts: Array, new_counts: Array) -> dict[str, float]:
    if not old_counts.sum() or not new_counts.sum():
        return {"psi": 0.0, "total_variation": 0.0}  # too few rows to say anything: the decision says so
    old, new = old_counts / old_counts.sum(), new_counts / new_counts.sum()
    floored_old, floored_new = np.maximum(old, SMALLEST_SHARE), np.maximum(new, SMALLEST_SHARE)
    psi = float(((floored_new - floored_old) * np.log(floored_new / floored_old)).sum())
    return {"psi": psi, "total_variation": float(np.abs(new - old).sum() / 2)}


def _decide(
    num_rows: int,
    features: tuple[FeatureDrift, ...],
    prediction: FeatureDrift | None,
    performance: PerformanceChange | None,
    policy: DriftPolicy,
) -> tuple[Decision, tuple[str, ...]]:
    """Realised performance outranks everything; moved inputs matter as far as it is unknown."""
    if num_rows < policy.min_rows:
        return "watch", (f"{num_rows} rows are too few to tell drift from chance, {policy.min_rows} needed",)
    moved, moved_reasons = _decide_by_distance(features, prediction, policy)
    if performance is None:
        return moved, moved_reasons
    outcome, reason = _decide_by_performance(performance, policy)
    if outcome == "none" and moved == "retrain":
        return "watch", (reason, *moved_reasons, "inputs moved without hurting the model, so no retraining")
    order: list[Decision] = ["none", "watch", "retrain"]
    return max(outcome, moved, key=order.index), (reason, *moved_reasons)


def _decide_by_performance(performance: PerformanceChange, policy: DriftPolicy) -> tuple[Decision, str]:
    change = performance.change
    allowed = policy.performance_relative_margin * abs(performance.reference_value)
    low, high = (change.low, change.high) if performance.higher_is_better else (-change.high, -change.low)
    said = (
        f"{performance.metric} changed by {change.value:.3g} [{change.low:.3g}, {change.high:.3g}] "
        f"from {performance.reference_value:.3g}, a loss of {allowed:.3g} is allowed"
    )
    if math.isfinite(high) and high < -allowed:
        return "retrain", f"{said}: worse for certain"
    if math.isfinite(low) and low >= -allowed:
        return "none", f"{said}: kept"
    return "watch", f"{said}: not certain"


def _decide_by_distance(
    features: tuple[FeatureDrift, ...], prediction: FeatureDrift | None, policy: DriftPolicy
) -> tuple[Decision, tuple[str, ...]]:
    ranked = sorted(features, key=lambda feature: feature.psi, reverse=True)
    far = [feature for feature in ranked if feature.psi >= policy.retrain_psi]
    near = [feature for feature in ranked if policy.watch_psi <= feature.psi < policy.retrain_psi]
    reasons = [_describe(feature, "far from") for feature in far]
    reasons += [_describe(feature, "some way from") for feature in near]
    share = len(far) / len(features)
    many = share >= policy.retrain_share_of_features
    if many:
        reasons.insert(0, f"{len(far)} of {len(features)} features are far from the reference")
    if prediction and prediction.psi >= policy.watch_psi:
        distance = "far from" if prediction.psi >= policy.retrain_psi else "some way from"
        reasons.insert(0, _describe(prediction, distance))
    if many or (prediction and prediction.psi >= policy.retrain_psi):
        return "retrain", tuple(reasons)
    return ("watch", tuple(reasons)) if reasons else ("none", ("no feature moved",))


def _describe(drift: FeatureDrift, distance: str) -> str:
    details = [f"PSI {drift.psi:.3g}"]
    if drift.mean_shift is not None:
        details.append(f"mean moved {drift.mean_shift:+.2g} standard deviations")
    if abs(drift.missing_share_batch - drift.missing_share_reference) >= 0.01:
        details.append(f"missing {drift.missing_share_reference:.1%} -> {drift.missing_share_batch:.1%}")
    return f"{drift.feature} is {distance} the reference ({', '.join(details)})"
