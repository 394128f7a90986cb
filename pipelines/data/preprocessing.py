"""Turning columns into numbers: scales and vocabularies, fitted on the training part alone."""

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


def fit_preprocessing(training: "pl.DataFrame", spec: DatasetSpec) -> Preprocessing:
    """Scales and vocabularies of the training rows (windows.training_rows); constant columns get std 1."""
    return Preprocessing(
        scales=tuple(_scale(training, spec, name) for name in spec.numeric),
        calendar=spec.calendar,
        lead=Scale(name=LEAD, mean=0.0, std=_span_hours(training, spec.lookback + spec.horizon)),
        past_target=spec.target[0] if spec.task == "event" else None,
        vocabularies=tuple(
            Vocabulary(name=name, values=_allowed_values(training, spec, name)) for name in spec.categorical
        ),
    )


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


def _scale(training: "pl.DataFrame", spec: DatasetSpec, name: str) -> Scale:
    low, high = spec.ranges.get(name, (None, None))
    unfitted = Scale(name=name, mean=0.0, std=1.0, low=low, high=high)
    values = training[name].to_numpy().astype(float)
    values = values[plausible(values, unfitted)]
    if len(values) == 0:
        return unfitted
    std = float(values.std())
    # Rounding leaves a constant column with a tiny spread; dividing by it would blow noise up.
    constant = std <= 1e-9 * max(1.0, abs(float(values.mean())))
    return unfitted.model_copy(update={"mean": float(values.mean()), "std": 1.0 if constant else std})


def _allowed_values(training: "pl.DataFrame", spec: DatasetSpec, name: str) -> tuple[str, ...]:
    """Sorted, without those that the dataset file does not allow: such rows were quarantined."""
    seen = training[name].drop_nulls().unique().sort()
    allowed = spec.allowed.get(name)
    return tuple(value for value in seen if not allowed or value in allowed)


def _span_hours(training: "pl.DataFrame", num_steps: int) -> float:
    """Hours that a window of `num_steps` steps covers, by the mean step of the training rows."""
    import polars as pl

    seconds = (pl.col("time").max() - pl.col("time").min()).dt.total_seconds()
    spans = training.group_by("entity").agg(hours=seconds / 3600)
    mean_step = float(spans["hours"].to_numpy().sum()) / max(1, len(training))
    return max(mean_step * num_steps, 1e-6)
