"""Many decide at once: one wins, the log says so, and a writer that stalls stops nobody for long."""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from pipelines.reconciliation import reconcile
from pipelines.registry import registered_name
from pipelines.release_log import Action, ReleaseLog
from pipelines.release_store import DatabaseStore, FileStore, ReleaseStore
from pipelines.rollout import current_state
from tests.faults.back_ends import BackEnd, host
from tests.faults.release_host import log_for
from tests.postgres import new_database
from tests.release_cases import DATASET, started
from validation.errors import InputError

PROCESSES, THREADS = 5, 20


def test_of_a_hundred_promotions_at_once_one_wins_and_the_log_says_so(back_end: BackEnd) -> None:
    *answers, ended = host(back_end, "race", PROCESSES, THREADS)
    assert ended == {"statuses": [0] * PROCESSES}
    said = [word for answer in answers for word in answer["answers"]]
    [won] = [word for word in said if word.startswith("won ")]
    assert sorted(said) == ["stale"] * (PROCESSES * THREADS - 1) + [won]
    log = log_for(back_end.place, "race", str(back_end.settings.home))
    first, second = log.entries()
    assert (first.decision.action, second.decision.action) == (Action.BOOTSTRAP, Action.PROMOTE)
    state = current_state(log, "race")
    assert won == f"won {state.champion}"
    assert back_end.tracker.aliases(registered_name("race")) == state.aliases()
    assert reconcile(log, back_end.tracker) == []


def stalled(store: ReleaseStore) -> tuple[int, Callable[[], str]]:
    """A child that stops in the middle of its turn, an entry appended but the turn not over; how it ended."""
    reading, writing = os.pipe()
    if (child := os.fork()) == 0:
        try:
            with store.writing() as turn:
                turn.append(b"unfinished\n")
                os.kill(os.getpid(), signal.SIGSTOP)
            os.write(writing, b"finished")
        except BaseException as error:
            os.write(writing, str(error).encode())
        os._exit(0)
    os.close(writing)
    os.waitpid(child, os.WUNTRACED)

    def go_on() -> str:
        os.kill(child, signal.SIGCONT)
        os.waitpid(child, 0)
        with os.fdopen(reading) as said:
            return said.read()

    return child, go_on


def test_in_postgresql_a_stalled_writer_loses_its_turn_and_what_it_had_begun(
    postgres: str, tmp_path: Path
) -> None:
    database = new_database(postgres)
    _, go_on = stalled(DatabaseStore(database, lease_s=0.5))
    log = ReleaseLog(DatabaseStore(database, lease_s=10), tmp_path / "keys", environ={})
    assert started(log).champion == 1  # waited for the lease to end, no longer
    assert "does not answer" in go_on()
    assert [entry.decision.action for entry in log.entries()] == [Action.BOOTSTRAP]


def test_on_a_file_a_stalled_writer_is_named_and_nothing_is_written_beside_it(tmp_path: Path) -> None:
    child, go_on = stalled(FileStore(tmp_path / "release_log.jsonl"))
    content = (tmp_path / "release_log.jsonl").read_bytes()
    log = ReleaseLog(FileStore(tmp_path / "release_log.jsonl", lease_s=0.2), tmp_path / "keys", environ={})
    began = time.monotonic()
    with pytest.raises(
        InputError, match=rf"release_log\.jsonl: process {child} has held it for over 0.2 s; end"
    ):
        log.entries()
    assert time.monotonic() - began < 5
    assert (tmp_path / "release_log.jsonl").read_bytes() == content
    assert go_on() == "finished"


def test_in_postgresql_a_log_held_for_too_long_is_one_line(postgres: str, tmp_path: Path) -> None:
    database = new_database(postgres)
    _, go_on = stalled(DatabaseStore(database, lease_s=30))
    log = ReleaseLog(DatabaseStore(database, lease_s=0.3), tmp_path / "keys", environ={})
    with pytest.raises(InputError, match=r"another process has held it for over 0\.3 s") as caught:
        started(log, DATASET)
    assert "unused" not in str(caught.value)  # the password
    assert go_on() == "finished"
