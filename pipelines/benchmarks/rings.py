"""A fleet of simulated devices that a bundle is rolled out to, ring by ring.

    python -m pipelines.benchmarks.rings [DEVICES] [OUT.json]     or: dankai edge rollout --simulate 50

Every device is a thread with a folder of its own, and everything in it is what runs on a device: signed
offers and archives, verification, journal, metrics, watch, going back, reports. Simulated are the machines:
their speed, the ones that fail in the middle of something and start again, the ones that hang, and the ones
whose reports lie. A self-test runs in the thread, not in processes of its own: 50 devices share the cores
of one machine here.
"""

import json
import os
import platform
import random
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO, Literal, NamedTuple

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from pipelines.benchmarks.edge_plant import HORIZON, LOOKBACK, plant_bundle, rows
from pipelines.clock import now
from pipelines.edge.agent import Agent, Options
from pipelines.edge.intake import read_lines
from pipelines.edge.metrics import Record
from pipelines.edge.offers import follow, publish
from pipelines.edge.rings import Patience, RolloutReport, Subject, ring_order, roll_out
from pipelines.edge.running import Keeper, Source
from pipelines.edge.runtime import measure_here
from pipelines.edge.stores import FolderStore, Store, StoreError
from pipelines.edge.sync import sync
from pipelines.edge.updates import installed
from pipelines.edge.verification import BundleError, read_bundle
from pipelines.files import replace_file
from pipelines.fingerprint import git_commit
from validation.errors import InputError
from validation.gates import Outcome
from validation.policy import Policy, load_policy

Kind = Literal["sound", "failing", "hanging", "lying: impossible", "lying: contradicts", "lying: all is well"]
POLICY = Path(__file__).resolve().parents[2] / "infra" / "rollout.yaml"
BACKLOG = 400
"""Windows that a device answers soon after it got a bundle; later ones come at its pace."""

HANGS_SECONDS = 15
"""A hanging device does nothing for so long, then goes on for as long."""


class Fault(Exception):
    """A simulated device went down in the middle of something."""


class Machine(NamedTuple):
    """What is simulated of one device."""

    name: str
    kind: Kind
    slowness: float
    """Seconds of sleep beside each round of its work."""


def machines(number: int, seed: int = 0) -> list[Machine]:
    """Mostly sound; in fifty, five fail again and again, two hang, three lie. Speeds spread tenfold."""
    chance = random.Random(seed)
    counts: dict[Kind, int] = {
        "failing": max(1, number // 10),
        "hanging": max(1, number // 25),
        "lying: impossible": 1,
        "lying: contradicts": 1,
        "lying: all is well": 1,
    }
    counts["sound"] = number - sum(counts.values())
    kinds: list[Kind] = [kind for kind, count in counts.items() for _ in range(count)]
    chance.shuffle(kinds)
    return [
        Machine(f"device-{place:02d}", kind, 0.05 * 10 ** chance.random()) for place, kind in enumerate(kinds)
    ]


class Device(threading.Thread):
    """One simulated device: follows offers, scores its rows, leaves reports, for ever."""

    def __init__(self, machine: Machine, folder: Path, store: FolderStore, key: Ed25519PublicKey) -> None:
        super().__init__(name=machine.name, daemon=True)
        self.machine, self.folder, self.key = machine, folder, key
        self.store: Store = _Wires(store, machine)
        self.is_over = threading.Event()
        self.ran: list[str] = []
        """Every bundle that was installed here, in order."""
        self._chance = random.Random(machine.name)
        folder.mkdir(parents=True)
        (folder / "rows.jsonl").touch()
        self._rows = rows(10**9, seed=self._chance.randrange(1000))
        self._bundle, self._windows = "", 0
        self._working: tuple[Keeper, Agent] | None = None

    def run(self) -> None:
        while not self.is_over.is_set():
            if self.machine.kind == "hanging" and time.monotonic() % (2 * HANGS_SECONDS) < HANGS_SECONDS:
                self.is_over.wait(0.2)
                continue
            with suppress(Fault, StoreError, BundleError, InputError):  # the next round is its next start
                self._round()
            self.is_over.wait(self.machine.slowness)

    def _round(self) -> None:
        follow(self.folder, self.machine.name, self.store, self.key, self._measure)
        current = installed(self.folder).current
        if not current:
            return
        if current != self._bundle:
            self._bundle, self._windows = current, 0
            self.ran.append(current)
        self._score(100 if self._windows < BACKLOG else 2)
        sync(self.folder, self.machine.name, self.store)

    def _score(self, num_windows: int) -> None:
        path = self.folder / "rows.jsonl"
        with path.open("a") as file:
            for _ in range(num_windows * HORIZON + (0 if self._windows else LOOKBACK)):
                file.write(next(self._rows) + "\n")
        keeper, agent = self._working or self._start(path)
        self._working = None  # what goes down in the middle starts anew
        for _ in agent.take(read_lines(str(path), agent.positions, follow=False)):
            keeper.look(agent)
            self._may_fail()
        self._working = keeper, agent
        self._windows += num_windows

    def _start(self, path: Path) -> tuple[Keeper, Agent]:
        keeper = Keeper(self.folder, Source(str(path), None, self.key))
        return keeper, Agent(self.folder, keeper.load(), path, Options(audit_every=1000), keeper.score)

    def _measure(self, folder: Path, key: Ed25519PublicKey) -> list[Record]:
        self._may_fail()
        return [measure_here(folder, key, repeats=5, threads=1) for _ in range(3)]

    def _may_fail(self) -> None:
        if self.machine.kind == "failing" and self._chance.random() < 0.05:
            raise Fault


class _Wires:
    """A device's store: the lies are told, and the lines of failing devices break, here."""

    def __init__(self, store: FolderStore, machine: Machine) -> None:
        self._store, self._kind = store, machine.kind
        self._chance = random.Random(machine.name)

    def open(self, name: str) -> BinaryIO | None:
        if self._kind == "failing" and self._chance.random() < 0.1:
            raise StoreError(f"{name}: broke off")
        return self._store.open(name)

    def put(self, name: str, content: bytes) -> None:
        if name.endswith("report.json") and self._kind.startswith("lying"):
            content = json.dumps(self._lie(json.loads(content))).encode()
        self._store.put(name, content)

    def names(self, prefix: str) -> list[str]:
        return self._store.names(prefix)

    def _lie(self, report: Record) -> Record:
        if self._kind == "lying: impossible":
            return report | {"latency_ms": [-1.0 for _ in report["latency_ms"]]}
        if self._kind == "lying: contradicts":
            return report | {"failed": report["windows"] + 1}
        content = self._store.open("offer.json")
        assert content is not None
        with content:
            offered = json.loads(content.read())["package"]["bundle"]
        fine = {"windows": 500, "failed": 0, "lines": 10_000, "scored": 8000, "latency_ms": [1.0] * 500}
        return report | fine | {"bundle": offered, "refused": {}}


class Scenario(NamedTuple):
    """One rollout to the fleet."""

    name: str
    bundle: Path
    first: Kind
    """What the device of the first ring is."""


class Told(NamedTuple):
    """What came of one."""

    scenario: str
    outcome: str
    rings: list[dict[str, Any]]
    had_it: int
    """Devices that ever ran the bundle."""
    on_last_green: int
    """Devices that ran, in the end, what was green before; after a PASS, the bundle itself."""
    devices: int
    seconds: float


def simulate(number: int, folder: Path, policy: Policy, tell: Callable[[str], None] = print) -> list[Told]:
    """A good bundle, then four that are bad in different ways or meet a liar first."""
    key = Ed25519PrivateKey.generate()
    store = FolderStore(folder / "store")
    (folder / "store").mkdir(parents=True)
    fleet = [Device(each, folder / each.name, store, key.public_key()) for each in machines(number)]
    for device in fleet:
        device.start()
    try:
        return [_rolled_out(each, fleet, store, key, policy, tell) for each in _scenarios(folder, key)]
    finally:
        for device in fleet:
            device.is_over.set()
        for device in fleet:
            device.join(30)


def _scenarios(folder: Path, key: Ed25519PrivateKey) -> list[Scenario]:
    built = folder / "built"
    first, better = plant_bundle(built, key, seed=1), plant_bundle(built, key, seed=2)
    scale = plant_bundle(built, key, seed=3, load_std=1e-44)
    other = plant_bundle(built, key, seed=4, load_std=1e-44)
    broken = plant_bundle(built, key, seed=5)
    return [
        Scenario("the first release", Path(first.folder), "sound"),
        Scenario("a sound bundle", Path(better.folder), "sound"),
        Scenario("no answers to live rows", Path(scale.folder), "sound"),
        Scenario("the same, and the first device says all is well", Path(other.folder), "lying: all is well"),
        Scenario("wrong answers to the golden input", _with_wrong_golden(Path(broken.folder), key), "sound"),
    ]


def _with_wrong_golden(folder: Path, key: Ed25519PrivateKey) -> Path:
    """Signed all the same: what a faulty build machine would hand out."""
    import hashlib
    import io

    import numpy as np

    from pipelines.signing import sign

    with np.load(folder / "golden.npz") as arrays:
        content = {name: arrays[name] for name in arrays.files}
    buffer = io.BytesIO()
    np.savez(buffer, **(content | {"outputs": content["outputs"] + 1}))
    replace_file(folder / "golden.npz", buffer.getvalue())
    manifest = json.loads((folder / "manifest.json").read_bytes())
    entry = {"sha256": hashlib.sha256(buffer.getvalue()).hexdigest(), "size_bytes": len(buffer.getvalue())}
    manifest["files"]["golden.npz"] = entry
    signed = json.dumps(manifest).encode()
    replace_file(folder / "manifest.json", signed)
    replace_file(folder / "manifest.sig", sign(key, "edge bundle", signed).encode())
    return folder


def _rolled_out(
    scenario: Scenario,
    fleet: Sequence[Device],
    store: FolderStore,
    key: Ed25519PrivateKey,
    policy: Policy,
    tell: Callable[[str], None],
) -> Told:
    started = time.monotonic()
    manifest, _ = read_bundle(scenario.bundle, key.public_key())
    package = publish(store, scenario.bundle, key.public_key())
    names = _in_order(fleet, package.bundle, scenario.first)
    tell(f"{scenario.name}: {package.bundle}")
    patience, subject = Patience(seconds=180, poll_seconds=0.5), Subject.of(package, manifest)
    report = roll_out(store, subject, names, policy, key, patience, tell)
    ends = {device.machine.name: installed(device.folder).current for device in fleet}
    green = report.bundle if report.outcome is Outcome.PASS else report.last_green
    return Told(
        scenario=scenario.name,
        outcome=report.outcome,
        rings=_rings(report),
        had_it=sum(package.bundle in device.ran for device in fleet),
        on_last_green=sum(bundle == green for bundle in ends.values()),
        devices=len(fleet),
        seconds=round(time.monotonic() - started, 1),
    )


def _in_order(fleet: Sequence[Device], bundle: str, first: Kind) -> list[str]:
    """The bundle's own order, but for the first device."""
    names = ring_order([device.machine.name for device in fleet], bundle)
    kinds = {device.machine.name: device.machine.kind for device in fleet}
    chosen = next(name for name in names if kinds[name] == first)
    return [chosen, *(name for name in names if name != chosen)]


def _rings(report: RolloutReport) -> list[dict[str, Any]]:
    return [
        {
            "devices": len(ring.devices),
            "outcome": ring.verdict.outcome,
            "reasons": list(ring.verdict.reasons),
            "silent": len(ring.silent),
            "set_aside": sorted(set(ring.set_aside.values())),
            "refused": len(ring.refused),
        }
        for ring in report.rings
    ]


def table(told: Sequence[Told]) -> str:
    """Markdown."""
    lines = ["| bundle | rings | ever had it | in the end on what is green | s |", "|---|---|---|---|---|"]
    for each in told:
        rings = ", ".join(f"{ring['devices']}: {ring['outcome']}" for ring in each.rings)
        green = f"{each.on_last_green} of {each.devices}"
        lines.append(f"| {each.scenario} | {rings} | {each.had_it} | {green} | {each.seconds:.0f} |")
    return "\n".join(lines)


def write(number: int, out: Path | None, policy: Path = POLICY) -> list[Told]:
    """Simulate, print the table, and write the results."""
    with tempfile.TemporaryDirectory() as folder:
        told = simulate(number, Path(folder), load_policy(policy))
    print(table(told))
    kinds = [machine.kind for machine in machines(number)]
    conditions = {
        "date": now(),
        "commit": git_commit(),
        "platform": platform.platform(),
        "cores": os.cpu_count(),
        "devices": {kind: kinds.count(kind) for kind in sorted(set(kinds))},
        "policy": load_policy(policy).digest(),
    }
    if out:
        content = {**conditions, "rollouts": [each._asdict() for each in told]}
        replace_file(out, json.dumps(content, indent=1).encode() + b"\n")
    return told


if __name__ == "__main__":
    write(int(sys.argv[1]) if sys.argv[1:] else 50, Path(sys.argv[2]) if sys.argv[2:] else None)
