"""What is done to a running operation, for real: blocks that begin with the harm and end with it healed."""

import os
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from tests import postgres
from tests.operated import Operation, operation, until
from tests.stalling_proxy import StallingProxy

UP = (sys.executable, "-m", "tests.faults.patient_up")
DISK_MIB = 64
"""Free on the small disk at first."""


@dataclass
class Site:
    """The operated pump in its folder, started and started again with the same environment."""

    folder: Path
    environ: dict[str, str]
    over_network: bool = False
    """The worker reaches the servers by proxies that can stall."""
    two_schedulers: bool = False
    """A second Prefect server works on the same database."""
    operations: list[Operation] = field(default_factory=list)
    proxies: list[StallingProxy] = field(default_factory=list)
    _stack: ExitStack = field(default_factory=ExitStack)

    @property
    def home(self) -> Path:
        return self.folder / "home"

    @property
    def servers(self) -> Operation:
        """Asks Prefect and MLflow, and runs commands."""
        return self.operations[0]

    @property
    def schedulers(self) -> list[Operation]:
        return self.operations[:2] if self.two_schedulers else self.operations[:1]

    def start(self) -> None:
        parts = ("prefect", "mlflow") if self.over_network else ()
        self._add(operation(self.folder, *parts, program=UP, **self.environ))
        if self.over_network:
            self._add(operation(self.folder, "worker", program=UP, **self.environ, **self._proxied()))
        if self.two_schedulers:
            self._add(operation(self.folder / "second", "prefect", program=UP, **self.environ))

    def stop(self) -> None:
        """As Ctrl-C does, worker first."""
        for each in reversed(self.operations):
            each.stop()
        self._forget()

    def kill(self) -> None:
        """kill -9 of every `dankai up`."""
        for each in self.operations:
            each.process.kill()
        self._forget()

    def family(self) -> list[psutil.Process]:
        return [process for each in self.operations for process in each.family()]

    def running(self, words: str) -> psutil.Process:
        """The process whose command line holds the words."""
        found = []
        for each in self.operations:
            try:
                found.append(each.running(words))
            except StopIteration:
                continue
        return found[0]

    def _add(self, started: AbstractContextManager[Operation]) -> None:
        self.operations.append(self._stack.enter_context(started))

    def _forget(self) -> None:
        self._stack.close()
        self.operations.clear()

    def _proxied(self) -> dict[str, str]:
        reach = {}
        for name in ("PREFECT_API_URL", "MLFLOW_TRACKING_URI"):
            scheme, host, rest = self.servers.environ[name].split(":")
            port, slash, path = rest.partition("/")
            self.proxies.append(StallingProxy(int(port)))
            reach[name] = f"{scheme}:{host}:{self.proxies[-1].port}{slash}{path}"
        return reach


Harm = Callable[[Site], AbstractContextManager[Any]]


def killed(words: str) -> Harm:
    """kill -9 of the process of these words; `dankai up` mends it."""

    @contextmanager
    def harm(site: Site) -> Iterator[None]:
        site.running(words).kill()
        time.sleep(1)
        yield

    return harm


@contextmanager
def database_killed(site: Site) -> Iterator[None]:
    """kill -9 of PostgreSQL, which is started again at once."""
    postgres.kill_and_restart(site.environ["DANKAI_DATABASE_URL"])
    time.sleep(1)
    yield


@contextmanager
def everything_stopped(site: Site) -> Iterator[None]:
    """Ctrl-C, and `dankai up` again."""
    family = site.family()
    site.stop()
    _restarted(site, family)
    yield


@contextmanager
def everything_killed(site: Site) -> Iterator[None]:
    """kill -9 of `dankai up`, and `dankai up` again."""
    family = site.family()
    site.kill()
    _restarted(site, family)
    yield


def _restarted(site: Site, family: list[psutil.Process]) -> None:
    _, left = psutil.wait_procs(family, 30)
    assert not left, f"processes are left: {left}"
    site.start()


def lasting(harm: Callable[[Site], AbstractContextManager[Any]], seconds: float) -> Harm:
    """The harm for so long from the moment on at which the retraining goes on."""

    @contextmanager
    def wrapped(site: Site) -> Iterator[None]:
        with harm(site):
            yield
            time.sleep(seconds)

    return wrapped


@contextmanager
def disk_full(site: Site) -> Iterator[None]:
    """Not a page is free where the home folder lies, also when somebody gives one back."""
    ballast, stop = site.home / "ballast", threading.Event()

    def fill() -> None:
        with ballast.open("wb", buffering=0) as file:
            while not stop.wait(0.01):
                with suppress(OSError):
                    while not stop.is_set():
                        file.write(bytes(4096))

    filling = threading.Thread(target=fill)
    filling.start()
    try:
        until(lambda: os.statvfs(site.home).f_bavail == 0)
        yield
    finally:
        stop.set()
        filling.join()
        ballast.unlink()


@contextmanager
def read_only(site: Site) -> Iterator[None]:
    """Nothing in the home folder can be opened for writing from here on."""
    _run("mount", "--bind", site.home, site.home)
    try:
        _run("mount", "-o", "remount,bind,ro", site.home)
        yield
    finally:
        _run("umount", "--lazy", site.home)


@contextmanager
def on_small_disk(home: Path) -> Iterator[None]:
    """The home folder, as it is, on a file system of its own with DISK_MIB free."""
    kept = home.rename(home.with_name("home-kept"))
    size = sum(path.stat().st_size for path in kept.rglob("*") if path.is_file()) // 1024 + DISK_MIB * 1024
    home.mkdir()
    _run("mount", "-t", "tmpfs", "-o", f"size={size}k", "tmpfs", home)
    try:
        _run("cp", "-a", f"{kept}/.", home)
        yield
    finally:
        _run("umount", "--lazy", home)


def _run(*command: object) -> None:
    subprocess.run(list(map(str, command)), check=True, capture_output=True, text=True)


@contextmanager
def network_stalled(site: Site) -> Iterator[None]:
    """What the worker and its runs send to Prefect and MLflow gets nowhere, and no answer comes."""
    with site.proxies[0].stalled(), site.proxies[1].stalled():
        yield


def clock_environ(folder: Path) -> dict[str, str]:
    """For processes whose wall clock `clock_set` moves; what they wait for still passes at its own speed."""
    library, clock = folder / "jumping_clock.so", folder / "clock"
    source = Path(__file__).with_name("jumping_clock.c")
    _run("cc", "-O2", "-shared", "-fPIC", "-o", library, source, "-ldl")
    clock.write_bytes(bytes(8))
    return {"LD_PRELOAD": str(library), "DANKAI_TEST_CLOCK": str(clock)}


def clock_set(hours: int) -> Harm:
    """The clock of everything that runs jumps, and stays there."""

    @contextmanager
    def harm(site: Site) -> Iterator[None]:
        with (site.folder / "clock").open("r+b") as clock:  # in place: the processes have it in their memory
            clock.write(struct.pack("q", hours * 3600))
        yield

    return harm
