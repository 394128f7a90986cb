"""One simulated device of a fleet (pipelines.benchmarks.rings), as a process of its own.

    python -m pipelines.benchmarks.simulated_device

reads one description a line from standard input, forks a device for each, and prints its process number:
what fifty devices import is imported once. In such a process everything is what runs on a device: signed
offers and archives, verification, self-test in three fresh processes, journal, metrics, watch, going back,
reports. Simulated are the machine's speed, and the lies that leave it.
"""

import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO, Literal, NamedTuple

from pipelines.edge.agent import Agent, Options
from pipelines.edge.intake import read_lines
from pipelines.edge.metrics import Record
from pipelines.edge.offers import follow
from pipelines.edge.running import Keeper, Source
from pipelines.edge.stores import FolderStore, Store, StoreError
from pipelines.edge.sync import sync
from pipelines.edge.updates import installed
from pipelines.edge.verification import BundleError
from pipelines.signing import load_public_key
from validation.errors import InputError

Kind = Literal["sound", "failing", "hanging", "lying: impossible", "lying: contradicts", "lying: all is well"]


class Machine(NamedTuple):
    """What is simulated of one device."""

    name: str
    kind: Kind
    slowness: float
    """Times the processor time that its answers take here."""
    pace_seconds: float
    """Between two rounds of its work: update, score what came, sync."""


class Place(NamedTuple):
    """Where a device finds what it works with."""

    folder: str
    store: str
    key: str
    """File of the trusted public key."""


def live(machine: Machine, place: Place) -> None:
    """Work for ever: follow offers, score the rows that come, leave reports."""
    device = Device(machine, place)
    while True:
        with suppress(StoreError, BundleError, InputError):  # its next round is its next try
            device.work()
        time.sleep(machine.pace_seconds)


class Device:
    """One device; its state is on its disk, so that it may die at any time."""

    def __init__(self, machine: Machine, place: Place) -> None:
        self._machine, self._folder = machine, Path(place.folder)
        self._key = load_public_key(Path(place.key))
        self._store: Store = _Wires(FolderStore(Path(place.store)), machine)
        self._rows = self._folder / "rows.jsonl"
        self._working: tuple[Keeper, Agent] | None = None

    def work(self) -> None:
        name = self._machine.name
        try:
            follow(self._folder, name, self._store, self._key)
            if current := installed(self._folder).current:
                _note(self._folder / "ran", current)
                self._score()
        finally:
            sync(self._folder, name, self._store)

    def _score(self) -> None:
        keeper, agent = self._working or self._start()
        for _ in agent.take(read_lines(str(self._rows), agent.positions, follow=False)):
            keeper.look(agent)
        self._working = keeper, agent

    def _start(self) -> tuple[Keeper, Agent]:
        keeper = Keeper(self._folder, Source(str(self._rows), None, self._key))
        options = Options(audit_every=1000, limits=installed(self._folder).bounds())
        return keeper, Agent(
            self._folder, keeper.load(), self._rows, options, _slowly(keeper.score, self._machine.slowness)
        )


def _slowly(score: Callable[..., Any], slowness: float) -> Callable[..., Any]:
    def slow(*asked: Any) -> Any:
        began = time.thread_time()
        scores = score(*asked)
        time.sleep((slowness - 1.0) * (time.thread_time() - began))
        return scores

    return slow


def _note(path: Path, bundle: str) -> None:
    """Every bundle that ever ran here, for the simulation to count."""
    before = path.read_text().split() if path.exists() else []
    if bundle not in before:
        path.write_text("\n".join([*before, bundle]))


class _Wires:
    """A device's store: the lies are told, and the lines of failing devices break, here."""

    def __init__(self, store: FolderStore, machine: Machine) -> None:
        self._store, self._kind = store, machine.kind
        self._chance = random.Random()

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
            return report | {"latency_ms": [-1.0]}
        if self._kind == "lying: contradicts":
            return report | {"failed": report["windows"] + 1}
        return report | self._all_is_well()

    def _all_is_well(self) -> Record:
        """Of whatever is offered, from the moment it is."""
        content = self._store.open("offer.json")
        if content is None:
            return {}
        with content:
            offer = json.loads(content.read())
        fine = {"windows": 500, "failed": 0, "lines": 10_000, "scored": 8000, "latency_ms": [1.0] * 500}
        return {"sequence": offer["sequence"], "bundle": offer["package"]["bundle"], "refused": {}} | fine


def _main() -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the dead need no burial
    for line in sys.stdin:
        child = os.fork()
        if not child:
            machine, place = json.loads(line)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            live(Machine(*machine), Place(*place))
        print(child, flush=True)


if __name__ == "__main__":
    _main()
