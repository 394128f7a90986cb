"""Progress is shown for people on a terminal, and told now and then in a log."""

import io
import os
import pty
import subprocess
import sys

import pytest

from flows import progress as progress_module
from flows.progress import progress


class Clock:
    """Time that a test moves."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(progress_module, "time", clock)
    return clock


def test_a_log_gets_the_first_the_last_and_a_line_now_and_then(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    with progress() as report:
        for done in range(1, 101):
            clock.now += 0.25
            report("training", done, 100)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("training: 1/100 in 0 s")
    assert lines[-1] == "training: 100/100 in 25 s"
    assert len(lines) == 4
    assert "about " in lines[1]


def test_quiet_is_quiet(capsys: pytest.CaptureFixture[str]) -> None:
    with progress(quiet=True) as report:
        report("training", 1, 2)
    assert capsys.readouterr() == ("", "")


ON_A_TERMINAL = """
from flows.progress import progress
with progress() as report:
    for done in range(3):
        report("training dense", done + 1, 3)
"""


def test_a_terminal_gets_a_bar_with_the_count_and_the_time_left() -> None:
    """On standard error, so that what is piped stays clean."""
    outside, inside = pty.openpty()
    environ = {**os.environ, "TERM": "xterm", "COLUMNS": "120"}
    command = [sys.executable, "-c", ON_A_TERMINAL]
    done = subprocess.run(command, stderr=inside, stdout=subprocess.PIPE, env=environ, timeout=30)
    os.close(inside)
    shown = io.FileIO(outside).read(65536).decode()
    assert done.returncode == 0
    assert done.stdout == b""
    assert "training dense" in shown
    assert "3/3" in shown
    assert "left" in shown
