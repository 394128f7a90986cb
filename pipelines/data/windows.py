"""Windows of a table as arrays for a model. What was not known at a window's cutoff is not in it.

Shape letters: B windows, T steps (lookback + horizon), N rows of the table, F numeric inputs, C categorical
inputs, O targets. A window is named by its cutoff: the row of the table that comes first after it.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from pipelines.data.preprocessing import LEAD, Preprocessing, calendar_waves, plausible
from pipelines.data.snapshot import Snapshot, read_snapshot
from pipelines.data.spec import DatasetSpec

if TYPE_CHECKING:
    import polars as pl

NEVER = np.iinfo(np.int64).max
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
    parts           int16 [N], number of each row's part in part_names; -1 from the split's end on
    """

    def __init__(
        self,
        snapshot: Snapshot,
        spec: DatasetSpec,
        preprocessing: Preprocessing,
        table: "pl.DataFrame | None" = None,
    ) -> None:
        """`table` is the snapshot's, where it is in memory already."""
        self.snapshot, self.spec, self.preprocessing = snapshot, spec, preprocessing
        self.table = table = read_snapshot(snapshot) if table is None else table
        self.time_us = table["time"].to_physical().to_numpy()
        self.offsets = _offsets(table)
        self.values, self.present = _numeric(table, preprocessing, self.time_us)
        self.known_at_us = _known_at(table, spec, preprocessing)
        self.codes = _codes(table, preprocessing)
        self.targets, self.target_present = _targets(table, spec, self.values, self.present)
        self.parts, self.part_names = _parts(spec, self.time_us, self.offsets)

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
        ranges = list(self._cutoff_ranges(part))
        spread = np.arange if self.horizon else _from_the_end
        found = [spread(first, last + 1, stride) for first, last in ranges if first <= last]
        if not found or not sum(map(len, found)):
            raise self.spec.refuse("lookback", self._why_no_window(part))
        return np.concatenate(found).astype(np.int64)

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
        return self.table[name].to_numpy()

    def rows_of(self, part: str) -> "pl.DataFrame":
        """The rows of one part: a month to be validated, a batch to be compared for drift."""
        return self.table.filter(self.parts == self._part_number(part))

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
    parts, _ = _parts(spec, table["time"].to_physical().to_numpy(), _offsets(table))
    return table.filter(parts == 0)


def refuse_unusable_split(windows: Windows) -> None:
    """Raise InputError when a part has no window, or no positive label where one is needed to judge."""
    judged = windows.part_names if windows.spec.task == "event" else ("test",)
    label = windows.spec.target[0] if windows.spec.task == "event" else windows.spec.label
    for part in windows.part_names:
        windows.cutoffs(part)
        rows = windows.parts == windows.part_names.index(part)
        if label and part in judged and not (windows.column(label)[rows] == 1).any():
            field = f"split.{part}" if part in ("validation", "test") else "split"
            fix = "move the boundaries so that every part has some"
            raise windows.spec.refuse(field, f"the {part} part has no row with {label} = 1: {fix}")


def _from_the_end(first: int, stop: int, stride: int) -> np.ndarray:
    """stop - 1, stop - 1 - stride, ... while not below `first`, in ascending order."""
    return np.arange(stop - 1, first - 1, -stride)[::-1]


def _offsets(table: "pl.DataFrame") -> np.ndarray:
    lengths = table["entity"].rle().struct.field("len").to_numpy()
    return np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])


def _numeric(
    table: "pl.DataFrame", preprocessing: Preprocessing, time_us: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """float32 [N, F] and bool [N, F]"""
    values = np.zeros((len(table), len(preprocessing.numeric_names)), np.float32)
    present = np.ones(values.shape, bool)
    for position, scale in enumerate(preprocessing.scales):
        raw = table[scale.name].to_numpy().astype(np.float64)
        present[:, position] = plausible(raw, scale)
        values[:, position] = np.where(present[:, position], (raw - scale.mean) / scale.std, 0.0)
    waves = calendar_waves(time_us / 60e6, preprocessing.calendar)
    first = len(preprocessing.scales)
    values[:, first : first + waves.shape[1]] = waves
    if preprocessing.past_target:
        values[:, -1], present[:, -1] = _outcomes(table, preprocessing.past_target)
    return values, present


def _outcomes(table: "pl.DataFrame", target: str) -> tuple[np.ndarray, np.ndarray]:
    """float32 [N] and bool [N]: whether the event came; what is neither 0 nor 1 is unknown (0, False)."""
    raw = table[target].to_numpy()
    present = np.isin(raw, (0, 1))
    return np.where(present, raw, 0).astype(np.float32), present


def _known_at(
    table: "pl.DataFrame", spec: DatasetSpec, preprocessing: Preprocessing
) -> dict[int, np.ndarray]:
    """The instant from which on each late input, and the past outcome, is known."""
    names = preprocessing.numeric_names
    late = {names.index(name): spec.late.known_at for name in spec.late.columns} if spec.late else {}
    if preprocessing.past_target and spec.target_known_at:
        late[names.index(preprocessing.past_target)] = spec.target_known_at
    return {position: table[at].to_physical().fill_null(NEVER).to_numpy() for position, at in late.items()}


def _codes(table: "pl.DataFrame", preprocessing: Preprocessing) -> np.ndarray:
    """int32 [N, C]"""
    import polars as pl

    codes = np.zeros((len(table), len(preprocessing.vocabularies)), np.int32)
    for position, vocabulary in enumerate(preprocessing.vocabularies):
        numbers = pl.Series(range(1, len(vocabulary.values) + 1), dtype=pl.Int32)
        column = table[vocabulary.name].replace_strict(
            pl.Series(vocabulary.values, dtype=pl.String), numbers, default=0, return_dtype=pl.Int32
        )
        codes[:, position] = column.fill_null(0).to_numpy()
    return codes


def _targets(
    table: "pl.DataFrame", spec: DatasetSpec, values: np.ndarray, present: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """float32 [N, O] and bool [N, O]: the outcome, or the z-scored inputs that are to be predicted."""
    if spec.task == "event":
        outcomes, present = _outcomes(table, spec.target[0])
        return outcomes[:, None], present[:, None]
    columns = [spec.numeric.index(name) for name in spec.target]
    return np.ascontiguousarray(values[:, columns]), np.ascontiguousarray(present[:, columns])


def _parts(spec: DatasetSpec, time_us: np.ndarray, offsets: np.ndarray) -> tuple[np.ndarray, tuple[str, ...]]:
    """The part number of every row, int16 [N], and the parts' names."""
    split = spec.split
    boundaries: list[datetime | float] = [split.validation, split.test]
    months = (
        _months(split.replay, int(time_us.max()), split.end) if isinstance(split.replay, datetime) else []
    )
    parts = np.zeros(len(time_us), np.int16)
    for start, end in pairwise(offsets):
        for number, boundary in enumerate([*boundaries, *months], start=1):
            parts[start + _first_row(boundary, time_us[start:end]) : end] = number
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
