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
from pipelines.serving.backend import LOAD_SECONDS, Backend, Nursery, Unanswered
from pipelines.serving.comparison import Comparison, pair_folder, serving_folder
from pipelines.serving.ladder import Ladder, Move
from pipelines.serving.router import Candidate, Router
from pipelines.serving.store import Exchanges
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


@contextmanager
def open_service(job: Job, trial: Trial, on_move: Callable[[Move], None]) -> Iterator[Service]:
    """Start the processes of a dataset's models, ready to answer; all end with the block, however it ends.

    Raises InputError where nothing is live, files are not as signed, or the incumbent does not load.
    """
    live, candidate = chosen_versions(job, trial)
    folder = serving_folder(job.settings, job.spec.name)
    with exclusive_lock(folder / ".lock", wait=False):
        incumbent_files = _fetch(job, live, folder)
        nursery = Nursery(folder / "workers.log", job.settings.threads)
        try:
            incumbent = Backend(nursery, incumbent_files)
            tried = _on_trial(job, live, candidate, trial, nursery) if candidate else None
            _wait(incumbent, live, folder)
            router = Router(incumbent, tried, Comparison.of(job.spec), on_move)
            yield Service(router, live, candidate)
        finally:
            nursery.close()


def chosen_versions(job: Job, trial: Trial) -> tuple[ModelVersion, ModelVersion | None]:
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


def _fetch(job: Job, version: ModelVersion, folder: Path) -> Path:
    """The version's files, taken from the registry anew and verified."""
    place = folder / "models" / f"version-{version.version}"
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
    if exchanges.last_move > ladder.last.sequence:
        lost = f"holds {ladder.last.sequence} moves of {exchanges.last_move}"
        raise InputError(f"{folder / 'ladder.jsonl'}: {lost}; restore it from a backup")
    if trial.again:
        ladder.again(trial.again)
        exchanges.note_move(ladder.last.sequence)
    ladder.go_on_with(exchanges.pairs(ladder.last.sequence))
    backend = Backend(nursery, _fetch(job, version, serving_folder(settings, name)))
    return Candidate(backend, ladder, exchanges, trial.deadline_s)


def _wait(incumbent: Backend, live: ModelVersion, folder: Path) -> None:
    started = time.monotonic()
    try:
        incumbent.wait_until_ready(LOAD_SECONDS)
    except Unanswered as error:
        seconds = time.monotonic() - started
        said = f"{live.name} version {live.version}: it cannot be served ({error}, after {seconds:.0f} s)"
        raise InputError(f"{said}; see {folder / 'workers.log'}") from None
