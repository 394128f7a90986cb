"""Forks processes that decide and die, or decide all at once; one import pays for all of them.

    python -m tests.faults.release_host crash HOME TRACKING_URI LOG MOVES
    python -m tests.faults.release_host race HOME TRACKING_URI LOG PROCESSES THREADS

LOG is a folder for files or the address of a PostgreSQL database. Answers are lines of JSON.
"""

import itertools
import json
import os
import signal
import sys
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from pipelines.approvals import approve, conclude, decline
from pipelines.decisions import apply_verdict, challenge, demote, rollback, terms_of
from pipelines.reconciliation import reconcile
from pipelines.registry import Tracker
from pipelines.release_log import ReleaseLog, Stage, StaleDecision
from pipelines.release_store import DatabaseStore, FileStore
from pipelines.rollout import RolloutState, current_state
from pipelines.settings import load_settings, quiet_environment
from tests.release_cases import ADA, BOB, MONITOR, climbed, register_versions, started, verdict, version
from validation.gates import Outcome
from validation.policy import Approval

TERMS = Approval(approvers=1, trainer_may_approve=True, expires_hours=1)
Make = Callable[[ReleaseLog, str], RolloutState]
Move = Callable[[ReleaseLog, RolloutState, str], RolloutState]


def main() -> None:
    what, home, tracking_uri, place, *rest = sys.argv[1:]
    os.environ |= {"DANKAI_HOME": home, "MLFLOW_TRACKING_URI": tracking_uri, "DANKAI_DATABASE_URL": ""}
    quiet_environment(load_settings())
    import mlflow  # noqa: F401  (before the forks)
    import sqlalchemy  # noqa: F401

    if what == "crash":
        for move in rest[0].split(","):
            crash_everywhere(move, home, place)
    else:
        race(home, place, *map(int, rest))


def log_for(place: str, name: str, home: str) -> ReleaseLog:
    """A log of its own: a file, or a table in a schema of that name."""
    if place.startswith("postgresql"):
        store: Any = DatabaseStore(f"{place}?options=-csearch_path%3D{name}")
    else:
        store = FileStore(Path(place) / f"{name}.jsonl")
    return ReleaseLog(store, Path(home) / "keys", environ={})


def tracker() -> Tracker:
    """The migrated store, without a look for dead runs."""
    from mlflow import MlflowClient

    settings = load_settings()
    uri = settings.tracking_uri
    return Tracker(MlflowClient(uri, uri), "0", uri, settings.keys)


def leave_connections(registry: Tracker) -> None:
    """After a fork: the parent's connections stay the parent's; what SQLAlchemy compiled is kept."""
    registry._client._get_registry_client().store.engine.dispose(close=False)


# Dying at every write -----------------------------------------------------------------------------


def asked(log: ReleaseLog, dataset: str) -> RolloutState:
    state = started(log, dataset)
    return apply_verdict(log, state, version(2, dataset), verdict("pilot", 2), ADA, terms_of(TERMS, "cleo"))


def challenged(log: ReleaseLog, dataset: str) -> RolloutState:
    return challenge(log, climbed(log, dataset), version(4, dataset), MONITOR, "drift")


def promoted(log: ReleaseLog, state: RolloutState, dataset: str) -> RolloutState:
    return apply_verdict(log, state, version(2, dataset), verdict("pilot", 2), ADA)


def approved(log: ReleaseLog, state: RolloutState, dataset: str) -> RolloutState:
    state = approve(log, state, BOB, "reviewed")
    return conclude(log, state, lambda _: verdict("pilot", 2), BOB)


def replaced(log: ReleaseLog, state: RolloutState, dataset: str) -> RolloutState:
    return apply_verdict(log, state, version(4, dataset), verdict("steady", 4, champion=3), ADA)


def failed(log: ReleaseLog, state: RolloutState, dataset: str) -> RolloutState:
    said = verdict("steady", 4, Outcome.FAIL, champion=3)
    return apply_verdict(log, state, version(4, dataset), said, MONITOR)


MOVES: dict[str, tuple[Make, Move]] = {
    "bootstrap": (
        lambda log, dataset: current_state(log, dataset),
        lambda log, _, dataset: started(log, dataset),
    ),
    "promote": (started, promoted),
    "request": (started, lambda log, _, dataset: asked_again(log, dataset)),
    "approve": (asked, approved),
    "decline": (asked, lambda log, state, _: decline(log, state, BOB, "not convinced")),
    "challenge": (
        climbed,
        lambda log, state, dataset: challenge(log, state, version(4, dataset), MONITOR, "drift"),
    ),
    "replace": (challenged, replaced),
    "fail": (challenged, failed),
    "demote": (climbed, lambda log, state, _: demote(log, state, Stage.TRAINING, MONITOR, "canary")),
    "rollback": (challenged, lambda log, state, _: rollback(log, state, MONITOR, "it breached its bound")),
}


def challenged_again(log: ReleaseLog, dataset: str) -> RolloutState:
    return challenge(log, current_state(log, dataset), version(4, dataset), MONITOR, "drift")


def asked_again(log: ReleaseLog, dataset: str) -> RolloutState:
    state = current_state(log, dataset)
    return apply_verdict(log, state, version(2, dataset), verdict("pilot", 2), ADA, terms_of(TERMS, "cleo"))


def crash_everywhere(move: str, home: str, place: str) -> None:
    """One child a write: it dies at that write of the move, until a child comes through alive."""
    registry, status = tracker(), 1
    make, decide = MOVES[move]
    for number in itertools.count():
        dataset = f"{move}_{number}"
        before, log = get_ready(dataset, make, registry, home, place)
        reading, writing = os.pipe()
        if (child := os.fork()) == 0:
            os.close(reading)
            leave_connections(registry)
            move_and_die(number, partial(decide, log, before, dataset), log, registry, writing)
            os._exit(0)
        os.close(writing)
        with os.fdopen(reading) as said:
            point = said.read()
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        answer = {"move": move, "dataset": dataset, "point": point, "status": status}
        print(json.dumps({**answer, "champion": before.champion, "aliases": before.aliases()}), flush=True)
        if status == 0:
            return


def get_ready(
    dataset: str, make: Make, registry: Tracker, home: str, place: str
) -> tuple[RolloutState, ReleaseLog]:
    register_versions(registry, dataset)
    if place.startswith("postgresql"):
        make_schema(place, dataset)
    log = log_for(place, dataset, home)
    state = make(log, dataset)
    reconcile(log, registry)
    return state, log


def move_and_die(
    number: int, decide: Callable[[], object], log: ReleaseLog, registry: Tracker, pipe: int
) -> None:
    real_write = os.write

    def die(point: str) -> None:
        real_write(pipe, point.encode())
        os.kill(os.getpid(), signal.SIGKILL)

    die_at_write(number, die)
    decide()
    reconcile(log, registry)


def make_schema(place: str, name: str) -> None:
    from sqlalchemy import NullPool, create_engine, text

    with create_engine(place, poolclass=NullPool).begin() as connection:
        connection.execute(text(f"CREATE SCHEMA {name}"))


def die_at_write(number: int, die: Callable[[str], None]) -> None:
    """Die just before the write of this number: a part of a line, its fsync, an SQL statement, its commit."""
    from sqlalchemy import Engine, event

    real_write, real_fsync, num_writes, unsaved = os.write, os.fsync, 0, False

    def at(point: str, first: Callable[[], object] = lambda: None) -> None:
        nonlocal num_writes
        if num_writes == number:
            first()
            die(point)
        num_writes += 1

    def write(file: int, content: bytes) -> int:
        at("before the line is written")
        at("half of the line is written", lambda: real_write(file, content[: len(content) // 2]))
        return real_write(file, content)

    def fsync(file: int) -> None:
        at("before fsync")
        real_fsync(file)

    def before_statement(_c: Any, _k: Any, statement: str, *_: Any) -> None:
        nonlocal unsaved
        if (verb := statement.split()[0].upper()) in ("INSERT", "UPDATE", "DELETE"):
            at(f"before {verb} {statement.split()[2 if verb != 'UPDATE' else 1]}")
            unsaved = True

    def before_commit(_: Any) -> None:
        nonlocal unsaved
        if unsaved:
            at("before COMMIT")
        unsaved = False

    os.write, os.fsync = write, fsync
    event.listen(Engine, "before_cursor_execute", before_statement)
    event.listen(Engine, "commit", before_commit)


# Deciding all at once -----------------------------------------------------------------------------


def race(home: str, place: str, num_processes: int, num_threads: int) -> None:
    """Everybody promotes another candidate on the same state; each process then reconciles."""
    dataset = "race"
    log = log_for(place, dataset, home)
    if place.startswith("postgresql"):
        make_schema(place, dataset)
    register_versions(tracker(), dataset)
    state = started(log, dataset)
    gate_read, gate_write = os.pipe()
    children = []
    for process in range(num_processes):
        if (child := os.fork()) == 0:
            os.close(gate_write)
            os.read(gate_read, 1)  # ends for all when the parent closes its side
            contend(log, state, dataset, process, num_threads)
            os._exit(0)
        children.append(child)
    os.close(gate_write)
    statuses = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    print(json.dumps({"statuses": statuses}), flush=True)


def contend(log: ReleaseLog, state: RolloutState, dataset: str, process: int, num_threads: int) -> None:
    answers: list[str] = []

    def promote(thread: int) -> None:
        number = 2 + thread % 3
        try:
            apply_verdict(log, state, version(number, dataset), verdict("pilot", number), ADA)
            answers.append(f"won {number}")
        except StaleDecision:
            answers.append("stale")
        except BaseException as error:
            answers.append(f"{type(error).__name__}: {error}")

    threads = [threading.Thread(target=promote, args=(number,)) for number in range(num_threads)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    reconcile(log, tracker())
    os.write(1, (json.dumps({"answers": answers}) + "\n").encode())


if __name__ == "__main__":
    main()
