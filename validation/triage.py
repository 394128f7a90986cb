"""Faults of the data that look like drift: to be repaired at the source, never to be trained on.

stuck sensor    a column that moved stands still, in all rows or in those of one site
dead sensor     a column that was known is missing, in all rows or in those of one site
unit change     a column says the same in another unit: undone, it is back where it was
missing site    a site that sent rows sends none
"""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from validation.effects import MOST_ROWS, finite, is_numeric, wasserstein
from validation.record import Record
from validation.relations import evenly

Array = NDArray[Any]
Columns = Mapping[str, Array]
Places = Mapping[str, NDArray[np.int64]]

FEWEST_EXPECTED = 30  # rows of a site that were to be expected: that none came is no accident
LONGER = 5.0  # times the longest standstill of the reference
DEAD = 0.99  # share of missing values in the batch
ALIVE = 0.5  # and at most this much in the reference
FAR = (3.0, 2.0)  # standard deviations from the reference before another factor, another zero is suspected
NEAR = (
    0.1,
    0.25,
)  # of that distance at most may be left when it is undone: many a level shift is half a mile


class Fault(Record):
    """What is broken, where, in words."""

    kind: str
    subject: str
    words: str


class _Unit(NamedTuple):
    """new = old * scale + offset"""

    words: str
    scale: float
    offset: float = 0.0


_POWERS = [_Unit(f"times {10.0**power:g}", 10.0**power) for power in (-6, -3, -2, 2, 3, 6)]
_TEMPERATURES = [
    _Unit("°F instead of °C", 9 / 5, 32.0),
    _Unit("°C instead of °F", 5 / 9, -160 / 9),
    _Unit("K instead of °C", 1.0, 273.15),
    _Unit("°C instead of K", 1.0, -273.15),
    _Unit("K instead of °F", 5 / 9, 273.15 - 160 / 9),
]
_FACTORS = {
    "miles instead of kilometres": 0.621371,
    "feet instead of metres": 3.28084,
    "inches instead of millimetres": 1 / 25.4,
    "m/s instead of km/h": 1 / 3.6,
    "m/s instead of mph": 0.44704,
    "seconds instead of minutes": 60.0,
    "seconds instead of hours": 3600.0,
    "inHg instead of hPa": 0.02953,
    "psi instead of bar": 14.5038,
    "kg instead of lb": 0.453592,
}
UNITS = [
    *_POWERS,
    *_TEMPERATURES,
    *(_Unit(words, scale) for words, scale in _FACTORS.items()),
    *(_Unit(" instead of ".join(words.split(" instead of ")[::-1]), 1 / s) for words, s in _FACTORS.items()),
]


class Habit(NamedTuple):
    """How a sensor behaved in the rows of one place."""

    known_share: float
    longest_run: int


@dataclass(frozen=True)
class Habits:
    """What sensors and sites did in the reference; a batch that does otherwise is broken.

    A place is "" for all rows, or one site of a column: "site=south".
    """

    values: Mapping[str, Array]
    """Known values of each sensor, thinned."""
    of_sensors: Mapping[tuple[str, str], Habit]
    """By sensor and place."""
    shares: Mapping[str, float]
    """Share of the rows by place."""

    @classmethod
    def of(cls, columns: Columns, sites: Mapping[str, Array], ignore: Collection[str] = ()) -> "Habits":
        """`sites` gives, for each column that tells sites apart, the site of every row, in order of time.

        Columns to `ignore` are no sensors: outcomes, categories.
        """
        sensors = [name for name in columns if name not in ignore and is_numeric(columns[name])]
        places, num_rows = (
            _places(sites, len(next(iter(columns.values())))),
            len(next(iter(columns.values()))),
        )
        habits = {
            (name, place): _habit(columns[name][rows]) for name in sensors for place, rows in places.items()
        }
        values = {name: evenly(finite(columns[name]), MOST_ROWS) for name in sensors}
        return cls(values, habits, {place: len(rows) / num_rows for place, rows in places.items()})

    def faults(self, batch: Columns, sites: Mapping[str, Array]) -> list[Fault]:
        """Every fault of the batch."""
        num_rows = len(next(iter(batch.values())))
        places = _places(sites, num_rows)
        found = [*self._silent(places, num_rows)]
        for name in self.values:
            found += self._of_sensor(name, batch[name], places)
        return found

    def _silent(self, places: Places, num_rows: int) -> Iterator[Fault]:
        """Sites of which so many rows were to be expected that their absence is no accident."""
        for place, share in self.shares.items():
            if place not in places and share * num_rows >= FEWEST_EXPECTED:
                words = f"no row of {_said(place)}, where {share * num_rows:.0f} were to be expected"
                yield Fault(kind="missing site", subject=place, words=words)

    def _of_sensor(self, name: str, values: Array, places: Places) -> list[Fault]:
        """In all rows; and, where nothing is wrong with those, in the rows of each site."""
        whole = self._broken(name, "", values) or _other_unit(name, self.values[name], finite(values))
        if whole is not None:
            return [whole]
        found = [
            self._broken(name, place, values[rows])
            for place, rows in places.items()
            if len(rows) >= FEWEST_EXPECTED
        ]
        return [each for each in found if each is not None]

    def _broken(self, name: str, place: str, values: Array) -> Fault | None:
        """A sensor that says nothing any more, or always the same."""
        before, now = self.of_sensors.get((name, place)), _habit(values)
        if before is None or before.known_share < ALIVE:
            return None
        label = f"{name} of {_said(place)}" if place else name
        if now.known_share <= 1 - DEAD:
            missing, usual = 1 - now.known_share, 1 - before.known_share
            words = f"{label} is missing in {missing:.0%} of the rows ({usual:.0%} before)"
            return Fault(kind="dead sensor", subject=label, words=words)
        if now.longest_run > LONGER * before.longest_run and now.longest_run >= FEWEST_EXPECTED:
            words = f"{label} stood still for {now.longest_run} rows, {before.longest_run} at the most before"
            return Fault(kind="stuck sensor", subject=label, words=words)
        return None


def _places(sites: Mapping[str, Array], num_rows: int) -> Places:
    """Rows of every place, in order."""
    places = {"": np.arange(num_rows)}
    for column, values in sites.items():
        names, codes = np.unique(values.astype(str), return_inverse=True)
        order = np.argsort(codes, kind="stable")
        parts = np.split(order, np.cumsum(np.bincount(codes, minlength=len(names)))[:-1])
        places |= {f"{column}={name}": rows for name, rows in zip(names, parts, strict=True)}
    return places


def _said(place: str) -> str:
    return place.replace("=", " ", 1)


def _habit(values: Array) -> Habit:
    known = finite(values)
    return Habit(len(known) / len(values) if len(values) else 0.0, longest_run(known))


def longest_run(values: Array) -> int:
    """Most equal values in a row."""
    if not len(values):
        return 0
    ends = np.concatenate([np.nonzero(np.diff(values))[0] + 1, [len(values)]])
    return int(np.diff(ends, prepend=0).max())


def _other_unit(name: str, known_old: Array, known_new: Array) -> Fault | None:
    """A change that brings the column back near to the reference when it is undone."""
    if not len(known_old) or not len(known_new) or known_old.std() == 0:
        return None
    new = evenly(known_new, MOST_ROWS)
    distance = wasserstein(known_old, new)
    if distance < min(FAR):
        return None
    undone = {unit: wasserstein(known_old, (new - unit.offset) / unit.scale) for unit in UNITS}
    likely = {
        unit: left
        for unit, left in undone.items()
        if distance >= FAR[unit.offset != 0] and left <= NEAR[unit.offset != 0] * distance
    }
    if not likely:
        return None
    best = min(likely, key=likely.__getitem__)
    words = f"{name} looks like {best.words}: {distance:.2g} standard deviations away, "
    words += f"{likely[best]:.2g} when that is undone"
    return Fault(kind="unit change", subject=name, words=words)
