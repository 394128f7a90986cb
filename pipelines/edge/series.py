"""Windows out of rows, entity by entity, as the bundle's contract says.

With a horizon H, the rows of an entity are asked about in groups of H: once a lookback of rows and H more
are there, each of these H gets its score, and from what was known before them. The first lookback of rows
is context and never scored, as in the evaluation that let the model pass. Without a horizon (detection)
windows of a lookback follow one another, and every row of one is scored. Either way a row is scored once at
most.
"""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from pipelines.edge.intake import Row
from pipelines.edge.rows import Fields, Reading

MAX_ENTITIES = 10_000
"""Rows of further ones are refused: memory is bounded."""
SET_BACK_AFTER = 16
"""So many rows in a row before the last one's time: the clock that stamps them was set back."""


class Shape(NamedTuple):
    """What a bundle asks of its windows; rows kept under one shape fit every bundle of the same."""

    lookback: int
    horizon: int
    fields: Fields

    @classmethod
    def of(cls, manifest: Mapping[str, Any], preprocessing: Mapping[str, Any]) -> "Shape":
        contract = manifest["contract"]
        return cls(contract["lookback"], contract["horizon"], Fields.of(preprocessing))

    @property
    def asked(self) -> int:
        """Rows scored in a window, its last."""
        return self.horizon or self.lookback

    @property
    def kept(self) -> int:
        """Rows of a window that are the next one's past."""
        return self.lookback if self.horizon else 0


def reads_of(shape: Shape, ignored: tuple[str, ...]) -> dict[str, Any]:
    """How rows are read, for the journal; `read_as` is its inverse."""
    return {"lookback": shape.lookback, "horizon": shape.horizon, "fields": shape.fields, "ignored": ignored}


def read_as(reads: Mapping[str, Any]) -> tuple[Shape, tuple[str, ...]]:
    """The shape and the ignored fields that `reads_of` wrote down."""
    numbers, texts, outcome = reads["fields"]
    fields = Fields(tuple(numbers), tuple(texts), outcome)
    return Shape(reads["lookback"], reads["horizon"], fields), tuple(reads["ignored"])


class Series:
    """The rows of one entity that a window still needs."""

    def __init__(self, rows: list[Row], is_begun: bool = False, late: int = 0) -> None:
        self.rows, self.is_begun, self.late = rows, is_begun, late

    def waiting(self, shape: Shape) -> list[Row]:
        """Rows that have no answer yet, and are no mere context."""
        return self.rows[shape.kept if self.is_begun else 0 :]


class Windows:
    """The series of every entity."""

    def __init__(self, shape: Shape) -> None:
        self.shape = shape
        self._series: dict[str, Series] = {}

    def push(self, row: Row) -> tuple[list[Row], list[Row]]:
        """A window that is whole now, else []; and rows that never will be in one, as time was set back.

        Raises ValueError for a row that is earlier than the one before, and for one entity too many.
        """
        series = self._series.get(row.entity)
        if series is None:
            if len(self._series) >= MAX_ENTITIES:
                raise ValueError(f"entity: more than {MAX_ENTITIES} of them")
            series = self._series[row.entity] = Series([])
        given_up = self._in_order(series, row)
        series.rows.append(row)
        if len(series.rows) < self.shape.kept + self.shape.asked:
            return [], given_up
        window = list(series.rows)
        del series.rows[: self.shape.asked]
        series.is_begun = True
        return window, given_up

    def _in_order(self, series: Series, row: Row) -> list[Row]:
        last = series.rows[-1] if series.rows else None
        if last is None or row.reading.minutes >= last.reading.minutes:
            series.late = 0
            return []
        series.late += 1
        if series.late < SET_BACK_AFTER:
            raise ValueError(f"time: earlier than line {last.line} of {last.file}; rows have to be in order")
        given_up = series.waiting(self.shape)
        series.rows, series.is_begun, series.late = [], False, 0
        return given_up

    def num_waiting(self) -> int:
        return sum(len(series.waiting(self.shape)) for series in self._series.values())

    def give_up(self) -> list[Row]:
        """Forget every row; those that had no answer yet."""
        rows = [row for series in self._series.values() for row in series.waiting(self.shape)]
        self._series = {}
        return rows

    def state(self) -> Iterator[Any]:
        """Everything, as JSON."""
        for entity, series in self._series.items():
            rows = [(row.time, *row.reading, row.file, row.line) for row in series.rows]
            yield [entity, series.is_begun, series.late, rows]

    @classmethod
    def restored(cls, shape: Shape, state: Iterator[Any]) -> "Windows":
        windows = cls(shape)
        for entity, is_begun, late, rows in state:
            windows._series[entity] = Series([_row(entity, *row) for row in rows], is_begun, late)
        return windows


def _row(
    entity: str, time: str, minutes: float, numbers: list[float], texts: list[Any], file: str, line: int
) -> Row:
    return Row(entity, time, Reading(minutes, tuple(numbers), tuple(texts)), file, line)
