"""Weighted metrics and block-bootstrap intervals over windows.

Shapes: W windows in time order, S scored steps per window, O outputs, R resamples, N scored elements.
A bootstrap resample is a vector of W integer weights (how often each window was drawn), so whatever does not
depend on them is computed once for all resamples (rank metrics: validation/ranking.py).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial

import numpy as np
from numpy.typing import NDArray

from validation.ranking import Ranking, Summary, area_under_roc, mean_precision
from validation.record import Record

Floats = NDArray[np.float64]
Weights = NDArray[np.int64] | NDArray[np.float64]  # [R, W] whole numbers
Statistic = Callable[[Weights], Floats]  # [R, W] -> [R]; NaN where a resample leaves the metric undefined

MIN_BLOCKS = 5  # with fewer independent blocks an interval is far too narrow: better none than a false one
MAX_SKIPPED_SHARE = 0.1  # more undefined resamples than this, and the rest are a biased sample


class Interval(Record):
    """A point estimate with its confidence interval; NaN where the data cannot carry one.

    `confidence` is two-sided: the truth lies below `low`, and above `high`, with probability
    (1 - confidence) / 2 each. None where the ends are no confidence limits but exact, or the range seen.
    """

    value: float
    low: float
    high: float
    n: int  # windows (or timings of the smaller sample) behind the estimate
    num_skipped: int = 0  # resamples left out because the metric was undefined on them
    confidence: float | None = None


@dataclass(frozen=True)
class Scored:
    """What one subject said and what came true: three arrays [W, S] or [W, S, O], windows in time order.

    `mask` is 1 where the step counts. Event and detect scores are probabilities or any increasing score
    (log_loss needs probabilities); forecast scores are values in the target's unit.
    """

    scores: Floats
    targets: Floats
    mask: Floats

    def __post_init__(self) -> None:
        shapes = {self.scores.shape, self.targets.shape, self.mask.shape}
        if len(shapes) != 1 or self.scores.ndim not in (2, 3):
            raise ValueError(
                f"scores, targets, mask need one shape [W, S] or [W, S, O], not {sorted(shapes)}"
            )

    @property
    def num_windows(self) -> int:
        return self.scores.shape[0]

    @property
    def num_scored_windows(self) -> int:
        """Windows with at least one step that counts."""
        return int((self.mask > 0).reshape(self.num_windows, -1).any(axis=1).sum())

    def restrict(self, keep: NDArray[np.bool_]) -> "Scored":
        """A slice: the same windows, only the steps where `keep` (broadcastable to mask's shape) holds."""
        return Scored(self.scores, self.targets, self.mask * keep)


@dataclass(frozen=True)
class Metric:
    """A metric, its direction, and how to prepare it for many weight vectors over the same windows."""

    name: str
    higher_is_better: bool
    prepare: Callable[[Scored], Statistic]
    is_ranking: bool = False
    """Positives are ranked against negatives, so windows that hold only one of the two tell little."""

    def __call__(self, scored: Scored) -> float:
        """The metric on every window once; NaN when undefined (nothing scored, one class, NaN)."""
        return float(self.prepare(scored)(np.ones((1, scored.num_windows), dtype=np.int64))[0])


@dataclass(frozen=True)
class _Elements:
    """The scored elements [N], flat, with the window each came from."""

    scores: Floats
    targets: Floats
    window: NDArray[np.int64]


def _elements(scored: Scored) -> _Elements:
    counts = scored.mask > 0
    return _Elements(
        scored.scores[counts].astype(np.float64),
        scored.targets[counts].astype(np.float64),
        np.nonzero(counts)[0],
    )


def _undefined(weights: Weights) -> Floats:
    return np.full(len(weights), math.nan)


def _mean_of(loss: Callable[[Floats, Floats], Floats]) -> Callable[[Scored], Statistic]:
    """Statistic of a metric that is a mean of per-element losses: two sums per window are all it needs."""

    def prepare(scored: Scored) -> Statistic:
        elements = _elements(scored)
        losses = loss(elements.scores, elements.targets)
        totals = np.bincount(elements.window, losses, minlength=scored.num_windows)
        counts = np.bincount(elements.window, minlength=scored.num_windows)

        def statistic(weights: Weights) -> Floats:
            with np.errstate(invalid="ignore", divide="ignore"):
                return (weights @ totals) / (weights @ counts)

        return statistic

    return prepare


def _squared_error(scores: Floats, targets: Floats) -> Floats:
    return (scores - targets) ** 2


def _absolute_error(scores: Floats, targets: Floats) -> Floats:
    return np.abs(scores - targets)


def _cross_entropy(scores: Floats, targets: Floats) -> Floats:
    """Nats; a score outside [0, 1] is no probability and makes the metric undefined."""
    valid = np.where((scores >= 0) & (scores <= 1), scores, math.nan)
    tiny = np.finfo(np.float64).eps
    clipped = np.clip(valid, tiny, 1 - tiny)
    return -(targets * np.log(clipped) + (1 - targets) * np.log(1 - clipped))


def _ranked(summary: Summary) -> Callable[[Scored], Statistic]:
    """Statistic of a rank metric."""

    def prepare(scored: Scored) -> Statistic:
        elements = _elements(scored)
        is_binary = np.isin(elements.targets, (0.0, 1.0)).all()
        if not elements.targets.any() or not is_binary or not np.isfinite(elements.scores).all():
            return _undefined
        ranking = Ranking.of(elements.scores, elements.targets > 0, elements.window, scored.num_windows)
        return partial(ranking.summarise, summary)

    return prepare


METRICS = {
    metric.name: metric
    for metric in (
        Metric("auroc", True, _ranked(area_under_roc), is_ranking=True),
        Metric("average_precision", True, _ranked(mean_precision), is_ranking=True),
        Metric("log_loss", False, _mean_of(_cross_entropy)),
        Metric("mse", False, _mean_of(_squared_error)),
        Metric("mae", False, _mean_of(_absolute_error)),
    )
}


def num_telling_windows(metric: Metric, scored: Scored) -> int:
    """Windows that inform the metric: for a ranking, the fewer of those with a positive and with a negative.

    Fifty windows of a group that once had an event say nothing of how well its events are found.
    """
    if not metric.is_ranking:
        return scored.num_scored_windows
    return min(
        scored.restrict(scored.targets > 0).num_scored_windows,
        scored.restrict(scored.targets <= 0).num_scored_windows,
    )


def block_length_for(num_windows: int, overlap: int = 1) -> int:
    """Windows per bootstrap block: the cube-root rule, and at least as many as are scored on a common step.

    `overlap` is how many consecutive windows score the same step: ceil(scored steps / stride).
    """
    return max(1, overlap, math.ceil(num_windows ** (1 / 3)))


@lru_cache(maxsize=4)
def resample_weights(num_windows: int, block_length: int, num_resamples: int, seed: int) -> Weights:
    """Draw circular blocks of neighbouring windows: [R, W] counts, each row summing to W. Read-only."""
    generator = np.random.default_rng(seed)
    num_blocks = math.ceil(num_windows / block_length)
    starts = generator.integers(num_windows, size=(num_resamples, num_blocks, 1))
    drawn = (starts + np.arange(block_length)) % num_windows
    drawn = drawn.reshape(num_resamples, -1)[:, :num_windows]
    cells = drawn + num_windows * np.arange(num_resamples)[:, None]
    counts = np.bincount(cells.ravel(), minlength=num_resamples * num_windows)
    counts.flags.writeable = False
    return counts.reshape(num_resamples, num_windows)


def interval(
    metric: Metric,
    subject: Scored,
    *,
    confidence: float,
    num_resamples: int,
    block_length: int,
    seed: int,
    overlap: int = 1,
) -> Interval:
    """The metric of one subject with its block-bootstrap percentile interval."""
    statistic = metric.prepare(subject)
    return _bootstrap(statistic, subject, confidence, num_resamples, block_length, seed, overlap)


def paired_interval(
    metric: Metric,
    candidate: Scored,
    reference: Scored,
    *,
    confidence: float,
    num_resamples: int,
    block_length: int,
    seed: int,
    overlap: int = 1,
) -> Interval:
    """metric(candidate) - metric(reference), both re-scored on the same resampled windows.

    Raises ValueError when the two were not scored on the same steps of the same windows.
    """
    require_same_windows(candidate, reference)
    of_candidate, of_reference = metric.prepare(candidate), metric.prepare(reference)

    def difference(weights: Weights) -> Floats:
        return of_candidate(weights) - of_reference(weights)

    return _bootstrap(difference, candidate, confidence, num_resamples, block_length, seed, overlap)


def unpaired_interval(
    metric: Metric,
    later: Scored,
    earlier: Scored,
    *,
    confidence: float,
    num_resamples: int,
    block_length: int,
    seed: int,
    overlap: int = 1,
) -> Interval:
    """metric(later) - metric(earlier) of two separate spans of windows, each resampled on its own."""
    spans = [
        _draws(metric.prepare(span), span, num_resamples, block_length, seed + index)
        for index, span in enumerate((later, earlier))
    ]
    value, draws = metric(later) - metric(earlier), spans[0] - spans[1]
    return interval_of(value, draws, min(later, earlier, key=_num_scored), confidence, block_length, overlap)


def _num_scored(scored: Scored) -> int:
    return scored.num_scored_windows


def same_windows(candidate: Scored, reference: Scored) -> bool:
    """Whether both were scored on the same steps of the same windows."""
    counts = candidate.mask > 0
    same_steps = np.array_equal(counts, reference.mask > 0)
    return same_steps and np.array_equal(candidate.targets[counts], reference.targets[counts])


def require_same_windows(candidate: Scored, reference: Scored) -> None:
    """Raises ValueError where a paired difference would mean nothing."""
    if not same_windows(candidate, reference):
        raise ValueError("candidate and reference were scored on different windows, steps or targets")


def _bootstrap(
    statistic: Statistic,
    scored: Scored,
    confidence: float,
    num_resamples: int,
    block_length: int,
    seed: int,
    overlap: int,
) -> Interval:
    value = float(statistic(np.ones((1, scored.num_windows), dtype=np.int64))[0])
    draws = _draws(statistic, scored, num_resamples, block_length, seed)
    return interval_of(value, draws, scored, confidence, block_length, overlap)


def _draws(statistic: Statistic, scored: Scored, num_resamples: int, block_length: int, seed: int) -> Floats:
    """The statistic on every resample [R]; none where there are too few blocks to resample."""
    if math.ceil(scored.num_scored_windows / block_length) < MIN_BLOCKS:
        return np.full(num_resamples, math.nan)
    return statistic(resample_weights(scored.num_windows, block_length, num_resamples, seed))


def interval_of(
    value: float, draws: Floats, scored: Scored, confidence: float, block_length: int, overlap: int = 1
) -> Interval:
    """Percentile interval of draws [R] of a metric whose value on the windows themselves is `value`."""
    n = scored.num_scored_windows
    num_blocks = math.ceil(n / block_length)
    if not math.isfinite(value) or num_blocks < MIN_BLOCKS:
        return Interval(value=value, low=math.nan, high=math.nan, n=n, confidence=confidence)
    widened = value + widening(n, block_length, overlap) * (draws - value)
    return percentile_interval(value, widened, confidence, freedom(n, block_length, overlap), n)


@lru_cache(maxsize=1024)
def widening(num_windows: int, block_length: int, overlap: int) -> float:
    """By how much blocks of `block_length` windows, `overlap` of which share a step, spread too little.

    Resampled blocks lose the dependence across their seams: of the covariance at lag k they keep the share
    1 - k / block_length (Kuensch, Annals of Statistics 17, 1989). Windows that share steps are dependent in a
    way that is known: 1 - k / overlap, as of means over `overlap` pieces. And blocks spread about the mean of
    the sample, not about the truth: that takes block_length / num_windows of the whole. So the loss is known.
    """
    lags = np.arange(1, overlap)
    covariance = (1 - lags / overlap) * (1 - lags / num_windows)
    whole = 1 + 2 * float(covariance.sum())
    kept = 1 + 2 * float(covariance @ np.maximum(0.0, 1 - lags / block_length))
    return math.sqrt(whole / (kept - whole * block_length / num_windows))


@lru_cache(maxsize=1024)
def freedom(num_windows: int, block_length: int, overlap: int) -> float:
    """Degrees of freedom of the spread of resampled blocks: by their number, or fewer where windows overlap.

    Satterthwaite's (Biometrics Bulletin 2, 1946), for the dependence that `widening` supposes.
    """
    if num_windows <= block_length:
        return 0.0
    seams, shared = _triangle(block_length), _triangle(overlap)
    both, whole = np.convolve(seams, shared), block_length * overlap
    mean = num_windows * float(both.max()) - whole
    variance = num_windows * float(both @ both) - whole**2
    return min(math.ceil(num_windows / block_length) - 1, mean**2 / variance)


def _triangle(width: int) -> Floats:
    """1 - |k| / width for every lag k where it is not 0."""
    return 1 - np.abs(np.arange(1 - width, width)) / width


@lru_cache(maxsize=1024)
def expanded_tail(confidence: float, freedom: float) -> float:
    """Share of draws to cut off at each end: a little less than (1 - confidence) / 2.

    A plain percentile interval of few independent pieces is too narrow; this is Hesterberg's expanded one
    (What Teachers Should Know About the Bootstrap, 2015), but for the factor that `widening` holds.
    """
    from scipy.special import ndtr, stdtrit

    return float(ndtr(stdtrit(freedom, (1 - confidence) / 2)))


def percentile_interval(value: float, draws: Floats, confidence: float, freedom: float, n: int) -> Interval:
    """Interval of draws [R] whose spread has so many degrees of freedom; NaN if too many are undefined."""
    defined = draws[np.isfinite(draws)]
    num_skipped = len(draws) - len(defined)
    low, high = math.nan, math.nan
    if len(defined) and num_skipped <= MAX_SKIPPED_SHARE * len(draws):
        tail = expanded_tail(confidence, freedom)
        low, high = map(float, quantiles(defined, [tail, 1 - tail]))
    return Interval(value=value, low=low, high=high, n=n, num_skipped=num_skipped, confidence=confidence)


def quantiles(draws: Floats, shares: list[float]) -> Floats:
    """Ends beyond which a new draw lies with just these chances; numpy's own choice lies too far inside."""
    return np.quantile(draws, shares, method="weibull")
