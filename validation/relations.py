"""How columns hang together: what all others leave unsaid of each, beside the same in a reference.

Every value becomes its rank in the reference, in standard deviations of ranks, so that bursts weigh no more
than steady days. Each column is told from all others by ridge regression. Of what that leaves over:

level     its mean: the column moved, and not with the others; signed
scatter   log of its mean absolute value beside the reference's: it moves less, or more, by itself; signed
relation  the largest change of its correlation with another column

A column that usually moves with others moves little by itself: half a standard deviation, which a whole table
may move by between two weeks, is far for what is left over of one column. Shapes: N rows, F columns.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Floats = NDArray[np.float64]
Columns = Mapping[str, Array]
Told = dict[tuple[str, Literal["level", "scatter", "relation"]], float]

RIDGE = 0.01  # of a column's variance: columns that say the same are not played off against each other
MOST_ROWS = 5000  # of a stretch: more change a mean rank by less than 0.02
MOST_IN_ALL = 200_000  # rows of all stretches
MOST_RANKED = 20_000  # values of the reference that ranks are taken in
FEWEST_KNOWN = 30  # values of a column in a batch, to say anything of it
_SMALLEST = 1e-3  # residual of a column that the others say completely


class Ranks(NamedTuple):
    """Sorted values of every column of the reference."""

    of: Mapping[str, Floats]

    def __call__(self, columns: Columns) -> tuple[Floats, NDArray[np.bool_]]:
        """[N, F], 0 where a value is missing, and which are known."""
        raw = np.stack([columns[name].astype(np.float64) for name in self.of], axis=1)
        known, values = np.isfinite(raw), np.zeros(raw.shape)
        for number, ranked in enumerate(self.of.values()):
            own = raw[known[:, number], number]
            below = np.searchsorted(ranked, own, "left") + np.searchsorted(ranked, own, "right")
            values[known[:, number], number] = (below / 2 / max(1, len(ranked)) - 0.5) * np.sqrt(12)
        return values, known


class _Moments(NamedTuple):
    """Sums over rows, which add up over stretches."""

    products_FF: Floats
    sums_F: Floats
    num_rows: int

    def plus(self, other: "_Moments") -> "_Moments":
        return _Moments(
            self.products_FF + other.products_FF, self.sums_F + other.sums_F, self.num_rows + other.num_rows
        )

    def minus(self, other: "_Moments") -> "_Moments":
        return _Moments(
            self.products_FF - other.products_FF, self.sums_F - other.sums_F, self.num_rows - other.num_rows
        )


class _Model(NamedTuple):
    """Column j is told as values @ weights_FF[:, j] + offsets_F[j]."""

    weights_FF: Floats
    offsets_F: Floats


class _Left(NamedTuple):
    """What a model leaves over of some rows; NaN for columns that are hardly known."""

    level_F: Floats
    scatter_F: Floats
    relations_FF: Floats


@dataclass(frozen=True)
class Relations:
    """A reference's columns told from one another."""

    ranks: Ranks
    model: _Model
    typical: _Left
    """Of stretches that the model told them from did not hold."""

    @classmethod
    def of(
        cls, columns: Columns, stretches: Sequence[NDArray[np.int64]], outcomes: Collection[str] = ()
    ) -> tuple["Relations", list[Told]]:
        """Fit on the rows of all stretches; and what each shows beside the others, told without it.

        Nothing is told from `outcomes`: they come later than what they belong to.
        """
        ranks = Ranks({name: _ranked(values) for name, values in columns.items()})
        most = min(MOST_ROWS, MOST_IN_ALL // len(stretches))
        ranked = [
            ranks({name: each[evenly(rows, most)] for name, each in columns.items()}) for rows in stretches
        ]
        moments = [_Moments(values.T @ values, values.sum(axis=0), len(values)) for values, _ in ranked]
        whole = reduce(_Moments.plus, moments)
        tells = np.array([name not in outcomes for name in columns])
        left = [
            _left(_fit(whole.minus(own), tells), *each) for own, each in zip(moments, ranked, strict=True)
        ]
        typical = _Left(
            _mean([each.level_F for each in left]),
            _mean([each.scatter_F for each in left]),
            _mean([each.relations_FF for each in left]),
        )
        found = cls(ranks, _fit(whole, tells), typical)
        return found, [found._beside(each) for each in left]

    def compare(self, batch: Columns) -> Told:
        """Measures of every column of the batch, by column and measure."""
        some = {name: evenly(batch[name], 2 * MOST_ROWS) for name in self.ranks.of}
        return self._beside(_left(self.model, *self.ranks(some)))

    def _beside(self, left: _Left) -> Told:
        level, scatter = left.level_F - self.typical.level_F, left.scatter_F - self.typical.scatter_F
        relation = np.abs(left.relations_FF - self.typical.relations_FF).max(axis=1)
        told: Told = {}
        for number, name in enumerate(self.ranks.of):
            if np.isfinite(level[number]) and np.isfinite(scatter[number]):
                told[name, "level"] = float(level[number])
                told[name, "scatter"] = float(scatter[number])
                told[name, "relation"] = float(relation[number])
        return told


def _ranked(values: Array) -> Floats:
    known = values.astype(np.float64)
    return np.sort(evenly(known[np.isfinite(known)], MOST_RANKED))


def _mean(each: Sequence[Floats]) -> Floats:
    """Of what is known."""
    values = np.stack(each)
    known = np.isfinite(values)
    return np.where(known.any(axis=0), np.nansum(values, axis=0) / np.maximum(1, known.sum(axis=0)), np.nan)


def evenly(values: Array, most: int) -> Array:
    """At most so many, evenly spread."""
    return values[np.linspace(0, len(values) - 1, min(len(values), most)).astype(int)]


def _fit(moments: _Moments, tells: NDArray[np.bool_]) -> _Model:
    """Ridge regression of every column on those that `tell`, but itself."""
    mean = moments.sums_F / moments.num_rows
    covariance = moments.products_FF / moments.num_rows - np.outer(mean, mean)
    deviation = np.sqrt(np.maximum(np.diag(covariance), 0.0))
    moves = deviation > _SMALLEST
    scale = np.where(moves, deviation, 1.0)
    correlation = covariance / np.outer(scale, scale)
    weights = np.zeros(covariance.shape)
    for column in np.nonzero(moves)[0]:
        (others,) = np.nonzero(moves & tells & (np.arange(len(moves)) != column))
        ridged = correlation[np.ix_(others, others)] + RIDGE * np.eye(len(others))
        weights[others, column] = np.linalg.solve(ridged, correlation[others, column])
    weights *= deviation[None, :] / scale[:, None]
    return _Model(weights, mean - mean @ weights)


def _left(model: _Model, values: Floats, known: NDArray[np.bool_]) -> _Left:
    counts = known.sum(axis=0)
    is_known = np.where(counts >= FEWEST_KNOWN, 1.0, np.nan)
    over = (values - values @ model.weights_FF - model.offsets_F) * known
    level = over.sum(axis=0) / np.maximum(1, counts)
    around = (over - level) * known
    scatter = np.log(np.maximum(np.abs(around).sum(axis=0) / np.maximum(1, counts), _SMALLEST))
    return _Left(level * is_known, scatter * is_known, _unit(around).T @ _unit(values - values.mean(axis=0)))


def _unit(values: Floats) -> Floats:
    length = np.linalg.norm(values, axis=0)
    return np.divide(values, length, out=np.zeros_like(values), where=length > 0)
