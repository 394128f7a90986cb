"""How far two samples of a table are from each other: effect sizes, in units that people know.

Every measure is compared with what batches of the reference usually differ by: a week of weather is far from
the year's, every week, and that is no news. Arrays hold one value per row, [N].

shift     numeric: Wasserstein distance in standard deviations of the reference (scipy)
spread    numeric: absolute log of the ratio of standard deviations
missing   difference of the shares of missing values
shares    categorical: total variation, half the summed difference of the shares
relation  of a numeric column to the others: the largest change of a rank correlation (Spearman)
"""

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from validation.record import Record

Array = NDArray[Any]
Columns = Mapping[str, Array]
Kind = Literal["inputs", "relations", "predictions", "selection"]
Name = tuple[str, str, str]
Measure = Literal["shift", "spread", "missing", "shares", "relation", "lags", "entropy", "missed"]

FEWEST_BLOCKS = 4  # of the reference, to say what is usual
FEWEST_STRETCHES = (
    8  # that a reference is cut into, where a batch is longer than that: shorter ones differ more
)
USUAL = 0.9  # quantile over blocks that is called usual: of few blocks the largest is an accident
MOST_ROWS = 10_000  # of a sample that are compared: more change a distance by less than 0.01
MOST_BLOCKS = 32
MOST_RELATED = 5000  # rows on which correlations are compared: more change them by less than 0.02


class Effect(Record):
    """One difference between a batch and its reference.

    `usual` is what batches of the reference differ from it by; `strength` says how many times the limit
    (the policy's floor, or what is usual where that is more) the difference is.
    """

    kind: Kind
    subject: str
    measure: Measure
    value: float
    usual: float = 0.0
    strength: float = 0.0

    @property
    def name(self) -> Name:
        """What is the same from batch to batch."""
        return self.kind, self.subject, self.measure


def measure(
    reference: Columns, batch: Columns, categorical: Collection[str] = (), kind: Kind = "inputs"
) -> list[Effect]:
    """Every column of the batch against the reference's, and the relations between the numeric ones."""
    effects: list[Effect] = []
    for name, old in reference.items():
        found = _of_column(old, batch[name], is_categorical=name in categorical)
        effects += [
            Effect(kind=kind, subject=name, measure=each, value=value) for each, value in found.items()
        ]
    numeric = [name for name in reference if is_numeric(reference[name]) and name not in categorical]
    return effects + _relations(reference, batch, numeric)


def with_usual(effects: Iterable[Effect], of_blocks: Sequence[Iterable[Effect]]) -> list[Effect]:
    """The effects, each with what blocks of the reference usually show of the same."""
    seen: dict[Name, list[float]] = {}
    for block in of_blocks:
        for effect in block:
            seen.setdefault(effect.name, []).append(effect.value)
    return [effect.model_copy(update={"usual": _usual(seen.get(effect.name, []))}) for effect in effects]


def _usual(values: list[float]) -> float:
    finite = [value for value in values if math.isfinite(value)]
    return float(np.quantile(finite, USUAL)) if len(finite) >= FEWEST_BLOCKS else 0.0


def is_numeric(values: Array) -> bool:
    return values.dtype.kind in "fiub"


def _of_column(old: Array, new: Array, *, is_categorical: bool) -> dict[Measure, float]:
    if is_categorical or not (is_numeric(old) and is_numeric(new)):
        return {"shares": _total_variation(old, new)}
    known_old, known_new = finite(old), finite(new)
    missing = abs(_share_missing(known_new, new) - _share_missing(known_old, old))
    if not len(known_old) or not len(known_new):
        return {"missing": missing}
    return {
        "shift": wasserstein(known_old, known_new),
        "spread": _log_spread(known_old, known_new),
        "missing": missing,
    }


def finite(values: Array) -> NDArray[np.float64]:
    numbers = values.astype(np.float64)
    return numbers[np.isfinite(numbers)]


def _share_missing(known: Array, values: Array) -> float:
    return 1 - len(known) / len(values) if len(values) else 0.0


def wasserstein(old: NDArray[np.float64], new: NDArray[np.float64]) -> float:
    """In standard deviations of `old`; of a constant, the share of rows that are something else now."""
    from scipy.stats import wasserstein_distance

    spread = float(old.std())
    if spread <= 1e-9 * max(1.0, abs(float(old.mean()))):
        return float((np.abs(new - old.mean()) > 1e-9 * max(1.0, abs(float(old.mean())))).mean())
    return float(wasserstein_distance(old, new)) / spread


def _log_spread(old: NDArray[np.float64], new: NDArray[np.float64]) -> float:
    """0 where the reference is a constant; a batch that is one is a stuck sensor's, and bounded here."""
    before, after = float(old.std()), float(new.std())
    return abs(math.log(max(after, 1e-3 * before) / before)) if before > 1e-12 else 0.0


def _total_variation(old: Array, new: Array) -> float:
    import pandas as pd

    if not len(old) or not len(new):
        return 0.0
    codes, _ = pd.factorize(np.concatenate([old.astype(object), new.astype(object)]))
    before, after = (np.bincount(part + 1, minlength=codes.max() + 2) for part in np.split(codes, [len(old)]))
    return float(np.abs(after / after.sum() - before / before.sum()).sum() / 2)


def _relations(reference: Columns, batch: Columns, names: Sequence[str]) -> list[Effect]:
    if len(names) < 2:
        return []
    change = np.abs(rank_correlations(batch, names) - rank_correlations(reference, names))
    np.fill_diagonal(change, 0.0)
    return [
        Effect(kind="relations", subject=name, measure="relation", value=float(value))
        for name, value in zip(names, change.max(axis=1), strict=True)
    ]


def rank_correlations(columns: Columns, names: Sequence[str]) -> NDArray[np.float64]:
    """Spearman's, [F, F], on evenly spread rows.

    Missing values take the middle rank; constants relate to nothing.
    """
    from scipy.stats import rankdata

    num_rows = len(columns[names[0]])
    rows = np.linspace(0, num_rows - 1, min(num_rows, MOST_RELATED)).astype(int)
    values = np.stack([columns[name].astype(np.float64)[rows] for name in names])
    medians = np.array([np.median(finite(row)) if len(finite(row)) else 0.0 for row in values])
    ranks = rankdata(np.where(np.isfinite(values), values, medians[:, None]), axis=1)
    ranks -= ranks.mean(axis=1, keepdims=True)
    lengths = np.linalg.norm(ranks, axis=1)
    unit = np.divide(ranks, lengths[:, None], out=np.zeros_like(ranks), where=lengths[:, None] > 0)
    return unit @ unit.T


@dataclass(frozen=True)
class Baseline:
    """Reference columns, and what stretches of them as long as a batch differ from the whole by."""

    columns: Columns
    categorical: tuple[str, ...]
    of_blocks: tuple[list[Effect], ...]

    @classmethod
    def of(cls, columns: Columns, blocks: Array, categorical: Collection[str]) -> "Baseline":
        """`blocks` [N] numbers the stretch of every row; -1 belongs to none."""
        whole, names = _thinned(columns), tuple(categorical)
        numbers = np.unique(blocks[blocks >= 0])
        picked = numbers[np.linspace(0, len(numbers) - 1, min(len(numbers), MOST_BLOCKS)).astype(int)]
        stretches = ({name: values[blocks == each] for name, values in columns.items()} for each in picked)
        return cls(whole, names, tuple(measure(whole, _thinned(each), names) for each in stretches))

    def compare(self, batch: Columns) -> list[Effect]:
        """Every column of the batch and its relations, beside what is usual."""
        return with_usual(measure(self.columns, _thinned(batch), self.categorical), self.of_blocks)


def _thinned(columns: Columns) -> dict[str, Array]:
    return {name: evenly(values, MOST_ROWS) for name, values in columns.items()}


def evenly(values: Array, most: int) -> Array:
    """At most so many of them, evenly spread."""
    return values[np.linspace(0, len(values) - 1, min(len(values), most)).astype(int)]
