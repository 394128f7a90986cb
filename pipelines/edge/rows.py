"""From rows of a log to a model's inputs, as the training did it (pipelines.data.windows). numpy alone."""

import math
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

_CYCLE_MINUTES = {"hour": 1440.0, "weekday": 7 * 1440.0, "month": 365.25 * 1440.0}
_EPOCH = datetime(1970, 1, 1)

Row = Mapping[str, Any]


class Inputs(NamedTuple):
    """One window: numeric and known float32 [N, F], categorical int64 [N, C]."""

    numeric: NDArray[np.float32]
    known: NDArray[np.float32]
    categorical: NDArray[np.int64]

    @property
    def num_steps(self) -> int:
        return len(self.numeric)

    def steps(self, first: int, last: int) -> "Inputs":
        """Those from `first` up to, not including, `last`."""
        part = slice(first, last)
        return Inputs(self.numeric[part], self.known[part], self.categorical[part])

    def feed(self, blocks: int) -> dict[str, NDArray]:
        """What the graph is run with, reading `blocks` key blocks per query block."""
        arrays = {name: array[None] for name, array in self._asdict().items()}
        return {**arrays, "num_selected": np.array(blocks, dtype=np.int64)}


class Fields(NamedTuple):
    """What a row has to hold beside `time`, in the order of a Reading."""

    numbers: tuple[str, ...]
    texts: tuple[str, ...]
    outcome: str | None
    """The event's own outcome, known or not; the last of a reading's numbers."""

    @classmethod
    def of(cls, preprocessing: Mapping[str, Any]) -> "Fields":
        numbers = tuple(scale["name"] for scale in preprocessing["scales"])
        texts = tuple(vocabulary["name"] for vocabulary in preprocessing["vocabularies"])
        return cls(numbers, texts, preprocessing["past_target"])


class Reading(NamedTuple):
    """A row that could be read: nothing in it depends on a model's scales or vocabularies."""

    minutes: float
    """Since 1970, UTC."""
    numbers: tuple[float, ...]
    """NaN where unknown."""
    texts: tuple[str | None, ...]


def read_row(row: Row, fields: Fields) -> Reading:
    """One row, read once. Raises ValueError naming the field that cannot be read."""
    names = (*fields.numbers, fields.outcome) if fields.outcome else fields.numbers
    return Reading(
        _minutes(row),
        tuple([_number(row, name) for name in names]),
        tuple([_text(row, name) for name in fields.texts]),
    )


def encode_rows(rows: Sequence[Row], preprocessing: Mapping[str, Any], contract: Mapping[str, Any]) -> Inputs:
    """The rows of one series in order: the past, then the `horizon` rows that are asked about.

    `time` is a datetime or ISO text. A value that is missing, None, not finite or out of its range (for an
    outcome: not 0 or 1) is unknown; so is every value after the cutoff that is not known in advance, even
    when it is given. A past value that is not known yet at the cutoff is for the caller to leave out. Raises
    ValueError naming the row (from 0) and the field that cannot be read.
    """
    fields, readings = Fields.of(preprocessing), []
    for number, row in enumerate(rows):
        try:
            readings.append(read_row(row, fields))
        except ValueError as error:
            raise ValueError(f"row {number}: {error}") from None
    return encode_readings(readings, preprocessing, contract)


def encode_readings(
    readings: Sequence[Reading], preprocessing: Mapping[str, Any], contract: Mapping[str, Any]
) -> Inputs:
    """The same of rows that were read before. Raises ValueError where they are too few."""
    horizon = contract["horizon"]
    if len(readings) <= horizon:
        raise ValueError(f"rows: {len(readings)} given, more than the horizon of {horizon} needed")
    minutes = np.array([reading.minutes for reading in readings])
    raw = np.array([reading.numbers for reading in readings], np.float64).reshape(len(readings), -1)
    past = np.arange(len(readings)) < len(readings) - horizon
    columns = [
        _scaled(raw[:, position], scale, past | (scale["name"] in contract["known_ahead"]))
        for position, scale in enumerate(preprocessing["scales"])
    ]
    everywhere = np.ones(len(readings))
    columns += [(wave, everywhere) for wave in _calendar_waves(minutes, preprocessing["calendar"])]
    lead_hours = (minutes - minutes[past][-1]) / 60.0
    columns.append((lead_hours / preprocessing["lead"]["std"], everywhere))
    if preprocessing["past_target"]:
        columns.append(_outcomes(raw[:, -1], past))
    codes = [
        _codes(readings, position, vocabulary, past | (vocabulary["name"] in contract["known_ahead"]))
        for position, vocabulary in enumerate(preprocessing["vocabularies"])
    ]
    values_NF = np.stack([values for values, _ in columns], axis=1)
    with np.errstate(over="ignore"):  # what float32 cannot hold is no answer later, said of its window
        numeric_NF = values_NF.astype(np.float32)
    return Inputs(
        numeric_NF,
        np.stack([known for _, known in columns], axis=1).astype(np.float32),
        np.stack(codes, axis=1) if codes else np.zeros((len(readings), 0), np.int64),
    )


def _minutes(row: Row) -> float:
    """Minutes since 1970."""
    try:
        time = row["time"]
        instant = time if isinstance(time, datetime) else datetime.fromisoformat(time)
        if instant.tzinfo is not None:
            instant = instant.astimezone(UTC).replace(tzinfo=None)
    except (KeyError, TypeError, ValueError, OverflowError):
        raise ValueError("time: give an ISO instant such as 2013-10-01T05:15:00") from None
    return (instant - _EPOCH).total_seconds() / 60.0


def _number(row: Row, name: str) -> float:
    value = row.get(name)
    if value is None:
        return math.nan
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        shown = repr(value)[:80]
        raise ValueError(f"{name}: {shown} is not a number; leave it out when unknown") from None


def _text(row: Row, name: str) -> str | None:
    value = row.get(name)
    if value is not None and not isinstance(value, str):
        shown = repr(value)[:80]
        raise ValueError(f"{name}: {shown} is not text; quote it, or leave it out when unknown")
    return value


def _scaled(raw: NDArray, scale: Mapping[str, Any], may_know: NDArray) -> tuple[NDArray, NDArray]:
    """z-scored values [N], 0 where unknown, and which are known [N]."""
    low, high = (
        limit if scale.get(name) is None else float(scale[name])
        for name, limit in (("low", -np.inf), ("high", np.inf))
    )
    known = may_know & np.isfinite(raw) & (raw >= low) & (raw <= high)
    return np.where(known, (np.where(known, raw, 0.0) - scale["mean"]) / scale["std"], 0.0), known


def _outcomes(raw: NDArray, may_know: NDArray) -> tuple[NDArray, NDArray]:
    """Past outcomes [N], 0 where unknown, and which are known [N]: anything but 0 and 1 is not."""
    values, known = _scaled(raw, {"mean": 0.0, "std": 1.0}, may_know)
    known &= np.isin(values, (0.0, 1.0))
    return np.where(known, values, 0.0), known


def _codes(
    readings: Sequence[Reading], position: int, vocabulary: Mapping[str, Any], may_know: NDArray
) -> NDArray[np.int64]:
    code = {value: number for number, value in enumerate(vocabulary["values"], start=1)}
    found = [code.get(reading.texts[position], 0) for reading in readings]
    return np.where(may_know, np.array(found, np.int64), 0)


def _calendar_waves(minutes: NDArray, calendar: Sequence[str]) -> list[NDArray]:
    phases = [2 * np.pi * (minutes / _CYCLE_MINUTES[name] % 1.0) for name in calendar]
    return [wave(phase) for phase in phases for wave in (np.sin, np.cos)]
