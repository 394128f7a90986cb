"""Turning columns into numbers: scales and vocabularies, fitted on the training part alone."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING

from pipelines.data.spec import Calendar, DatasetSpec
from validation.record import Record

if TYPE_CHECKING:
    import numpy as np
    import polars as pl

CYCLE_MINUTES: dict[Calendar, float] = {"hour": 1440.0, "weekday": 7 * 1440.0, "month": 365.25 * 1440.0}
LEAD = "lead_hours"


class Scale(Record):
    """z = (value - mean) / std; a value outside [low, high] counts as unknown."""

    name: str
    mean: float
    std: float
    low: float | None = None
    high: float | None = None


class Vocabulary(Record):
    """The values seen in training and allowed; value number i has code i + 1, anything else 0."""

    name: str
    values: tuple[str, ...]


class Preprocessing(Record):
    """All that is needed to turn a row into a model's inputs, on this machine or on a device."""

    scales: tuple[Scale, ...]
    calendar: tuple[Calendar, ...]
    lead: Scale
    past_target: str | None
    """The event's own outcome, an input where it is already known."""
    vocabularies: tuple[Vocabulary, ...]

    @property
    def numeric_names(self) -> tuple[str, ...]:
        """Order of the numeric inputs (their last axis)."""
        calendar = tuple(f"{name}_{wave}" for name in self.calendar for wave in ("sin", "cos"))
        past = (self.past_target,) if self.past_target else ()
        return (*(scale.name for scale in self.scales), *calendar, LEAD, *past)

    @property
    def cardinalities(self) -> tuple[int, ...]:
        """Number of codes of each categorical input, 0 (unknown) included."""
        return tuple(len(vocabulary.values) + 1 for vocabulary in self.vocabularies)


def fit_preprocessing(training: "pl.DataFrame | Iterable[pl.DataFrame]", spec: DatasetSpec) -> Preprocessing:
    """Scales and vocabularies of the training rows, whole or in parts; constant columns get std 1."""
    import polars as pl

    moments = {name: Moments() for name in spec.numeric}
    seen: dict[str, set[str]] = {name: set() for name in spec.categorical}
    spans = _Spans()
    for part in [training] if isinstance(training, pl.DataFrame) else training:
        for name, found in moments.items():
            found.add(_plausible_values(part[name], _unfitted(spec, name)))
        for name, values in seen.items():
            values.update(part[name].drop_nulls().unique())
        spans.add(part)
    lead = spans.mean_step() * (spec.lookback + spec.horizon)
    return Preprocessing(
        scales=tuple(_scale(_unfitted(spec, name), found) for name, found in moments.items()),
        calendar=spec.calendar,
        lead=Scale(name=LEAD, mean=0.0, std=max(lead, 1e-6)),
        past_target=spec.target[0] if spec.task == "event" else None,
        vocabularies=tuple(
            Vocabulary(name=name, values=_allowed_values(values, spec, name)) for name, values in seen.items()
        ),
    )


@dataclass
class Moments:
    """Mean and spread of numbers that come in parts; of one part what numpy says of it (Chan et al. 1979)."""

    count: int = 0
    mean: float = 0.0
    squares: float = 0.0
    """Sum of squared differences from the mean."""

    def add(self, values: "np.ndarray") -> None:
        if len(values) == 0:
            return
        mean = float(values.mean())
        squares = float(((values - mean) ** 2).sum())
        if self.count == 0:
            self.count, self.mean, self.squares = len(values), mean, squares
            return
        total, apart = self.count + len(values), mean - self.mean
        self.squares += squares + apart**2 * self.count * len(values) / total
        self.mean += apart * len(values) / total
        self.count = total

    @property
    def std(self) -> float:
        return (self.squares / max(1, self.count)) ** 0.5


@dataclass
class _Spans:
    """First and last instant of every entity, and the number of rows, of a table in parts."""

    of: dict[str, tuple[datetime, datetime]] = field(default_factory=dict)
    num_rows: int = 0

    def add(self, part: "pl.DataFrame") -> None:
        import polars as pl

        time = pl.col("time")
        for name, first, last in part.group_by("entity").agg(time.min(), last=time.max()).iter_rows():
            known = self.of.get(name, (first, last))
            self.of[name] = min(known[0], first), max(known[1], last)
        self.num_rows += len(part)

    def mean_step(self) -> float:
        """Hours; the sum in order of name, so that it is the same every time."""
        hours = (self.of[name][1] - self.of[name][0] for name in sorted(self.of))
        return sum(span.total_seconds() // 1 / 3600 for span in hours) / max(1, self.num_rows)


def plausible(values: "np.ndarray", scale: Scale) -> "np.ndarray":
    """True where a value is finite and within its range."""
    import numpy as np

    low = -np.inf if scale.low is None else scale.low
    high = np.inf if scale.high is None else scale.high
    return np.isfinite(values) & (values >= low) & (values <= high)


def calendar_waves(minutes: "np.ndarray", calendar: tuple[Calendar, ...]) -> "np.ndarray":
    """float32 [N, 2 per calendar entry]: sine and cosine of where each instant stands in its cycle.

    `minutes` since 1970-01-01, a Thursday: each cycle only has to start at a fixed point.
    """
    import numpy as np

    phases = [2 * np.pi * (minutes / CYCLE_MINUTES[name] % 1.0) for name in calendar]
    waves = [wave(phase) for phase in phases for wave in (np.sin, np.cos)]
    return np.stack(waves, axis=1).astype(np.float32) if waves else np.zeros((len(minutes), 0), np.float32)


def _unfitted(spec: DatasetSpec, name: str) -> Scale:
    low, high = spec.ranges.get(name, (None, None))
    return Scale(name=name, mean=0.0, std=1.0, low=low, high=high)


def _plausible_values(values: "pl.Series", scale: Scale) -> "np.ndarray":
    numbers = values.to_numpy().astype(float)
    return numbers[plausible(numbers, scale)]


def _scale(unfitted: Scale, found: Moments) -> Scale:
    if found.count == 0:
        return unfitted
    # Rounding leaves a constant column with a tiny spread; dividing by it would blow noise up.
    constant = found.std <= 1e-9 * max(1.0, abs(found.mean))
    return unfitted.model_copy(update={"mean": found.mean, "std": 1.0 if constant else found.std})


def _allowed_values(seen: set[str], spec: DatasetSpec, name: str) -> tuple[str, ...]:
    """Sorted, without those that the dataset file does not allow: such rows were quarantined."""
    allowed = spec.allowed.get(name)
    return tuple(value for value in sorted(seen) if not allowed or value in allowed)
