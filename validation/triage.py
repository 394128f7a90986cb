"""Faults of the data that look like drift: to be repaired at the source, never to be trained on.

stuck sensor    a column that moved stands still, in all rows or in those of one site
dead sensor     a column that was known is missing, in all rows or in those of one site
unit change     a column says the same in another unit: undone, it is back where it was
missing site    a site that sent rows sends none
"""

from collections.abc import Collection, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from validation.effects import finite, is_numeric, wasserstein
from validation.record import Record

Array = NDArray[Any]
Columns = Mapping[str, Array]

FEWEST_EXPECTED = 30  # rows of a site that were to be expected: that none came is no accident
LONGER = 5.0  # times the longest standstill of the reference
DEAD = 0.99  # share of missing values in the batch
ALIVE = 0.5  # and at most this much in the reference
FAR = 1.0  # standard deviations from the reference before a unit is suspected
NEAR = 0.25  # of that distance at most may be left when the suspected change is undone


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


def find_faults(
    reference: Columns, batch: Columns, sites: Mapping[str, tuple[Array, Array]], ignore: Collection[str] = ()
) -> list[Fault]:
    """Every fault of the batch.

    `sites` gives, for each column that tells sites apart, the site of every row of (reference, batch); rows
    are in order of time. Columns to `ignore` are no sensors: outcomes, categories.
    """
    sensors = [name for name in reference if name not in ignore and is_numeric(reference[name])]
    missing = [fault for column, pair in sites.items() for fault in _missing_sites(column, *pair)]
    found = [fault for name in sensors for fault in _of_sensor(name, reference[name], batch[name], sites)]
    return [*missing, *found]


def _missing_sites(column: str, old: Array, new: Array) -> Iterator[Fault]:
    """Sites of which so many rows were to be expected that their absence is no accident."""
    names, counts = np.unique(old.astype(str), return_counts=True)
    present = set(np.unique(new.astype(str)))
    for name, count in zip(names, counts, strict=True):
        expected = len(new) * count / len(old)
        if name not in present and expected >= FEWEST_EXPECTED:
            words = f"no row of {column} {name}, where {expected:.0f} were to be expected"
            yield Fault(kind="missing site", subject=f"{column}={name}", words=words)


def _of_sensor(
    name: str, old: Array, new: Array, sites: Mapping[str, tuple[Array, Array]]
) -> Iterator[Fault]:
    """In all rows; and, where nothing is wrong with those, in the rows of each site."""
    whole = _broken(name, old, new) or _other_unit(name, old, new)
    if whole is not None:
        yield whole
        return
    for column, (old_sites, new_sites) in sites.items():
        for site in np.unique(new_sites.astype(str)):
            here = new[new_sites.astype(str) == site]
            if len(here) >= FEWEST_EXPECTED:
                broken = _broken(f"{name} of {column} {site}", old[old_sites.astype(str) == site], here)
                if broken is not None:
                    yield broken


def _broken(name: str, old: Array, new: Array) -> Fault | None:
    """A sensor that says nothing any more, or always the same."""
    known_old, known_new = finite(old), finite(new)
    if not len(old) or len(known_old) / len(old) < ALIVE or not len(new):
        return None
    if len(known_new) / len(new) <= 1 - DEAD:
        share = 1 - len(known_old) / len(old)
        words = f"{name} is missing in {1 - len(known_new) / len(new):.0%} of the rows ({share:.0%} before)"
        return Fault(kind="dead sensor", subject=name, words=words)
    before, after = longest_run(known_old), longest_run(known_new)
    if after > LONGER * before and after >= FEWEST_EXPECTED:
        words = f"{name} stood still for {after} rows, {before} at the most before"
        return Fault(kind="stuck sensor", subject=name, words=words)
    return None


def longest_run(values: Array) -> int:
    """Most equal values in a row."""
    if not len(values):
        return 0
    ends = np.concatenate([np.nonzero(np.diff(values))[0] + 1, [len(values)]])
    return int(np.diff(ends, prepend=0).max())


def _other_unit(name: str, old: Array, new: Array) -> Fault | None:
    """A change that brings the column back near to the reference when it is undone."""
    known_old, known_new = finite(old), finite(new)
    if not len(known_old) or not len(known_new) or known_old.std() == 0:
        return None
    distance = wasserstein(known_old, known_new)
    if distance < FAR and abs(np.log(max(known_new.std(), 1e-12) / known_old.std())) < 1:
        return None
    undone = [wasserstein(known_old, (known_new - unit.offset) / unit.scale) for unit in UNITS]
    best = int(np.argmin(undone))
    if undone[best] > NEAR * max(distance, FAR):
        return None
    words = f"{name} looks like {UNITS[best].words}: {distance:.2g} standard deviations away, "
    words += f"{undone[best]:.2g} when that is undone"
    return Fault(kind="unit change", subject=name, words=words)
