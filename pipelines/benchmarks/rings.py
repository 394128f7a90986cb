"""A fleet of simulated devices that a bundle is rolled out to, ring by ring.

    python -m pipelines.benchmarks.rings [DEVICES] [OUT.json]     or: dankai edge rollout --simulate 50
    python -m pipelines.benchmarks.rings --table RESULTS.json     the table of results that are kept

Every device is a process with a folder of its own (pipelines.benchmarks.simulated_device). Rows come to all
of them at the same rate; their speeds spread tenfold. Some are killed again and again (SIGKILL) and start
anew, some stand still for a while (SIGSTOP), some lie in their reports. Nothing is told to the conductor, and
the gate is the policy's; only patience is shorter, because rows come here in seconds that take minutes there.
"""

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from pipelines.benchmarks.edge_plant import HORIZON, LOOKBACK, plant_bundle, rows
from pipelines.benchmarks.simulated_device import Kind, Machine, Place
from pipelines.clock import now
from pipelines.edge.offers import publish
from pipelines.edge.rings import Patience, RolloutReport, Subject, ring_order, roll_out
from pipelines.edge.stores import FolderStore
from pipelines.edge.updates import installed
from pipelines.edge.verification import read_bundle
from pipelines.files import replace_file
from pipelines.fingerprint import ROOT, environment, git_commit
from pipelines.signing import public_pem
from validation.gates import Outcome
from validation.policy import Policy, load_policy

POLICY = Path(__file__).resolve().parents[2] / "infra" / "rollout.yaml"
PATIENCE = Patience(quiet_seconds=90, most_seconds=900, poll_seconds=1.0)
WINDOWS_PER_SECOND = 4
"""That come to each device."""
KILLED_EVERY_SECONDS = 12
"""A failing device, on average."""
HANGS_SECONDS = 15
"""A hanging device stands still for so long, then works for as long."""
_TICK_SECONDS = 0.5


def machines(number: int, seed: int = 0) -> list[Machine]:
    """Mostly sound; in fifty, five fail again and again, two hang, three lie. Speeds spread tenfold."""
    chance = random.Random(seed)
    counts: dict[Kind, int] = {
        "failing": number // 10,
        "hanging": max(1, number // 25),
        "lying: impossible": 1,
        "lying: contradicts": 1,
        "lying: all is well": 1,
    }
    counts["sound"] = number - sum(counts.values())
    kinds: list[Kind] = [kind for kind, count in counts.items() for _ in range(count)]
    chance.shuffle(kinds)
    speeds = [10 ** chance.random() for _ in kinds]
    return [
        Machine(f"device-{place:02d}", kind, round(speed, 2), round(2.0 + 0.2 * speed, 2))
        for place, (kind, speed) in enumerate(zip(kinds, speeds, strict=True))
    ]


class Fleet:
    """The devices' processes, the rows that come to them, and what befalls them."""

    def __init__(self, number: int, folder: Path, key: Ed25519PrivateKey) -> None:
        self.machines, self.key, self.store = machines(number), key, FolderStore(folder / "store")
        (folder / "store").mkdir(parents=True)
        (folder / "trusted.pub").write_bytes(public_pem(key.public_key()))
        self.places = {
            each.name: Place(str(folder / each.name), str(folder / "store"), str(folder / "trusted.pub"))
            for each in self.machines
        }
        self.befell: Counter[str] = Counter()
        self._rows = {each.name: rows(10**9, seed=place) for place, each in enumerate(self.machines)}
        self._chance, self._is_over = random.Random(0), threading.Event()
        self._processes: dict[str, int] = {}
        self._stopped: set[str] = set()
        self._nursery = subprocess.Popen(
            [sys.executable, "-m", "pipelines.benchmarks.simulated_device"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )

    def folder(self, name: str) -> Path:
        return Path(self.places[name].folder)

    @contextmanager
    def at_work(self) -> Iterator["Fleet"]:
        """All devices run, and time passes, until the block ends."""
        passing = threading.Thread(target=self._pass_time, daemon=True)
        try:
            for each in self.machines:
                self.folder(each.name).mkdir()
                self._rows_come(each.name, LOOKBACK)
                self._start(each)
            passing.start()
            yield self
        finally:
            self._is_over.set()
            passing.join()
            for process in self._processes.values():
                with suppress(ProcessLookupError):  # one that a fault of ours ended said so
                    os.kill(process, signal.SIGKILL)
            self._nursery.communicate()

    def runs(self) -> dict[str, str]:
        """What each device has on its disk as the bundle that runs."""
        return {each.name: installed(self.folder(each.name)).current for each in self.machines}

    def had(self, bundle: str) -> int:
        """Devices that ever ran it."""
        notes = [self.folder(each.name) / "ran" for each in self.machines]
        return sum(bundle in path.read_text().split() for path in notes if path.exists())

    def _start(self, machine: Machine) -> None:
        assert self._nursery.stdin is not None
        assert self._nursery.stdout is not None
        print(json.dumps([machine, self.places[machine.name]]), file=self._nursery.stdin, flush=True)
        self._processes[machine.name] = int(self._nursery.stdout.readline())

    def _pass_time(self) -> None:
        """Rows are due by the clock: where this thread came late, more come at once."""
        began, told = time.monotonic(), 0
        while not self._is_over.wait(_TICK_SECONDS):
            due = int((time.monotonic() - began) * WINDOWS_PER_SECOND)
            for each in self.machines:
                self._rows_come(each.name, (due - told) * HORIZON)
                self._befall(each)
            told = due

    def _rows_come(self, name: str, number: int) -> None:
        lines = "".join(next(self._rows[name]) + "\n" for _ in range(number))
        with (self.folder(name) / "rows.jsonl").open("a") as file:
            file.write(lines)

    def _befall(self, machine: Machine) -> None:
        process = self._processes[machine.name]
        if machine.kind == "failing" and self._chance.random() < _TICK_SECONDS / KILLED_EVERY_SECONDS:
            os.kill(process, signal.SIGKILL)
            self.befell["killed"] += 1
            self._start(machine)
        hangs = machine.kind == "hanging" and time.monotonic() % (2 * HANGS_SECONDS) < HANGS_SECONDS
        if hangs != (machine.name in self._stopped):
            os.kill(process, signal.SIGSTOP if hangs else signal.SIGCONT)
            self._stopped ^= {machine.name}
            self.befell["stopped"] += hangs


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


def simulate(
    number: int, folder: Path, policy: Policy, tell: Callable[[str], None] = print
) -> tuple[list[Told], dict[str, int]]:
    """A good bundle, a better one, then three that are bad in different ways, one of them met by a liar
    first; and how often devices were killed and stopped meanwhile.
    """
    key = Ed25519PrivateKey.generate()
    scenarios = _scenarios(folder, key)
    with Fleet(number, folder, key).at_work() as fleet:
        told = [_rolled_out(each, fleet, policy, tell) for each in scenarios]
    return told, dict(fleet.befell)


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


def _rolled_out(scenario: Scenario, fleet: Fleet, policy: Policy, tell: Callable[[str], None]) -> Told:
    started, public = time.monotonic(), fleet.key.public_key()
    manifest, _ = read_bundle(scenario.bundle, public)
    package = publish(fleet.store, scenario.bundle, public)
    names = _in_order(fleet, package.bundle, scenario.first)
    tell(f"{scenario.name}: {package.bundle}")
    subject = Subject.of(package, manifest)
    report = roll_out(fleet.store, subject, names, policy, fleet.key, PATIENCE, tell)
    green = report.bundle if report.outcome is Outcome.PASS else report.last_green
    return Told(
        scenario=scenario.name,
        outcome=report.outcome,
        rings=_rings(report),
        had_it=fleet.had(package.bundle),
        on_last_green=_in_the_end(fleet, green),
        devices=len(fleet.machines),
        seconds=round(time.monotonic() - started, 1),
    )


def _in_the_end(fleet: Fleet, green: str) -> int:
    """Devices on whose disk it is; who said so in its report and lied gets a minute to follow."""
    deadline = time.monotonic() + 60
    while (on_it := sum(bundle == green for bundle in fleet.runs().values())) < len(fleet.machines):
        if time.monotonic() > deadline:
            break
        time.sleep(1)
    return on_it


def _in_order(fleet: Fleet, bundle: str, first: Kind) -> list[str]:
    """The bundle's own order, but for the first device."""
    names = [each.name for each in fleet.machines]
    order = ring_order(fleet.store, names, bundle, fleet.key.public_key())
    kinds = {each.name: each.kind for each in fleet.machines}
    chosen = next(name for name in order if kinds[name] == first)
    return [chosen, *(name for name in order if name != chosen)]


def _rings(report: RolloutReport) -> list[dict[str, Any]]:
    return [
        {
            "devices": len(ring.devices),
            "outcome": ring.verdict.outcome,
            "reasons": list(ring.verdict.reasons),
            "windows_of_each": ring.windows,
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
    rules, fleet = load_policy(policy), machines(number)
    with tempfile.TemporaryDirectory() as folder:
        told, befell = simulate(number, Path(folder), rules)
    print(table(told))
    kinds = Counter(machine.kind for machine in fleet)
    slowness = sorted(machine.slowness for machine in fleet)
    conditions = {
        "date": now(),
        "commit": git_commit(),
        "environment": environment().model_dump(),
        "devices": dict(sorted(kinds.items())),
        "slowness": [slowness[0], slowness[-1]],
        "windows_per_second": WINDOWS_PER_SECOND,
        "patience_seconds": {"quiet": PATIENCE.quiet_seconds, "most": PATIENCE.most_seconds},
        "policy": {"digest": rules.digest(), "rings": rules.rings.model_dump()},
        "befell": befell,
    }
    if out:
        content = {**conditions, "rollouts": [each._asdict() for each in told]}
        replace_file(out, json.dumps(content, indent=1).encode() + b"\n")
    return told


if __name__ == "__main__":
    if sys.argv[1:2] == ["--table"]:
        kept = json.loads(Path(sys.argv[2]).read_bytes())["rollouts"]
        print(table([Told(**each) for each in kept]))
    else:
        write(int(sys.argv[1]) if sys.argv[1:] else 50, Path(sys.argv[2]) if sys.argv[2:] else None)
