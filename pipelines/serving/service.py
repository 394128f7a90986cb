"""What is served: the live version from the registry, verified, and the candidate on trial beside it."""

import getpass
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pipelines.files import exclusive_lock
from pipelines.job import Job
from pipelines.registry import ModelVersion, registered_name
from pipelines.release_log import ReleaseEntry
from pipelines.rollout import replay
from pipelines.servable import verify_model
from pipelines.serving.backend import LOAD_SECONDS, Backend, Nursery, Unanswered
from pipelines.serving.comparison import (
    Comparison,
    pair_folder,
    refuse_lost_moves,
    serving_folder,
)
from pipelines.serving.ladder import Ladder, Move
from pipelines.serving.router import Candidate, Router
from pipelines.serving.store import Exchanges
from pipelines.serving.watch import Watch
from pipelines.signing import load_key, trusted_keys
from validation.errors import InputError


@dataclass(frozen=True)
class Trial:
    """What a person may choose about a service."""

    candidate: int | None = None
    """Version on trial; None: the challenger, or what the gate holds at present."""
    deadline_s: float = 1.0
    """The most that the candidate can cost a caller."""
    again: str | None = None
    """Reason for starting the ladder anew after a breach."""


@dataclass(frozen=True)
class Service:
    """A router with its models running."""

    router: Router
    incumbent: ModelVersion
    candidate: ModelVersion | None


Versions = tuple[ModelVersion, ModelVersion | None]
"""What is live, and what is on trial."""


@contextmanager
def open_service(job: Job, trial: Trial, on_move: Callable[[Move], None]) -> Iterator[Service]:
    """Start the processes of a dataset's models, ready to answer; all end with the block, however it ends.

    Raises InputError where nothing is live, files are not as signed, or the incumbent does not load.
    """
    versions = chosen_versions(job, trial)
    with open_nursery(job) as nursery:
        yield start_service(job, nursery, versions, trial, on_move)


@contextmanager
def open_nursery(job: Job) -> Iterator[Nursery]:
    """What starts the models' processes; one at a time for a dataset. Raises InputError for a second one."""
    folder = serving_folder(job.settings, job.spec.name)
    with exclusive_lock(folder / ".lock", wait=False):
        nursery = Nursery(folder / "workers.log", job.settings.threads)
        try:
            yield nursery
        finally:
            nursery.close()


def start_service(
    job: Job,
    nursery: Nursery,
    versions: Versions,
    trial: Trial,
    on_move: Callable[[Move], None],
    before: Service | None = None,
) -> Service:
    """A service that is ready to answer, with the incumbent's process of `before` if that is the same.

    Raises InputError where files are not as signed or the incumbent does not load; `before` goes on.
    """
    live, candidate = versions
    is_same = before is not None and before.incumbent.checkpoint == live.checkpoint
    incumbent = before.router.incumbent if before and is_same else _backend(job, live, nursery)
    try:
        tried = _on_trial(job, live, candidate, trial, nursery) if candidate else None
        _wait(incumbent, live, serving_folder(job.settings, job.spec.name))
    except InputError:
        if not is_same:
            incumbent.close()
        raise
    watch = before.router.watch if before and is_same else Watch()
    answered = before.router.answered if before else None
    router = Router(incumbent, tried, Comparison.of(job.spec), on_move, watch, answered)
    return Service(router, live, candidate)


def _backend(job: Job, version: ModelVersion, nursery: Nursery) -> Backend:
    """Its files are verified before each process that loads them, not only when they were fetched."""
    model, trusted = _fetch(job, version), trusted_keys(job.settings.keys)
    return Backend(nursery, model, lambda: verify_model(model, trusted, version.checkpoint))


def chosen_versions(job: Job, trial: Trial) -> Versions:
    """What is live, and what is on trial against it if anything is. The release log says which they are."""
    entries = [entry for entry in job.log.entries() if entry.decision.dataset == job.spec.name]
    state = replay(entries, job.spec.name)
    if state.live is None:
        raise InputError(f"{job.spec.name}: nothing is live yet; run: dankai rollout run {job.spec.file}")
    waiting = state.pending.version if state.pending else None
    number = trial.candidate or waiting or state.challenger or _held(entries)
    live = _version(job, entries, state.live.champion)
    if number is None or number == live.version:
        if trial.candidate:
            raise InputError(f"{job.spec.name}: version {number} is live already; name another --candidate")
        return live, None
    return live, _version(job, entries, number)


def _held(entries: list[ReleaseEntry]) -> int | None:
    """The version that the gate held, or that waits for a person's word, if nothing came later."""
    last = entries[-1].decision
    return last.version if last.action in ("hold", "request") else None


def _version(job: Job, entries: list[ReleaseEntry], number: int) -> ModelVersion:
    """A version with the weights that the signed log names; those of the registry where it names none."""
    version = job.tracker.get_version(registered_name(job.spec.name), number)
    logged = [entry.decision.checkpoint for entry in entries if entry.decision.version == number]
    return version.model_copy(update={"checkpoint": logged[-1]}) if logged else version


def _fetch(job: Job, version: ModelVersion) -> Path:
    """The version's files, verified: the last time's if they are as signed, else the registry's."""
    place = serving_folder(job.settings, job.spec.name) / "models" / f"version-{version.version}"
    try:  # a rollback must not wait for the registry
        verify_model(place / "model", trusted_keys(job.settings.keys), version.checkpoint)
        return place / "model"
    except InputError:
        shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    return job.tracker.download_version(version, place).parent


def _on_trial(
    job: Job, live: ModelVersion, version: ModelVersion, trial: Trial, nursery: Nursery
) -> Candidate:
    settings, name = job.settings, job.spec.name
    folder = pair_folder(settings, name, live.checkpoint, version.checkpoint)
    key = load_key(settings.keys)
    ladder = Ladder(
        folder / "ladder.jsonl",
        (live.checkpoint, version.checkpoint),
        job.policy.canary,
        key,
        trusted_keys(settings.keys),
        getpass.getuser(),
    )
    exchanges = Exchanges(folder / "exchanges.sqlite3")
    refuse_lost_moves(folder, ladder.moves, exchanges.last_move)
    if trial.again:
        ladder.again(trial.again)
        exchanges.note_move(ladder.last.sequence)
    ladder.go_on_with(exchanges.pairs(ladder.last.sequence))
    return Candidate(_backend(job, version, nursery), ladder, exchanges, trial.deadline_s)


def _wait(incumbent: Backend, live: ModelVersion, folder: Path) -> None:
    started = time.monotonic()
    try:
        incumbent.wait_until_ready(LOAD_SECONDS)
    except Unanswered as error:
        seconds = time.monotonic() - started
        said = f"{live.name} version {live.version}: it cannot be served ({error}, after {seconds:.0f} s)"
        raise InputError(f"{said}; see {folder / 'workers.log'}") from None
