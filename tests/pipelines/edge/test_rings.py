"""One device, a tenth, all: what passes a ring, what stops there, and that every device ends on last_green.

Devices here follow offers as real ones do and make up what they report; the whole fleet at work is
`python -m pipelines.benchmarks.rings`.
"""

import contextlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from edge_cases import KEY, built_bundle

from pipelines.edge import rings
from pipelines.edge.offers import follow, publish, read_offer
from pipelines.edge.rings import (
    Patience,
    RolloutReport,
    Subject,
    device_limits,
    max_silent,
    ring_order,
    ring_sizes,
    roll_out,
)
from pipelines.edge.stores import FolderStore
from pipelines.edge.sync import report
from pipelines.edge.updates import go_back, installed
from pipelines.edge.verification import BundleError, read_bundle
from tests.faults.edge_faults import Measured, told
from validation.gates import Outcome
from validation.policy import load_policy

PUBLIC = KEY.public_key()
POLICY = load_policy(Path(__file__).parents[3] / "infra" / "rollout.yaml")
NAMES = [f"line-{number:02d}" for number in range(11)]
Report = dict[str, Any]
Behaviour = Callable[[Path, Report], Report | None]


class Fleet:
    """Eleven devices that work whenever the conductor waits."""

    def __init__(self, place: Path) -> None:
        (place / "store").mkdir(parents=True)
        self.store, self.place = FolderStore(place / "store"), place
        self.behaviour: dict[str, Behaviour] = {}
        self.measure: Callable[[Path, Any], list[Measured]] = told

    def work(self, _: float = 0.0) -> None:
        for name in NAMES:
            behaviour = self.behaviour.get(name, fine)
            if behaviour is hung:
                continue
            device = self.place / name
            with contextlib.suppress(BundleError):
                follow(device, name, self.store, PUBLIC, self.measure)
            if (said := behaviour(device, report(device, name))) is not None:
                self.store.put(f"devices/{name}/report.json", json.dumps(said).encode())

    def roll_out(
        self, bundle: Path, seconds: float = 30.0, patience: Patience | None = None
    ) -> RolloutReport:
        package = publish(self.store, bundle, PUBLIC)
        subject = Subject.of(package, read_bundle(bundle, PUBLIC)[0])
        patience = patience or Patience(seconds, 30.0, 0.0, self.work)
        return roll_out(self.store, subject, NAMES, POLICY, KEY, patience)

    def runs(self) -> set[str]:
        return {installed(self.place / name).current.partition("-")[0] for name in NAMES}


def fine(_: Path, said: Report) -> Report:
    """400 windows, answered in time."""
    if not said["bundle"]:
        return said
    return said | {"windows": 400, "lines": 4000, "scored": 3200, "latency_ms": [2.0] * 400}


def hung(_: Path, __: Report) -> None: ...


def failing(bundle: str) -> Callable[[Path, Report], Report]:
    """Of the bundle with that release number no window is answered."""

    def behave(device: Path, said: Report) -> Report:
        return fine(device, said) | (
            {"failed": 400, "scored": 0, "latency_ms": []} if said["bundle"].startswith(bundle) else {}
        )

    return behave


def going_back(bundle: str) -> Behaviour:
    def behave(device: Path, said: Report) -> Report:
        if said["bundle"].startswith(bundle):
            go_back(device, "9 of 100 windows without an answer")
            said = report(device, said["device"])
        return fine(device, said)

    return behave


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    parent = tmp_path_factory.mktemp("made")
    return [Path(built_bundle(parent, head_bias=bias).folder) for bias in (0.0, 0.5)]


@pytest.fixture
def fleet(made: list[Path], tmp_path: Path) -> Fleet:
    """All devices run release 1."""
    fleet = Fleet(tmp_path)
    first = fleet.roll_out(made[0])
    assert (first.outcome, first.last_green, fleet.runs()) == (Outcome.PASS, "", {"1"})
    return fleet


def test_a_sound_bundle_goes_to_one_device_then_a_tenth_then_all(fleet: Fleet, made: list[Path]) -> None:
    said = fleet.roll_out(made[1])
    assert [len(ring.devices) for ring in said.rings] == [1, 2, 11]
    assert said.outcome is Outcome.PASS
    assert fleet.runs() == {"2"}
    assert set(said.ended_on.values()) == {said.bundle}
    checked = {check.kpi for check in said.rings[0].verdict.checks}
    assert checked == {"error_rate", "latency_p99_ms", "peak_memory_bytes", "bundle_bytes"}


def test_a_bad_bundle_stops_at_the_first_ring_and_every_device_ends_on_last_green(
    fleet: Fleet, made: list[Path]
) -> None:
    had_it: set[str] = set()

    def behave(device: Path, said: Report) -> Report:
        had_it.update({said["device"]} if said["bundle"].startswith("2") else ())
        return failing("2")(device, said)

    fleet.behaviour = dict.fromkeys(NAMES, behave)
    said = fleet.roll_out(made[1])
    assert [ring.verdict.outcome for ring in said.rings] == [Outcome.FAIL]
    assert had_it == {NAMES[0]}
    assert fleet.runs() == {"1"}
    assert set(said.ended_on.values()) == {said.last_green}
    offer = read_offer(fleet.store, PUBLIC)
    assert offer is not None
    assert (offer.package.bundle, offer.devices) == (said.last_green, None)


def test_what_devices_refuse_or_take_back_by_themselves_fails(fleet: Fleet, made: list[Path]) -> None:
    fleet.behaviour = dict.fromkeys(NAMES, going_back("2"))
    said = fleet.roll_out(made[1])
    assert said.outcome is Outcome.FAIL
    assert said.rings[0].refused == {NAMES[0]: "9 of 100 windows without an answer"}
    assert fleet.runs() == {"1"}


def test_a_device_that_lies_well_lets_it_pass_its_own_ring_and_no_other(
    fleet: Fleet, made: list[Path]
) -> None:
    fleet.behaviour = {name: failing("2") for name in NAMES[1:]}  # the first says all is well
    said = fleet.roll_out(made[1])
    assert [ring.verdict.outcome for ring in said.rings] == [Outcome.PASS, Outcome.FAIL]
    assert fleet.runs() == {"1"}


@pytest.mark.parametrize("number", [1, 2])
def test_a_tenth_may_be_silent_or_impossible_and_more_may_not(
    fleet: Fleet, made: list[Path], number: int
) -> None:
    def impossible(device: Path, said: Report) -> Report:
        return fine(device, said) | {"latency_ms": [-1.0] * 400}

    fleet.behaviour |= dict.fromkeys(NAMES[-number:-1], impossible)
    fleet.behaviour[NAMES[-1]] = hung
    said = fleet.roll_out(made[1], seconds=0.2)
    last = said.rings[-1]
    assert (len(last.silent), len(last.set_aside)) == (1, number - 1)
    assert said.outcome is (Outcome.PASS if number == 1 else Outcome.HOLD)
    expected = {"2", "1"} if number == 1 else {"1"}
    assert fleet.runs() == expected  # the hung one has what it had


@pytest.mark.parametrize("place", [0, 1])
def test_in_a_small_ring_nobody_may_be_silent(fleet: Fleet, made: list[Path], place: int) -> None:
    fleet.behaviour = {NAMES[place]: hung}
    said = fleet.roll_out(made[1], seconds=0.2)
    assert (said.outcome, len(said.rings), said.rings[-1].silent) == (
        Outcome.HOLD,
        place + 1,
        (NAMES[place],),
    )
    assert fleet.runs() == {"1"}


def test_a_ring_waits_as_long_as_windows_come_in_and_too_few_never_pass(
    fleet: Fleet, made: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hundred windows at a look, ten seconds apart; patience without any lasts fifteen."""
    now, most, seen = 0.0, 0, dict.fromkeys(NAMES, 0)
    monkeypatch.setattr(rings.time, "monotonic", lambda: now)

    def work(_: float) -> None:
        nonlocal now
        now += 10.0
        fleet.work()

    def slow(device: Path, said: Report) -> Report:
        if not said["bundle"].startswith("2"):
            return fine(device, said)
        number = seen[said["device"]] = min(most, seen[said["device"]] + 100)
        return fine(device, said) | {"windows": number, "latency_ms": [2.0] * number, "scored": 8 * number}

    fleet.behaviour = dict.fromkeys(NAMES, slow)
    for answers, patience_in_all, outcome in ((367, 1e4, "HOLD"), (500, 25.0, "HOLD"), (500, 1e4, "PASS")):
        most, seen = answers, dict.fromkeys(NAMES, 0)
        said = fleet.roll_out(made[1], patience=Patience(15.0, patience_in_all, 0.0, work))
        assert said.outcome == outcome
        asked = [ring.windows for ring in said.rings]
        assert asked == [368, 184, 37][: len(asked)]  # one of the eleven may be silent
        if outcome == "HOLD":
            [timed] = [each for each in said.rings[0].verdict.reasons if "latency" in each]
            assert "are too few, 368 are needed" in timed
    assert len(said.rings) == 3


def test_rings_and_limits_are_the_policys() -> None:
    sizes = [ring_sizes(number, POLICY.rings.shares) for number in (1, 5, 50, 400)]
    assert sizes == [[1], [1, 5], [1, 5, 50], [1, 40, 400]]
    assert [max_silent(POLICY, number) for number in (1, 2, 9, 10, 50)] == [0, 0, 0, 1, 5]
    assert device_limits(POLICY)._asdict() == {
        "error_rate": 0.01,
        "latency_p99_ms": 2000.0,
        "peak_memory_bytes": float(1 << 30),
    }


def test_the_first_ring_is_another_each_time_and_of_devices_that_spoke(fleet: Fleet) -> None:
    def order(bundle: str, names: list[str] = NAMES) -> list[str]:
        return ring_order(fleet.store, names, bundle, PUBLIC)

    first = order("1-a")
    assert first == order("1-a", NAMES[::-1]) != order("2-b")
    fleet.store.put(f"devices/{first[0]}/report.json", b"{}")
    assert order("1-a") == [*first[1:], first[0]]
