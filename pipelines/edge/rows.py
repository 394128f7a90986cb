"""From rows of a log to a model's inputs, as the training did it (pipelines.data.windows). numpy alone."""

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


def encode_rows(rows: Sequence[Row], preprocessing: Mapping[str, Any], contract: Mapping[str, Any]) -> Inputs:
    """The rows of one series in order: the past, then the `horizon` rows that are asked about.

    `time` is a datetime or ISO text. A value that is missing, None, not finite or out of its range (for an
    outcome: not 0 or 1) is unknown; so is every value after the cutoff that is not known in advance, even
    when it is given. A past value that is not known yet at the cutoff is for the caller to leave out. Raises
    ValueError naming the row (from 0) and the field that cannot be read.
    """
    horizon = contract["horizon"]
    if len(rows) <= horizon:
        raise ValueError(f"rows: {len(rows)} given, more than the horizon of {horizon} needed")
    minutes = np.array([_minutes(row, number) for number, row in enumerate(rows)])
    past = np.arange(len(rows)) < len(rows) - horizon
    columns = [
        _scaled(rows, scale, past | (scale["name"] in contract["known_ahead"]))
        for scale in preprocessing["scales"]
    ]
    columns += [(wave, np.ones(len(rows))) for wave in _calendar_waves(minutes, preprocessing["calendar"])]
    lead_hours = (minutes - minutes[past][-1]) / 60.0
    columns.append((lead_hours / preprocessing["lead"]["std"], np.ones(len(rows))))
    if preprocessing["past_target"]:
        columns.append(_outcomes(rows, preprocessing["past_target"], past))
    codes = [
        _codes(rows, vocabulary, past | (vocabulary["name"] in contract["known_ahead"]))
        for vocabulary in preprocessing["vocabularies"]
    ]
    return Inputs(
        np.stack([values for values, _ in columns], axis=1).astype(np.float32),
        np.stack([known for _, known in columns], axis=1).astype(np.float32),
        np.stack(codes, axis=1) if codes else np.zeros((len(rows), 0), np.int64),
    )


def _minutes(row: Row, number: int) -> float:
    """Minutes since 1970."""
    try:
        time = row["time"]
        instant = time if isinstance(time, datetime) else datetime.fromisoformat(time)
    except (KeyError, TypeError, ValueError):
        raise ValueError(f"row {number}: time: give an ISO instant such as 2013-10-01T05:15:00") from None
    if instant.tzinfo is not None:
        instant = instant.astimezone(UTC).replace(tzinfo=None)
    return (instant - _EPOCH).total_seconds() / 60.0


def _scaled(rows: Sequence[Row], scale: Mapping[str, Any], may_know: NDArray) -> tuple[NDArray, NDArray]:
    """z-scored values [N], 0 where unknown, and which are known [N]."""
    raw = np.array([_number(row, scale["name"], number) for number, row in enumerate(rows)])
    low, high = (
        limit if scale.get(name) is None else float(scale[name])
        for name, limit in (("low", -np.inf), ("high", np.inf))
    )
    known = may_know & np.isfinite(raw) & (raw >= low) & (raw <= high)
    return np.where(known, (np.where(known, raw, 0.0) - scale["mean"]) / scale["std"], 0.0), known


def _outcomes(rows: Sequence[Row], name: str, may_know: NDArray) -> tuple[NDArray, NDArray]:
    """Past outcomes [N], 0 where unknown, and which are known [N]: anything but 0 and 1 is not."""
    values, known = _scaled(rows, {"name": name, "mean": 0.0, "std": 1.0}, may_know)
    known &= np.isin(values, (0.0, 1.0))
    return np.where(known, values, 0.0), known


def _number(row: Row, name: str, number: int) -> float:
    value = row.get(name)
    if value is None:
        return float("nan")
    try:
        return float(value)
    except (TypeError, ValueError):
        raise ValueError(
            f"row {number}: {name}: {value!r} is not a number; leave it out when unknown"
        ) from None


def _codes(rows: Sequence[Row], vocabulary: Mapping[str, Any], may_know: NDArray) -> NDArray[np.int64]:
    code = {value: position for position, value in enumerate(vocabulary["values"], start=1)}
    found = [_code(row, vocabulary["name"], code, number) for number, row in enumerate(rows)]
    return np.where(may_know, np.array(found, np.int64), 0)


def _code(row: Row, name: str, code: Mapping[str, int], number: int) -> int:
    value = row.get(name)
    if value is not None and not isinstance(value, str):
        raise ValueError(
            f"row {number}: {name}: {value!r} is not text; quote it, or leave it out when unknown"
        )
    return 0 if value is None else code.get(value, 0)


def _calendar_waves(minutes: NDArray, calendar: Sequence[str]) -> list[NDArray]:
    phases = [2 * np.pi * (minutes / _CYCLE_MINUTES[name] % 1.0) for name in calendar]
    return [wave(phase) for phase in phases for wave in (np.sin, np.cos)]
