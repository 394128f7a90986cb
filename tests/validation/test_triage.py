"""Faults of the data are told from drift, and sound data from faults."""

from collections.abc import Callable

import numpy as np
import pytest

from validation.triage import UNITS, Fault, Habits, longest_run

Columns = dict[str, np.ndarray]


def sound(seed: int = 0, num_rows: int = 1000) -> Columns:
    generator = np.random.default_rng(seed)
    return {
        "heat": generator.normal(60, 9, num_rows),
        "rain": np.where(generator.random(num_rows) < 0.95, 0.0, generator.gamma(1, size=num_rows)),
        "site": generator.choice(["north", "south"], num_rows),
    }


def kinds(batch: Columns) -> list[str]:
    return [fault.kind for fault in faults(sound(1, 8000), batch)]


def faults(reference: Columns, batch: Columns) -> list[Fault]:
    return Habits.of(reference, {"site": reference["site"]}).faults(batch, {"site": batch["site"]})


def at_south(change: Callable[[np.ndarray], np.ndarray]) -> Columns:
    batch = sound()
    return batch | {"heat": np.where(batch["site"] == "south", change(batch["heat"]), batch["heat"])}


def test_sound_batches_and_drift_are_no_faults() -> None:
    assert kinds(sound()) == []
    assert kinds(sound() | {"heat": sound()["heat"] + 9}) == []
    assert kinds(sound() | {"heat": 60 + 1.5 * (sound()["heat"] - 60)}) == []
    assert kinds(sound() | {"heat": 0.9 * sound()["heat"]}) == []
    assert kinds(sound() | {"heat": np.where(np.arange(1000) % 5, sound()["heat"], np.nan)}) == []


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        (lambda heat: np.where(np.arange(len(heat)) < 500, heat, heat[500]), "stuck sensor"),
        (lambda heat: np.full(len(heat), np.nan), "dead sensor"),
        (lambda heat: (heat - 32) / 1.8, "unit change"),
        (lambda heat: heat * 1000, "unit change"),
    ],
)
def test_a_broken_sensor_is_a_fault(change: Callable[[np.ndarray], np.ndarray], kind: str) -> None:
    assert kinds(sound() | {"heat": change(sound()["heat"])}) == [kind]


@pytest.mark.parametrize(
    "change", [lambda heat: np.full(len(heat), 60.0), lambda heat: np.full(len(heat), np.nan)]
)
def test_at_one_site_too(change: Callable[[np.ndarray], np.ndarray]) -> None:
    reference, batch = sound(1, 8000), at_south(change)
    [fault] = faults(reference, batch)
    assert fault.words.startswith("heat of site south")


def test_a_site_that_falls_silent_is_a_fault_unless_it_hardly_spoke() -> None:
    reference, batch = sound(1, 8000), sound()
    batch = {name: values[batch["site"] == "north"] for name, values in batch.items()}
    assert kinds(batch) == ["missing site"]
    reference["site"][:20] = "seldom"
    assert faults(reference, sound()) == []


def test_a_standstill_is_counted_in_rows() -> None:
    assert longest_run(np.array([1.0, 2, 2, 2, 1, 1])) == 3
    assert longest_run(np.array([])) == 0


def test_every_unit_has_its_way_back() -> None:
    pairs = {(round(unit.scale, 6), round(unit.offset, 3)) for unit in UNITS}
    for unit in UNITS[len(UNITS) - 20 :]:
        assert (round(1 / unit.scale, 6), 0.0) in pairs
