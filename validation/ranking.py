"""Rank metrics under many weightings of the windows at once.

Shapes: N scored elements, W windows, R resamples, G distinct scores of positives. All that a rank metric
needs is how many elements of each window lie at or above each of those G scores: elements are sorted once,
and all resamples together cost a few products of sparse matrices and cumulative sums.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

_RESAMPLES_AT_ONCE = 128  # enough for fast products, few enough to stay in the processor's cache


@dataclass(frozen=True)
class Ranking:
    """Counts [G, W] in each window at each distinct score of a positive, the highest first.

    negatives: scored this high or higher, but lower than the score before; tied: those with this very score;
    all_negatives: [W], those below every positive too.
    """

    positives: "csr_matrix"
    negatives: "csr_matrix"
    tied: "csr_matrix"
    all_negatives: Floats

    @classmethod
    def of(
        cls, scores: Floats, is_positive: NDArray[np.bool_], window: Integers, num_windows: int
    ) -> "Ranking":
        """The ranking of elements [N] that came from `window` [N]."""
        levels, level = np.unique(-scores[is_positive], return_inverse=True)
        others, window_of_others = -scores[~is_positive], window[~is_positive]
        reached = np.searchsorted(levels, others)  # the first level that is not above them
        is_above_some = reached < len(levels)
        is_tied = is_above_some & (levels[np.minimum(reached, len(levels) - 1)] == others)

        def count(levels_of: Integers, windows_of: Integers) -> "csr_matrix":
            from scipy.sparse import csr_matrix

            return csr_matrix((np.ones(len(levels_of)), (levels_of, windows_of)), (len(levels), num_windows))

        return cls(
            positives=count(level, window[is_positive]),
            negatives=count(reached[is_above_some], window_of_others[is_above_some]),
            tied=count(reached[is_tied], window_of_others[is_tied]),
            all_negatives=np.bincount(window_of_others, minlength=num_windows).astype(np.float64),
        )

    def summarise(self, summary: "Summary", weights: NDArray) -> Floats:
        """A metric [R] under weights [R, W]; NaN where they leave it undefined."""
        starts = range(0, len(weights), _RESAMPLES_AT_ONCE)
        some = (weights[start : start + _RESAMPLES_AT_ONCE] for start in starts)
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.concatenate([summary(self._weighted(each)) for each in some])

    def _weighted(self, weights: NDArray) -> "Weighted":
        columns = np.ascontiguousarray(weights.T, dtype=np.float64)
        return Weighted(
            positives=self.positives @ columns,
            negatives=self.negatives @ columns,
            tied=self.tied @ columns,
            all_negatives=self.all_negatives @ columns,
        )


@dataclass(frozen=True)
class Weighted:
    """A ranking under R weightings: sums of weights [G, R], and of all negatives [R]."""

    positives: Floats
    negatives: Floats
    tied: Floats
    all_negatives: Floats


Summary = Callable[[Weighted], Floats]


def area_under_roc(ranked: Weighted) -> Floats:
    """Share of (positive, negative) pairs ranked rightly, ties counting half."""
    ranked_above = np.cumsum(ranked.negatives, axis=0) - 0.5 * ranked.tied
    wrong = np.einsum("gr,gr->r", ranked.positives, ranked_above)
    return 1 - wrong / (ranked.positives.sum(axis=0) * ranked.all_negatives)


def mean_precision(ranked: Weighted) -> Floats:
    """Sum over thresholds of precision times the recall gained there (scikit-learn's definition)."""
    found = np.cumsum(ranked.positives, axis=0)
    read = found + np.cumsum(ranked.negatives, axis=0)
    precision = np.divide(found, read, out=np.zeros_like(found), where=read > 0)
    return np.einsum("gr,gr->r", ranked.positives, precision) / found[-1]
