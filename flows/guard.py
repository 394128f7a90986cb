"""Runs one service and leaves nothing of it behind: `python -m flows.guard COMMAND ARGUMENT...`.

It ends the service when it is told to (SIGTERM), or when whoever started it is gone, killed or not: then
their end of the pipe on standard input closes. However it comes to an end, every process that the service
started, in whatever session, ends first. The standard library alone: it is up at once and stays small.
"""

import contextlib
import ctypes
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

GRACE_S = 10.0
"""What a service gets between being asked to end and being killed: time for its runs to say so."""
_SET_PDEATHSIG, _SET_CHILD_SUBREAPER = 1, 36  # linux/prctl.h


def main() -> None:
    """Exits as the service did, or with 0 when it was asked to end."""
    adopt_orphans()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    service = subprocess.Popen(
        sys.argv[1:], stdin=subprocess.DEVNULL, start_new_session=True, preexec_fn=_die_with_parent
    )
    try:
        ending = os.pidfd_open(service.pid)
        ready, _, _ = select.select([ending, sys.stdin.buffer], [], [])
        code = service.wait() if ending in ready else 0
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        _ask_to_end()
        end_descendants()
    sys.exit(code if code >= 0 else 128 - code)


def adopt_orphans() -> None:
    """From here on descendants whose parent died become children of this process, not of init."""
    _prctl(_SET_CHILD_SUBREAPER, 1)


def end_descendants(spared: frozenset[int] = frozenset()) -> None:
    """Kill every descendant of this process but the `spared` children and theirs, until none is left."""
    while left := _descendants(spared):
        for process in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        time.sleep(0.02)


def _ask_to_end() -> None:
    """SIGTERM to every descendant, and time to end well."""
    for process in _descendants(frozenset()):
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGTERM)
    deadline = time.monotonic() + GRACE_S
    while _descendants(frozenset()) and time.monotonic() < deadline:
        time.sleep(0.1)


def _descendants(spared: frozenset[int]) -> list[int]:
    """Ids of the living ones; the exit status of dead children of this process is taken."""
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            # The name, in brackets, may hold anything; state and parent follow the last bracket.
            state, parent, *_ = stat.read_text().rpartition(")")[2].split()
            process = int(stat.parent.name)
            if state != "Z":
                children.setdefault(int(parent), []).append(process)
            elif int(parent) == os.getpid() and process not in spared:
                os.waitpid(process, os.WNOHANG)
    found = [child for child in children.get(os.getpid(), []) if child not in spared]
    for process in found:  # grows as it goes
        found += children.get(process, [])
    return found


def _die_with_parent() -> None:
    _prctl(_SET_PDEATHSIG, signal.SIGKILL)


def _prctl(option: int, value: int) -> None:
    if ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl")


if __name__ == "__main__":
    main()
