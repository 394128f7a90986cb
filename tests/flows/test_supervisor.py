"""Services start in order, are started again when they end or fall silent, and stop in reverse."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from tests.tiny_rollout import free_port

SUPERVISED = Path(__file__).with_name("supervised.py")


class Supervised:
    """A supervisor at work: what it says, and the processes below it."""

    def __init__(self, folder: Path, *kinds: str) -> None:
        (folder / "ports").write_text(" ".join(str(free_port()) for _ in kinds))
        self._journal = folder / "journal"
        self.process = subprocess.Popen(
            [sys.executable, str(SUPERVISED), str(folder), *kinds], stdout=subprocess.PIPE, text=True
        )

    def says(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def journal(self) -> list[str]:
        """What the services noted, in order."""
        return self._journal.read_text().splitlines()

    def below(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)


@contextmanager
def supervised(folder: Path, *kinds: str) -> Iterator[Supervised]:
    running = Supervised(folder, *kinds)
    try:
        yield running
    finally:
        running.process.kill()
        running.process.communicate()


def test_they_start_in_order_and_stop_in_reverse_and_nothing_is_left(tmp_path: Path) -> None:
    with supervised(tmp_path, "well", "second", "third") as running:
        assert [running.says() for _ in range(4)] == ["well: ready", "second: ready", "third: ready", "up"]
        below = running.below()
        assert len(below) == 6
        running.process.terminate()
        assert running.process.wait(30) == 0
    assert running.journal() == [
        *(f"{each} started" for each in ("well", "second", "third")),
        *(f"{each} ended" for each in ("third", "second", "well")),
    ]
    assert [process for process in below if process.is_running()] == []


def test_one_that_was_killed_starts_again_and_the_others_go_on(tmp_path: Path) -> None:
    with supervised(tmp_path, "well", "second") as running:
        assert [running.says() for _ in range(3)][-1] == "up"
        victim = next(process for process in running.below() if "well" in process.cmdline())
        service = victim.children()[0] if victim.children() else victim
        service.kill()
        assert running.says() == "well: it ended (exit status 137); starting it again"
        running.process.terminate()
        assert running.process.wait(30) == 0
    assert running.journal().count("second started") == 1


def test_one_that_no_longer_answers_starts_again(tmp_path: Path) -> None:
    with supervised(tmp_path, "mute") as running:
        assert [running.says() for _ in range(2)][-1] == "up"
        assert running.says() == "mute: no answer for 1 s; starting it again"


def test_one_that_keeps_ending_stops_everything_in_one_line(tmp_path: Path) -> None:
    with supervised(tmp_path, "well", "short") as running:
        lines = [running.says() for _ in range(6)]
        assert lines[3:5] == ["short: it ended (exit status 3); starting it again"] * 2
        assert lines[5].startswith("refused: short ended 3 times within 10 minutes; last: it said nothing")
        assert running.process.wait(30) == 2
    assert running.journal()[-1] == "well ended"


def test_one_that_does_not_start_is_told_with_its_last_words(tmp_path: Path) -> None:
    with supervised(tmp_path, "well", "dead") as running:
        assert running.says() == "well: ready"
        said = f"refused: dead did not start: no room at the inn (all of it: {tmp_path / 'dead.log'})"
        assert running.says() == said
        assert running.process.wait(30) == 2
    assert running.journal() == ["well started", "well ended"]
