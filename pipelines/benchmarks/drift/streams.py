"""Real series, cut into the batches in which they would have arrived, and what each is compared with.

Thresholds are chosen on some streams and reported on others: flights of May and June, the transformer's
second year and the end of the server machines' training halves choose; flights from July on and the machines'
test halves are what the report is about.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from pipelines.data.flights import flights_table
from pipelines.fingerprint import ROOT
from validation.effects import FEWEST_STRETCHES, Baseline
from validation.errors import InputError
from validation.triage import Habits

if TYPE_CHECKING:
    import polars as pl

Columns = dict[str, NDArray[Any]]
Role = Literal["choose", "report"]
_FLIGHTS = ("dep_delay", "distance", "temp", "humid", "wind_speed", "precip", "pressure", "visib")
_YEAR, _AROUND = 52, 3  # weeks


@dataclass
class Stream:
    """Columns of one series, and the number of the batch that each row belongs to."""

    name: str
    role: Role
    columns: Columns
    batch: NDArray[np.int64]
    first: int
    """The first batch that is looked at; the reference lies before it."""
    last: int
    """The last."""
    per_month: float
    categorical: tuple[str, ...] = ()
    outcome: str | None = None
    sites: tuple[str, ...] = ()
    """Columns that tell sites apart."""
    disturbed: frozenset[int] = frozenset()
    """Batches in which something labelled did happen: an alarm there is no false one."""
    is_seasonal: bool = False
    """The same weeks of the year before are known, and are the reference."""
    _baselines: dict[int, Baseline] = field(default_factory=dict)

    @property
    def batches(self) -> range:
        return range(self.first, self.last + 1)

    def rows(self, number: int) -> Columns:
        return {name: values[self.batch == number] for name, values in self.columns.items()}

    @cached_property
    def reference(self) -> Columns:
        return self._take((self.batch >= 0) & (self.batch < self.first))

    @cached_property
    def habits(self) -> Habits:
        """What its sensors and sites did in the reference."""
        sites = {name: self.reference[name] for name in self.sites}
        ignore = (*self.categorical, *([self.outcome] if self.outcome else []))
        return Habits.of(self.reference, sites, ignore)

    def baseline(self, number: int) -> Baseline:
        """What batch `number` is compared with."""
        key = number if self.is_seasonal else -1
        if key not in self._baselines:
            known = (self.batch >= 0) & (self.batch < self.first)
            if self.is_seasonal:
                known = np.abs(self.batch - (number - _YEAR)) <= _AROUND
            pieces = max(FEWEST_STRETCHES, len(np.unique(self.batch[known])))
            columns, blocks = self._take(known), np.arange(known.sum()) * pieces // known.sum()
            self._baselines[key] = Baseline.of(
                columns, blocks, self.categorical, [self.outcome] if self.outcome else []
            )
        return self._baselines[key]

    def _take(self, rows: NDArray[np.bool_]) -> Columns:
        return {name: values[rows] for name, values in self.columns.items()}


def streams(role: Role) -> Iterator[Stream]:
    """Every stream of a role. Raises InputError where the data are not at hand."""
    if role == "choose":
        yield _flights("flights, weeks of May and June", role, first=17, last=25)
        yield _transformer()
    else:
        yield _flights("flights, weeks from July", role, first=26, last=51)
        yield _flights("flights, months from July", role, first=6, last=11, by_month=True)
    yield from (_machine(path, role) for path in _machines())


def _flights(name: str, role: Role, first: int, last: int, by_month: bool = False) -> Stream:
    import polars as pl

    table = flights_table().collect()
    at = table["scheduled_at"]
    week = ((at - at.dt.truncate("1y")).dt.total_days() // 7).to_numpy()
    columns = {each: table[each].cast(pl.Float64).to_numpy() for each in (*_FLIGHTS, "late")}
    columns |= {each: table[each].to_numpy() for each in ("origin", "carrier", "dest")}
    return Stream(
        name,
        role,
        columns,
        (at.dt.month().to_numpy() - 1 if by_month else week).astype(np.int64),
        first,
        last,
        per_month=1.0 if by_month else 365 / 7 / 12,
        categorical=("origin", "carrier", "dest"),
        outcome="late",
        sites=("origin", "carrier"),
    )


def _transformer() -> Stream:
    """Oil temperature and loads by the hour, in weeks; the second year beside the first."""
    import polars as pl

    table = pl.read_csv(_data() / "ett" / "ETTh1.csv")
    week = np.arange(len(table)) // 168
    columns = {name: table[name].to_numpy() for name in table.columns[1:]}
    first, last = _YEAR + _AROUND, len(table) // 168 - 1
    return Stream("transformer, weeks", "choose", columns, week, first, last, 365 / 7 / 12, is_seasonal=True)


def _machine(path: Path, role: Role) -> Stream:
    """38 metrics by the minute, in days. Half of them train; the labels are the second half's."""
    import polars as pl

    table = pl.read_parquet(path)
    half, day = len(table) // 2, 1440
    batch = np.arange(len(table)) // day
    columns = _metrics(table)
    if role == "choose":
        first, last = int(0.6 * half / day), half // day - 1
        return Stream(f"{path.stem}, days", role, columns, batch, first, last, per_month=30.4)
    batch = (np.arange(len(table)) - half) // day + half // day
    anomalous = table["label"].fill_null(0).to_numpy() == 1
    last = (len(table) - half) // day + half // day - 1
    return Stream(
        f"{path.stem}, days",
        role,
        columns,
        batch,
        half // day,
        last,
        per_month=30.4,
        disturbed=frozenset(np.unique(batch[anomalous]).tolist()),
    )


def _metrics(table: "pl.DataFrame") -> Columns:
    import polars as pl

    names = [name for name in table.columns if name.startswith("m") and name[1:].isdigit()]
    return {name: table[name].cast(pl.Float64).to_numpy() for name in names}


def _machines() -> list[Path]:
    files = sorted((_data() / "server_machines").glob("*.parquet"))
    if not files:
        raise InputError(
            f"{_data()}: no server_machines/*.parquet: set DANKAI_DATA to the folder that holds it"
        )
    return files


def _data() -> Path:
    return Path(os.environ.get("DANKAI_DATA") or ROOT / "../shared/data").resolve()
