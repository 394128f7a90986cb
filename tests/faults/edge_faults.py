"""Everything that may happen to a device, and what has to hold afterwards.

A case is a small bundle, rows with some that cannot be used, and the answers of a run that nothing
disturbed. Every fault ends in the same question: go on, and are the answers the same, each there once?
"""

import contextlib
import json
import os
import resource
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipelines import clock
from pipelines.edge import agent as agents
from pipelines.edge import journal as journals
from pipelines.edge import spool as spools
from pipelines.edge import sync as syncs
from pipelines.edge.agent import Agent, Loaded, Options, answers_of
from pipelines.edge.intake import read_lines
from pipelines.edge.runtime import EdgeModel, measure_here
from pipelines.edge.stores import FolderStore
from pipelines.edge.updates import bundle_folder, install, installed
from pipelines.edge.verification import read_bundle
from tests.faults.power import Image, PowerCut
from tests.pipelines.edge.edge_cases import KEY, built_bundle

PUBLIC = KEY.public_key()
Answers = list[dict[str, Any]]
Measured = dict[str, Any]


@dataclass(frozen=True)
class Case:
    """What is scored, with what, and what has to come out."""

    bundle: Path
    rows: Path
    model: EdgeModel
    expected: Answers

    @property
    def loaded(self) -> Loaded:
        return Loaded(self.bundle.name, self.model)


def make_case(folder: Path, num_rows: int = 230) -> Case:
    bundle = Path(built_bundle(folder).folder)
    path = folder / "rows.jsonl"
    path.write_text("".join(f"{line}\n" for line in _lines(num_rows)))
    case = Case(bundle, path, EdgeModel.load(bundle, PUBLIC), [])
    with small_steps():
        answers = scored(case, folder / "undisturbed")
    assert sum("scores" in each for each in answers) > num_rows // 2
    return Case(bundle, path, case.model, answers)


def _lines(number: int) -> Iterator[str]:
    random, start = np.random.default_rng(0), datetime(2024, 2, 28)
    for place in range(number):
        row = {"time": (start + timedelta(minutes=place)).isoformat(), "entity": "ab"[place % 2 == 0]}
        row |= {
            "load": float(random.normal(2, 4)),
            "wind": float(random.normal()),
            "site": "north",
            "late": 0,
        }
        yield "{broken" if place % 40 == 13 else json.dumps(row)


@contextmanager
def small_steps(lines: int = 16, period: int = 4) -> Iterator[None]:
    """Commits, periods and segments so small that a short run has many of them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(agents, "COMMIT_LINES", lines)
        patch.setattr(agents, "COMMIT_SECONDS", 1e9)
        for module in (agents, journals, spools, syncs):
            patch.setattr(module, "PERIOD", period)
        yield


def options() -> Options:
    return Options(segment_bytes=2000, audit_every=2, spool_bytes=6000)


def scored(case: Case, state: Path) -> Answers:
    """Run to the end of the rows from whatever `state` holds; every answer it then has."""
    agent = Agent(state, case.loaded, case.rows, options())
    for _ in agent.take(read_lines(str(case.rows), agent.positions, follow=False)):
        pass
    agent.close()
    return list(answers_of(state))


def check(case: Case, state: Path) -> None:
    """Going on from `state` gives the answers of an undisturbed run, each once."""
    assert scored(case, state) == case.expected


# Power cuts ---------------------------------------------------------------------------------------


def images_of_a_run(case: Case, place: Path) -> list[Image]:
    """The disk at every sync, rename and removal of a whole run."""
    place.mkdir(parents=True)
    with PowerCut(place).recording() as disk:
        scored(case, place / "state")
    return disk.images


def images_of_an_update(case: Case, other: Path, place: Path) -> list[Image]:
    """The same while a second bundle is installed over the first."""
    install(place / "device", case.bundle, PUBLIC, measure=quick)
    with PowerCut(place).recording() as disk:
        install(place / "device", other, PUBLIC, measure=quick)
    return disk.images


def check_update(device: Path, other: Path) -> str:
    """Old or new, whole either way, and the update can be done again; which it was."""
    before = installed(device).current
    assert before.partition("-")[0] in ("1", "2"), before
    read_bundle(bundle_folder(device, before), PUBLIC)
    after = install(device, other, PUBLIC, measure=quick)
    assert after.current.startswith("2-")
    read_bundle(bundle_folder(device, after.current), PUBLIC)
    read_bundle(bundle_folder(device, after.previous), PUBLIC)
    return before.partition("-")[0]


def quick(folder: Path, key: Any) -> list[dict[str, Any]]:
    """A self-test in this process."""
    # The peak is that of the process of all tests: what a device's own would be is measured by `self_test`.
    return [measure_here(folder, key, repeats=2, threads=1) | {"peak_memory_bytes": 80 << 20}]


def told(*_: Any) -> list[Measured]:
    """A self-test where none can be run: threads of inference do not survive a fork."""
    return [{"latency_ms": [1.0] * 20, "peak_memory_bytes": 1 << 26} for _ in range(3)]


def cuts(case: Case, place: Path) -> tuple[Path, int]:
    """A state folder whose one segment may be cut at any byte, and how many there are."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(journals, "SEGMENT_BYTES", 1 << 30)
        agent = Agent(place, case.loaded, case.rows, options()._replace(segment_bytes=1 << 30))
        for _ in agent.take(read_lines(str(case.rows), agent.positions, follow=False)):
            pass
        agent.close()
    [segment] = (place / "answers").glob("*.jsonl")
    return segment, segment.stat().st_size


# kill -9 ------------------------------------------------------------------------------------------


def killed_at(step: int, work: Callable[[], object]) -> int:
    """Fork, do `work`, and die by SIGKILL just before the `step`-th write; how the child ended."""
    child = os.fork()
    if child == 0:
        count = 0

        def armed(real: Callable) -> Callable:
            def call(*arguments: object, **named: object) -> object:
                nonlocal count
                count += 1
                if count == step:
                    os.kill(os.getpid(), signal.SIGKILL)
                return real(*arguments, **named)

            return call

        for name in ("write", "fsync", "replace", "rename", "unlink", "ftruncate"):
            setattr(os, name, armed(getattr(os, name)))
        with contextlib.suppress(BaseException):
            work()
            os._exit(0)
        os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def kills(work: Callable[[], object], check_after: Callable[[int], object], every: int = 1) -> int:
    """Kill at every (n-th) write until the work gets through; how many kills there were."""
    count, step = 0, 1
    while (ended := killed_at(step, work)) == -signal.SIGKILL:
        count += 1
        check_after(step)
        step += every
    assert ended == 0, f"the work failed by itself ({ended})"
    return count


# Full disk, clocks --------------------------------------------------------------------------------


@contextmanager
def small_disk(place: Path, size: int) -> Iterator[Callable[[], None]]:
    """A disk of `size` bytes at `place`, and how to make it large. Skips where none may be mounted."""
    place.mkdir(parents=True, exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place)]
    if os.geteuid() or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("no small disk can be mounted here: needs root")
    try:
        yield lambda: _run("mount", "-o", "remount,size=64m", str(place))
    finally:
        _run("umount", "--lazy", str(place))  # the agent that failed still holds its file


def _run(*command: str) -> None:
    subprocess.run(command, capture_output=True, check=True)


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """No file may grow beyond `size` bytes; a write that would fails as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)


@contextmanager
def jumping_clock() -> Iterator[None]:
    """The wall clock leaps by years, back and forth, at every look."""
    years = iter(int(year) for year in np.random.default_rng(0).integers(1971, 2100, 100_000))

    def leap(*_: object) -> datetime:
        return datetime(next(years), 1, 1, tzinfo=UTC)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(clock, "now", lambda: leap().isoformat())
        patch.setattr(syncs, "now", lambda: leap().isoformat())
        patch.setattr(time, "time", lambda: leap().timestamp())
        yield


def synced(case: Case, state: Path, store: Path) -> dict[str, bytes]:
    """What lies in a store after the device synced."""
    store.mkdir(parents=True, exist_ok=True)
    syncs.sync(state, "line-3", FolderStore(store))
    return {
        path.name: path.read_bytes() for path in sorted(store.rglob("*.json")) if path.name != "report.json"
    }
