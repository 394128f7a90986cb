"""How far two samples of a table are from each other: effect sizes, in units that people know.

Every measure is compared with what batches of the reference usually differ by: a week of weather is far from
the year's, every week, and that is no news. Arrays hold one value per row, [N].

shift     numeric: Wasserstein distance in standard deviations of the reference (scipy)
spread    numeric: absolute log of the ratio of standard deviations
missing   difference of the shares of missing values
shares    categorical: total variation, half the summed difference of the shares
rate      outcomes: difference of the means of those known, in standard deviations of the reference; signed

and, of a numeric column beside all others, level, scatter and relation (validation.relations).
"""

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from validation.record import Record
from validation.relations import Relations, Told, evenly

Array = NDArray[Any]
T = TypeVar("T")
Columns = Mapping[str, Array]
Kind = Literal["inputs", "outcomes", "relations", "predictions", "selection"]
Name = tuple[str, str, str]
Measure = Literal[
    "shift",
    "spread",
    "missing",
    "shares",
    "rate",
    "level",
    "scatter",
    "relation",
    "lags",
    "entropy",
    "missed",
]

FEWEST_BLOCKS = 4  # of the reference, to say what is usual
FEWEST_STRETCHES = (
    8  # that a reference is cut into, where a batch is longer than that: shorter ones differ more
)
LASTING = 3  # consecutive blocks whose mean says what is usual of as many batches
MOST_ROWS = 10_000  # of a sample that are compared: more change a distance by less than 0.01
MOST_RUNS = 32  # of LASTING blocks


class Effect(Record):
    """One difference between a batch and its reference.

    `usual` is what LASTING stretches of the reference in a row differ from it by, on average; `strength` says
    how many times the limit (the policy's floor, or what is usual where that is more) the difference is.
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
    reference: Columns,
    batch: Columns,
    categorical: Collection[str] = (),
    outcomes: Collection[str] = (),
) -> list[Effect]:
    """Every column of the batch against the reference's; of `outcomes` those that are known so far."""
    effects: list[Effect] = []
    for name, old in reference.items():
        is_outcome = name in outcomes and is_numeric(old) and is_numeric(batch[name])
        found = (
            _of_outcome(old, batch[name])
            if is_outcome
            else _of_column(old, batch[name], is_categorical=name in categorical)
        )
        kind: Kind = "outcomes" if name in outcomes else "inputs"
        effects += [
            Effect(kind=kind, subject=name, measure=each, value=value) for each, value in found.items()
        ]
    return effects


def with_usual(effects: Iterable[Effect], of_blocks: Sequence[Iterable[Effect]]) -> list[Effect]:
    """The effects, each with what blocks of the reference, given in order, usually show of the same."""
    usual = _usual_of(runs([{effect.name: effect.value for effect in block} for block in of_blocks]))
    return [effect.model_copy(update={"usual": usual.get(effect.name, 0.0)}) for effect in effects]


def runs(blocks: Sequence[T]) -> list[Sequence[T]]:
    """LASTING blocks in a row, from evenly spread ones on; none where there are too few blocks."""
    if len(blocks) < FEWEST_BLOCKS:
        return []
    starts = evenly(np.arange(len(blocks) - LASTING + 1), MOST_RUNS)
    return [blocks[start : start + LASTING] for start in starts]


def _usual_of(shown: Sequence[Sequence[Mapping[Name, float]]]) -> dict[Name, float]:
    """Root mean square of the runs' means, more of it where there are few of them."""
    names = dict.fromkeys(name for run in shown for block in run for name in block)
    means = {
        name: np.array([_mean_of(run, name) for run in shown if all(name in block for block in run)])
        for name in names
    }
    rms = {name: float(np.sqrt((each**2).mean())) for name, each in means.items() if len(each)}
    return {name: each * (1 + 1 / len(means[name])) for name, each in rms.items()}


def _mean_of(run: Sequence[Mapping[Name, float]], name: Name) -> float:
    return sum(block[name] for block in run) / len(run)


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


def _of_outcome(old: Array, new: Array) -> dict[Measure, float]:
    """How often it happens: of one column with a sign, so that years of weeks do not all count as far."""
    known_old, known_new = finite(old), finite(new)
    if not len(known_old) or not len(known_new):
        return {}
    return {"rate": float(known_new.mean() - known_old.mean()) / (float(known_old.std()) or 1.0)}


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


@dataclass(frozen=True)
class Baseline:
    """Reference columns, and what stretches of them as long as a batch differ from the whole by."""

    columns: Columns
    categorical: tuple[str, ...]
    outcomes: tuple[str, ...]
    relations: Relations | None
    """None with fewer than two numeric columns."""
    usual: Mapping[Name, float]

    @classmethod
    def of(
        cls, columns: Columns, blocks: Array, categorical: Collection[str], outcomes: Collection[str] = ()
    ) -> "Baseline":
        """`blocks` [N] numbers the stretch of every row; -1 belongs to none. `outcomes` may come late."""
        whole, names, later = _thinned(columns), tuple(categorical), tuple(outcomes)
        stretches = [np.nonzero(blocks == each)[0] for each in np.unique(blocks[blocks >= 0])]
        numeric = {name: each for name, each in columns.items() if name not in names and is_numeric(each)}
        relations: Relations | None = None
        told: list[Told] = [{} for _ in stretches]
        if len(numeric) > 1 and len(stretches) >= FEWEST_BLOCKS:
            relations, told = Relations.of(numeric, stretches, later)

        @cache
        def shown(number: int) -> dict[Name, float]:
            rows = stretches[number]
            own = measure(whole, _thinned({name: each[rows] for name, each in columns.items()}), names, later)
            every = own + _of_relations(told[number])
            return {effect.name: effect.value for effect in every if math.isfinite(effect.value)}

        usual = _usual_of([[shown(number) for number in run] for run in runs(range(len(stretches)))])
        return cls(whole, names, later, relations, usual)

    def compare(self, batch: Columns) -> list[Effect]:
        """Every column of the batch and its relations, beside what is usual."""
        effects = measure(self.columns, _thinned(batch), self.categorical, self.outcomes)
        if self.relations is not None:
            effects += _of_relations(self.relations.compare(batch))
        return [effect.model_copy(update={"usual": self.usual.get(effect.name, 0.0)}) for effect in effects]


def _of_relations(told: Told) -> list[Effect]:
    return [
        Effect(kind="relations", subject=subject, measure=measure, value=value)
        for (subject, measure), value in told.items()
    ]


def _thinned(columns: Columns) -> dict[str, Array]:
    return {name: evenly(values, MOST_ROWS) for name, values in columns.items()}
