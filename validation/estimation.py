"""How good a model probably is before the outcomes are known, from what it says itself.

Scores are turned into chances by an isotonic fit on windows whose outcomes are known; with those chances the
expected metric of new scores follows. It sees the mix of cases change, and is blind to a world in which the
same scores mean something else: so its error is tracked, and moves a decision only beyond that.
"""

from collections.abc import Sequence

import numpy as np

from validation.record import Record
from validation.statistics import METRICS, Floats, Scored


class Estimate(Record):
    """An expected metric. `error`: mean absolute error of `num_checked` earlier estimates (NaN: of none)."""

    metric: str
    value: float
    reference_value: float
    """What it was on the windows whose outcomes are known."""
    error: float
    num_checked: int


def estimate_auroc(known: Scored, scores: Floats, errors: Sequence[float] = ()) -> Estimate | None:
    """Expected AUROC of `scores` [N]; None where `known` cannot tell (one class, or nothing to learn from).

    `errors` are the absolute errors of earlier estimates, once their outcomes were known.
    """
    from sklearn.isotonic import IsotonicRegression

    counts = (known.mask > 0) & np.isin(known.targets, (0, 1))
    outcomes = known.targets[counts]
    if not len(scores) or len(np.unique(outcomes)) < 2:
        return None
    fit = IsotonicRegression(y_min=0, y_max=1, out_of_bounds="clip").fit(known.scores[counts], outcomes)
    return Estimate(
        metric="auroc",
        value=_expected_auroc(scores, fit.predict(scores)),
        reference_value=METRICS["auroc"](known),
        error=float(np.mean(errors)) if len(errors) else float("nan"),
        num_checked=len(errors),
    )


def _expected_auroc(scores: Floats, chances: Floats) -> float:
    """Share of pairs ranked rightly where each score is a positive with its own chance; ties count half."""
    order = np.argsort(scores, kind="stable")
    starts = np.concatenate([[0], np.nonzero(np.diff(scores[order]))[0] + 1])
    positives = np.add.reduceat(chances[order], starts)
    negatives = np.add.reduceat(1 - chances[order], starts)
    below = np.cumsum(negatives) - 0.5 * negatives
    return float(positives @ below / (positives.sum() * negatives.sum()))
