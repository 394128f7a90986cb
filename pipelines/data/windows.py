"""Windows of a table as arrays for a model. What was not known at a window's cutoff is not in it.

Shape letters: B windows, T steps (lookback + horizon), N rows of the table, F numeric inputs, C categorical
inputs, O targets. A window is named by its cutoff: the row of the table that comes first after it.

A table of more than stream.WHOLE_ROWS rows is read in chunks into arrays that lie in files, of which a batch
touches the pages it needs; everything below is the same for both.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pipelines.data.preprocessing import LEAD, Preprocessing
from pipelines.data.row_arrays import arrays_of
from pipelines.data.snapshot import Snapshot, read_snapshot
from pipelines.data.spec import DatasetSpec
from pipelines.data.stream import WHOLE_ROWS, Growing, chunks
from validation.relations import evenly

if TYPE_CHECKING:
    import polars as pl

HOUR_US = 3_600_000_000
FIXED_PARTS = ("train", "validation", "test")


@dataclass(frozen=True)
class WindowBatch:
    """What a model reads and what it is asked, window by window."""

    numeric: np.ndarray
    """float32 [B, T, F], z-scored; 0 where unknown."""
    known: np.ndarray
    """float32 [B, T, F], 1 where `numeric` is known at the cutoff."""
    categorical: np.ndarray
    """int64 [B, T, C], codes; 0 where unknown."""
    target: np.ndarray
    """float32 [B, T, O]: 0/1 for events, z-scored values otherwise."""
    target_mask: np.ndarray
    """float32 [B, T, O], 1 where the model is asked: the horizon, or every step (detect)."""
    rows: np.ndarray
    """int64 [B, T], rows of the table: the way back to times, slices and labels."""
    cutoff_us: np.ndarray
    """int64 [B], the last instant the model may know, in microseconds since 1970."""


class Windows:
    """A snapshot held as contiguous arrays; a batch is a gather and a mask.

    time_us         int64 [N], microseconds since 1970
    offsets         int64 [entities + 1], first row of each entity, then the number of rows
    values          float32 [N, F]; the lead time is filled in per window
    present         bool [N, F], False where the table has no plausible value
    known_at_us     position of a numeric input known late -> int64 [N], the instant from which on it is
    codes           int32 [N, C]
    targets         float32 [N, O]; target_present is False where there is nothing to compare with
    parts           int16 [N], number of each row's part in part_names; -1 outside the split's begin and end
    """

    def __init__(
        self,
        snapshot: Snapshot,
        spec: DatasetSpec,
        preprocessing: Preprocessing,
        table: "pl.DataFrame | None" = None,
        parts: tuple[np.ndarray, tuple[str, ...]] | None = None,
    ) -> None:
        """`table` is the snapshot's, where it is in memory already; `parts` are the split's, unless given."""
        self.snapshot, self.spec, self.preprocessing = snapshot, spec, preprocessing
        self._is_large = table is None and snapshot.num_rows > WHOLE_ROWS
        self._table = None if self._is_large else read_snapshot(snapshot) if table is None else table
        self._columns: dict[str, np.ndarray] = {}
        made = self._made_of_rows()
        self.time_us = made.pop("time_us")
        self.values, self.present = made.pop("values"), made.pop("present")
        self.codes = made.pop("codes")
        self.targets, self.target_present = made.pop("targets"), made.pop("target_present")
        self.known_at_us = {int(position): at for position, at in made.items()}
        self.offsets = offsets_of(self._parts_of_table())
        self.parts, self.part_names = parts or _parts(spec, self.time_us, self.offsets)

    def _parts_of_table(self, columns: Sequence[str] | None = None) -> "Iterator[pl.DataFrame]":
        """The table, in as many parts as it takes to hold only one of them."""
        if self._table is None:
            yield from chunks(self.snapshot.uri, columns)
        else:
            yield self._table if columns is None else self._table.select(columns)

    def _growing(self) -> Growing:
        return Growing(Path(self.snapshot.uri).parent if self._is_large else None)

    def _made_of_rows(self) -> dict[str, np.ndarray]:
        """Arrays with an entry per row, by name; those of `known_at_us` by position."""
        made: dict[str, Growing] = {}
        for part in self._parts_of_table():
            for name, piece in arrays_of(part, self.spec, self.preprocessing).items():
                if name not in made:
                    made[name] = self._growing()
                made[name].add(piece)
        return {name: growing.array() for name, growing in made.items()}

    @property
    def table(self) -> "pl.DataFrame":
        """The snapshot's, whole; a large one is read for it."""
        return read_snapshot(self.snapshot) if self._table is None else self._table

    @property
    def numeric_names(self) -> tuple[str, ...]:
        return self.preprocessing.numeric_names

    @property
    def cardinalities(self) -> tuple[int, ...]:
        return self.preprocessing.cardinalities

    @property
    def num_outputs(self) -> int:
        return self.targets.shape[1]

    @property
    def lookback(self) -> int:
        return self.spec.lookback

    @property
    def horizon(self) -> int:
        return self.spec.horizon

    def cutoffs(self, part: str, stride: int | None = None) -> np.ndarray:
        """int64 [W]: cutoffs with their horizon in `part`: train, validation, test or a month like 2013-10.

        Training cutoffs are all there are, others `stride` (by default the dataset's) steps apart. Detection
        tiles each part from its end backwards, so that every step is scored once. The lookback may reach into
        the part before; no window leaves its entity. Raises InputError when there is none.
        """
        if stride is None:
            stride = 1 if part == "train" else self.lookback if not self.horizon else self.spec.stride
        spread = np.arange if self.horizon else _from_the_end
        found = [spread(first, last + 1, stride) for first, last in self.cutoff_ranges(part)]
        if not sum(map(len, found)):
            raise self.spec.refuse("lookback", self._why_no_window(part))
        return np.concatenate(found).astype(np.int64)

    def some_cutoffs(self, part: str, most: int) -> np.ndarray:
        """At most `most` of the part's cutoffs, evenly spread over it."""
        return evenly(self.cutoffs(part), most)

    def cutoff_ranges(self, part: str) -> np.ndarray:
        """int64 [entities with a window in `part`, 2]: first and last cutoff. Raises InputError when none
        has."""
        ranges = [(first, last) for first, last in self._cutoff_ranges(part) if first <= last]
        if not ranges:
            raise self.spec.refuse("lookback", self._why_no_window(part))
        return np.array(ranges, np.int64)

    def batch(self, cutoffs: np.ndarray, lookback: int | None = None) -> WindowBatch:
        """The windows at `cutoffs`; a shorter `lookback` than the dataset's leaves the oldest steps out."""
        past = self.lookback if lookback is None else lookback
        steps = np.arange(-past, self.horizon)
        rows = np.asarray(cutoffs, np.int64)[:, None] + steps
        cutoff_us = self.time_us[rows[:, past - 1]]
        known = self._known(rows, steps < 0, cutoff_us)
        numeric = self.values[rows]
        numeric[..., self._lead] = self._lead_time(rows, cutoff_us)
        target = self.targets[rows]
        scored = self._scored(rows, steps >= 0)[..., None] & self.target_present[rows]
        return WindowBatch(
            numeric=np.where(known, numeric, np.float32(0.0)),
            known=known.astype(np.float32),
            categorical=self._categorical(rows, steps < 0),
            target=target,
            target_mask=scored.astype(np.float32),
            rows=rows,
            cutoff_us=cutoff_us,
        )

    def num_scored(self, cutoffs: np.ndarray, lookback: int | None = None) -> np.ndarray:
        """float32 [T, O]: at how many of the windows at `cutoffs` a step is scored."""
        steps = np.arange(-(self.lookback if lookback is None else lookback), self.horizon)
        rows = np.asarray(cutoffs, np.int64)[:, None] + steps
        scored = self._scored(rows, steps >= 0)[..., None] & self.target_present[rows]
        return scored.sum(0, dtype=np.float32)

    def column(self, name: str) -> np.ndarray:
        """A column of the table, to be read at `WindowBatch.rows`: a slice, a label, `entity`."""
        if self._table is not None:
            return self._table[name].to_numpy()
        if name not in self._columns:
            self._columns[name] = self._read_column(name)
        return self._columns[name]

    def _read_column(self, name: str) -> np.ndarray:
        """One column of a large table; texts in the room that the longest takes, a missing one as None's
        name."""
        import polars as pl

        growing, column = self._growing(), pl.scan_parquet(self.snapshot.uri).select(pl.col(name))
        is_text = column.collect_schema()[name] == pl.String
        longest = column.select(pl.col(name).str.len_chars().max()).collect().item() if is_text else 0
        for part in self._parts_of_table([name]):
            values = part[name].to_numpy()
            growing.add(values.astype(f"<U{max(longest or 0, len('None'))}") if is_text else values)
        return growing.array()

    def rows_of(self, part: str) -> "pl.DataFrame":
        """The rows of one part: a month to be validated, a batch to be compared for drift."""
        import polars as pl

        wanted, first, found = self.parts == self._part_number(part), 0, []
        for rows in self._parts_of_table():
            found.append(rows.filter(wanted[first : first + len(rows)]))
            first += len(rows)
        return pl.concat(found)

    def known_ahead(self, names: tuple[str, ...]) -> np.ndarray:
        """bool [len(names)]: inputs that are known for the horizon too. What is made of `time` always is."""
        observed = {*self.spec.columns()} - {*self.spec.known_future}
        return np.array([name not in observed for name in names], bool)

    @property
    def _lead(self) -> int:
        return self.numeric_names.index(LEAD)

    def _known(self, rows: np.ndarray, is_past: np.ndarray, cutoff_us: np.ndarray) -> np.ndarray:
        """bool [B, T, F]"""
        known = self.present[rows] & (is_past[:, None] | self.known_ahead(self.numeric_names))
        for position, at_us in self.known_at_us.items():
            known[..., position] &= at_us[rows] <= cutoff_us[:, None]
        return known

    def _categorical(self, rows: np.ndarray, is_past: np.ndarray) -> np.ndarray:
        """int64 [B, T, C]"""
        return self.codes[rows] * (is_past[:, None] | self.known_ahead(self.spec.categorical)).astype(
            np.int64
        )

    def _lead_time(self, rows: np.ndarray, cutoff_us: np.ndarray) -> np.ndarray:
        """float [B, T]: time since the cutoff, as a share of what a window usually covers."""
        return (self.time_us[rows] - cutoff_us[:, None]) / (HOUR_US * self.preprocessing.lead.std)

    def _scored(self, rows: np.ndarray, is_future: np.ndarray) -> np.ndarray:
        """bool [B, T]: the horizon; for detection the steps in the same part as the window's last."""
        if self.horizon:
            return np.broadcast_to(is_future, rows.shape)
        return self.parts[rows] == self.parts[rows[:, -1:]]

    def _cutoff_ranges(self, part: str) -> Iterator[tuple[int, int]]:
        """First and last cutoff of `part` in each entity."""
        number = self._part_number(part)
        for start, end in pairwise(self.offsets):
            (rows,) = np.nonzero(self.parts[start:end] == number)
            if len(rows) == 0:
                continue
            first = rows[0] + (0 if self.horizon else 1)
            yield int(start + max(first, self.lookback)), int(start + rows[-1] + 1 - self.horizon)

    def _part_number(self, part: str) -> int:
        if part not in self.part_names:
            raise ValueError(f"unknown part {part!r}: known are {', '.join(self.part_names)}")
        return self.part_names.index(part)

    def _why_no_window(self, part: str) -> str:
        longest = int(np.diff(self.offsets).max())
        rows = int((self.parts == self._part_number(part)).sum())
        return (
            f"no window of {self.lookback} + {self.horizon} steps ends in the {part} part ({rows} rows; the "
            f"longest series has {longest}): shorten lookback or horizon, or move the split"
        )


def training_rows(table: "pl.DataFrame", spec: DatasetSpec) -> "pl.DataFrame":
    """The rows before the validation part: all that preprocessing and baselines may be fitted on."""
    parts, _ = _parts(spec, table["time"].to_physical().to_numpy(), offsets_of([table]))
    return table.filter(parts == 0)


def training_chunks(snapshot: Snapshot, spec: DatasetSpec) -> "Iterator[pl.DataFrame]":
    """The same of a table of any size, in parts."""
    if snapshot.num_rows <= WHOLE_ROWS:
        yield training_rows(read_snapshot(snapshot), spec)
        return
    offsets = offsets_of(chunks(snapshot.uri, ["entity"]))
    time_us, first = Growing(Path(snapshot.uri).parent), 0
    for times in chunks(snapshot.uri, ["time"]):
        time_us.add(times["time"].to_physical().to_numpy())
    parts, _ = _parts(spec, time_us.array(), offsets)
    for rows in chunks(snapshot.uri):
        yield rows.filter(parts[first : first + len(rows)] == 0)
        first += len(rows)


def refuse_unusable_split(windows: Windows) -> None:
    """Raise InputError when a part has no window, or no positive label where one is needed to judge."""
    judged = windows.part_names if windows.spec.task == "event" else ("test",)
    label = windows.spec.target[0] if windows.spec.task == "event" else windows.spec.label
    for part in windows.part_names:
        windows.cutoff_ranges(part)
        rows = windows.parts == windows.part_names.index(part)
        if label and part in judged and not (windows.column(label)[rows] == 1).any():
            field = f"split.{part}" if part in ("validation", "test") else "split"
            fix = "move the boundaries so that every part has some"
            raise windows.spec.refuse(field, f"the {part} part has no row with {label} = 1: {fix}")


def _from_the_end(first: int, stop: int, stride: int) -> np.ndarray:
    """stop - 1, stop - 1 - stride, ... while not below `first`, in ascending order."""
    return np.arange(stop - 1, first - 1, -stride)[::-1]


def offsets_of(parts: "Iterable[pl.DataFrame]") -> np.ndarray:
    """int64 [entities + 1]: first row of each entity of a table in parts, then the number of rows."""
    starts, last, num_rows = [], None, 0
    for part in parts:
        runs = part["entity"].rle().struct.unnest()
        begin = num_rows + np.concatenate([[0], np.cumsum(runs["len"].to_numpy(), dtype=np.int64)])
        is_same = num_rows > 0 and runs["value"][0] == last
        starts.append(begin[1:-1] if is_same else begin[:-1])
        last, num_rows = runs["value"][-1], int(begin[-1])
    return np.concatenate([*starts, [num_rows]])


def _parts(spec: DatasetSpec, time_us: np.ndarray, offsets: np.ndarray) -> tuple[np.ndarray, tuple[str, ...]]:
    """The part number of every row, int16 [N], and the parts' names."""
    split = spec.split
    boundaries: list[datetime | float] = [split.validation, split.test]
    months = (
        _months(split.replay, int(time_us[offsets[1:] - 1].max()), split.end)
        if isinstance(split.replay, datetime)
        else []
    )
    parts = np.zeros(len(time_us), np.int16)
    for start, end in pairwise(offsets):
        for number, boundary in enumerate([*boundaries, *months], start=1):
            parts[start + _first_row(boundary, time_us[start:end]) : end] = number
        if split.begin is not None:
            parts[start : start + _first_row(split.begin, time_us[start:end])] = -1
        if split.end is not None:
            parts[start + _first_row(split.end, time_us[start:end]) : end] = -1
    return parts, (*FIXED_PARTS, *(f"{month:%Y-%m}" for month in months))


def _months(replay: datetime, last_us: int, end: datetime | float | None) -> list[datetime]:
    """Start of each month from `replay` to the last row used."""
    months = [replay]
    while True:
        year, month = divmod(months[-1].year * 12 + months[-1].month, 12)
        following = datetime(year, month + 1, 1)
        if _microseconds(following) > last_us or (isinstance(end, datetime) and following >= end):
            return months
        months.append(following)


def _first_row(boundary: datetime | float, time_us: np.ndarray) -> int:
    """The first row of one entity that lies in the part starting at `boundary`."""
    if isinstance(boundary, datetime):
        return int(np.searchsorted(time_us, _microseconds(boundary)))
    return round(boundary * len(time_us))


def _microseconds(instant: datetime) -> int:
    return int(np.datetime64(instant, "us").astype(np.int64))
