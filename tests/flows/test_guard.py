"""Whatever ends a service, its guard, or who started the guard: no process of the family is left."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

# Starts a service under a guard; the service has a child in a session of its own.
STARTER = """
import os, sys, time
from pathlib import Path
from flows.guard import adopt_orphans
from flows.supervisor import _guarded
adopt_orphans()
_guarded([sys.executable, "-c", *sys.argv[1:]], os.environ, Path(sys.argv[2] + ".log"))
time.sleep(600)
"""
SERVICE = """
import subprocess, sys, time
from pathlib import Path
child = subprocess.Popen([sys.executable, "-c", sys.argv[2]], start_new_session=True)
Path(sys.argv[1]).write_text(f"{child.pid}.")
time.sleep(600)
"""
CHILD = "import time; time.sleep(600)"
STUBBORN = f"import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); {CHILD}"
IMPATIENT = "import flows.guard; flows.guard.GRACE_S = 0.3; flows.guard.main()"


@pytest.fixture
def starter(tmp_path: Path) -> Iterator["subprocess.Popen[bytes]"]:
    """A process that keeps a family under guard."""
    command = [sys.executable, "-c", STARTER, SERVICE, str(tmp_path / "child"), CHILD]
    process = subprocess.Popen(command)
    yield process
    process.kill()
    process.wait()


def family_of(process: "subprocess.Popen[bytes]", child: Path) -> list[psutil.Process]:
    """What the process started, once the last of them is there: itself, guard and service, child."""
    until(lambda: child.is_file() and child.read_text().endswith("."))
    return [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]


def until(holds: Callable[[], bool], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def is_gone(process: psutil.Process) -> bool:
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


@pytest.mark.parametrize("killed", ["starter", "service"])
def test_of_a_killed_family_nobody_is_left(
    killed: str, starter: "subprocess.Popen[bytes]", tmp_path: Path
) -> None:
    first, *others = family_of(starter, tmp_path / "child")
    assert len(others) == 3
    (first if killed == "starter" else others[1]).kill()
    until(lambda: all(map(is_gone, others)))


def test_a_service_dies_with_its_guard_and_its_children_become_those_of_the_guards_starter(
    starter: "subprocess.Popen[bytes]", tmp_path: Path
) -> None:
    first, guard, service, child = family_of(starter, tmp_path / "child")
    guard.kill()
    until(lambda: is_gone(service))
    until(lambda: child.ppid() == first.pid)
    child.kill()


def test_who_does_not_end_when_asked_is_killed(tmp_path: Path) -> None:
    command = [sys.executable, "-c", IMPATIENT, sys.executable, "-c", SERVICE]
    guard = subprocess.Popen([*command, str(tmp_path / "child"), STUBBORN], stdin=subprocess.PIPE)
    _, *others = family_of(guard, tmp_path / "child")
    os.kill(guard.pid, signal.SIGTERM)
    assert guard.wait(10) == 0
    assert all(map(is_gone, others))
