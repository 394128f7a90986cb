"""Starts services in order, each once it answers, keeps them running, and stops them in reverse.

Each runs under a guard of its own (flows.guard), which ends it with everything it started when this process
goes, however it goes. This process imports nothing heavy: it has to outlive what it watches.
"""

import contextlib
import os
import subprocess
import sys
import time
import urllib.request
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from flows.guard import GRACE_S, adopt_orphans, end_descendants
from validation.errors import InputError

Say = Callable[[str], None]
_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))
LOOK_EVERY_S = 1.0
MAX_SILENCE_S = 90.0
"""A service that did not answer for so long is ended and started again: two cores at full load take 20."""
MAX_ENDS, ENDS_WITHIN_S = 3, 600.0
"""A service that ended so often within that time will not mend by itself."""


@dataclass(frozen=True)
class Service:
    """A program that runs until it is stopped, and answers at `health` once it can be used."""

    name: str
    command: Sequence[str]
    environ: Mapping[str, str]
    health: str
    """URL that answers 200."""
    log: Path
    address: str = ""
    """What people open; empty for none."""
    starts_within_s: float = 300.0


@dataclass
class _Running:
    service: Service
    guard: "subprocess.Popen[bytes]"
    answered: float = field(default_factory=time.monotonic)
    looked: float = 0.0
    ends: deque[float] = field(default_factory=lambda: deque(maxlen=MAX_ENDS))


class Supervisor:
    """Everything started through it is gone when its `with` block ends."""

    def __init__(self, say: Say) -> None:
        self._say = say
        self._running: list[_Running] = []

    def __enter__(self) -> "Supervisor":
        adopt_orphans()
        return self

    def __exit__(self, *_: object) -> None:
        while self._running:
            _stop(self._running[-1].guard)
            self._running.pop()
        end_descendants()

    def run(self, name: str, command: Sequence[str], environ: Mapping[str, str], log: Path) -> None:
        """A program that does its work and ends. Raises InputError with its last words where it failed."""
        guard = _guarded(command, environ, log)
        try:
            if guard.wait() != 0:
                raise InputError(f"{name} failed: {_last_words(log)} (all of it: {log})")
        finally:
            _stop(guard)

    def start(self, service: Service) -> None:
        """Start it and wait until it answers. Raises InputError where it ends or stays silent instead."""
        running = _Running(service, _guarded(service.command, service.environ, service.log))
        self._running.append(running)
        _wait_until_healthy(running)
        self._say(f"{service.name}: {service.address or 'ready'}")

    def watch(self) -> None:
        """Restart what ends or falls silent, for ever. Raises InputError when one keeps ending."""
        while True:
            time.sleep(LOOK_EVERY_S)
            for running in self._running:
                if why := _trouble(running):
                    self._restart(running, why)

    def _restart(self, running: _Running, why: str) -> None:
        service = running.service
        _stop(running.guard)
        end_descendants(spared=frozenset(each.guard.pid for each in self._running))
        running.ends.append(time.monotonic())
        if len(running.ends) == MAX_ENDS and running.ends[-1] - running.ends[0] < ENDS_WITHIN_S:
            raise InputError(
                f"{service.name} ended {MAX_ENDS} times within {ENDS_WITHIN_S / 60:g} minutes; "
                f"last: {_last_words(service.log)} (all of it: {service.log})"
            )
        self._say(f"{service.name}: {why}; starting it again")
        running.guard = _guarded(service.command, service.environ, service.log)
        running.answered = time.monotonic() + service.starts_within_s - MAX_SILENCE_S


def _guarded(command: Sequence[str], environ: Mapping[str, str], log: Path) -> "subprocess.Popen[bytes]":
    """Its guard has a session of its own: a Ctrl-C meant for us must not end servers before the worker."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as output:
        return subprocess.Popen(
            [sys.executable, "-m", "flows.guard", *command],
            env=dict(environ),
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )


def _stop(guard: "subprocess.Popen[bytes]") -> None:
    """Closing the pipe tells the guard that its starter is done."""
    assert guard.stdin is not None
    guard.stdin.close()
    try:
        guard.wait(GRACE_S + 10)
    except subprocess.TimeoutExpired:
        guard.kill()  # what it kept becomes ours, and is ended by whoever called
        guard.wait()


def _wait_until_healthy(running: _Running) -> None:
    service, started = running.service, time.monotonic()
    while not _answers(service.health):
        code = running.guard.poll()
        if code is not None:
            raise InputError(
                f"{service.name} did not start: {_last_words(service.log)} (all of it: {service.log})"
            )
        if time.monotonic() - started > service.starts_within_s:
            raise InputError(
                f"{service.name} did not answer at {service.health} within {service.starts_within_s:g} s; "
                f"see {service.log}"
            )
        time.sleep(0.1)
    running.answered = time.monotonic()


def _trouble(running: _Running) -> str:
    """Why a service has to be started again, or ''. Asked often, it asks the service every ten looks."""
    code, now = running.guard.poll(), time.monotonic()
    if code is not None:
        return f"it ended (exit status {code})"
    if now - running.looked > 10 * LOOK_EVERY_S:
        running.looked = now
        if _answers(running.service.health):
            running.answered = now
    return f"no answer for {MAX_SILENCE_S:g} s" if now - running.answered > MAX_SILENCE_S else ""


def _answers(url: str) -> bool:
    try:
        with _DIRECT.open(url, timeout=5) as answer:
            return answer.status == 200
    except OSError:
        return False


def _last_words(log: Path) -> str:
    """The last line of a log that says anything."""
    with contextlib.suppress(OSError):
        lines = [line.strip() for line in log.read_text(errors="replace").splitlines()]
        return next((line for line in reversed(lines) if any(map(str.isalpha, line))), "it said nothing")
    return "it said nothing"


def keep_last(log: Path) -> None:
    """The log of the run before is kept beside the new one; older ones go."""
    if log.exists():
        os.replace(log, log.with_name(f"{log.name}.1"))
