"""Two real models of the tiny dataset, registered, signed, and served by real processes."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import yaml

from pipelines.job import Job, open_job
from pipelines.registry import ModelVersion, Tracker, registered_name
from pipelines.release_log import GENESIS, Action, Decision, Stage
from pipelines.serving.backend import Backend, Nursery
from pipelines.serving.requests import Request
from pipelines.settings import Settings
from tests.tiny_rollout import windows_of, write_dataset, write_policy
from validation.gates import Outcome

if TYPE_CHECKING:
    from pipelines.checkpoint import Checkpoint


@pytest.fixture(scope="session")
def nursery(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nursery]:
    """Starts a model's process in a fraction of a second once its imports are done."""
    nursery = Nursery(tmp_path_factory.mktemp("nursery") / "log", threads=1)
    yield nursery
    nursery.close()


@pytest.fixture(scope="session")
def canary_files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Dataset file and policy. How fast two tiny models are on a busy machine decides nothing here."""
    folder = tmp_path_factory.mktemp("canary")
    policy = write_policy(folder)
    content = yaml.safe_load(policy.read_text())
    content["canary"]["max_latency_ratio"] = 1e6
    policy.write_text(yaml.safe_dump(content, sort_keys=False))
    return write_dataset(folder, "canary"), policy


@pytest.fixture(scope="session")
def job(
    nursery: Nursery,
    canary_files: tuple[Path, Path],
    store: Settings,
    tracker: Tracker,
    trained: "dict[str, Checkpoint]",
) -> Job:
    """A pilot: version 1 (dense) is live, version 2 (a selector fitted to it) is held by the gate."""
    job = open_job(*canary_files, replace(store, threads=1), lambda *_: None)
    live = register(job, trained["dense"], 0.0)
    tried = register(job, trained["selector"], 0.25)
    started = decision(live, Action.BOOTSTRAP, Stage.NONE, Stage.PILOT)
    head = job.log.append(started, GENESIS).hash
    held = decision(tried, Action.HOLD, Stage.PILOT, Stage.PILOT, Outcome.HOLD)
    job.log.append(held, head)
    return job


@pytest.fixture(scope="session", name="register")
def register_fixture() -> "Callable[[Job, Checkpoint, float], ModelVersion]":
    return register


def register(job: Job, checkpoint: "Checkpoint", density: float) -> ModelVersion:
    with job.tracker.run(f"train {checkpoint.mode}", "training") as run_id:
        return job.tracker.register_version(
            job.spec.name,
            checkpoint.weights,
            checkpoint.weights.with_name("config.json"),
            checkpoint.sha256,
            checkpoint.snapshot,
            run_id,
            density=density,
        )


@pytest.fixture(scope="session", name="decision")
def decision_fixture() -> Callable[..., Decision]:
    return decision


def decision(
    version: ModelVersion, action: Action, before: Stage, after: Stage, outcome: Outcome | None = None
) -> Decision:
    """Of ada's, about the dataset whose model it is."""
    return Decision(
        dataset=version.name.removeprefix(registered_name("")),
        action=action,
        from_stage=before,
        to_stage=after,
        version=version.version,
        checkpoint=version.checkpoint,
        snapshot=version.snapshot,
        actor="ada",
        reason="for the tests",
        outcome=outcome,
        verdict="v" if outcome else None,
        policy="p" if outcome else None,
    )


@pytest.fixture(scope="session")
def questions(job: Job, tmp_path_factory: pytest.TempPathFactory) -> list[Request]:
    """The windows of the test part as requests."""
    from pipelines.serving.windows import requests_of

    windows = windows_of(job.spec, tmp_path_factory.mktemp("questions"))
    return list(requests_of(windows, "test"))


@pytest.fixture(scope="session")
def folders(job: Job, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Verified model folders of what is live and of what is on trial."""
    from pipelines.serving.service import Trial, chosen_versions

    live, tried = chosen_versions(job, Trial())
    assert tried is not None
    places = [tmp_path_factory.mktemp(name) for name in ("live", "tried")]
    downloads = [
        job.tracker.download_version(version, place).parent
        for version, place in zip((live, tried), places, strict=True)
    ]
    return downloads[0], downloads[1]


@pytest.fixture(scope="session")
def incumbent(nursery: Nursery, folders: tuple[Path, Path]) -> Backend:
    return Backend(nursery, folders[0])


@pytest.fixture(scope="session")
def candidate(nursery: Nursery, folders: tuple[Path, Path]) -> Backend:
    return Backend(nursery, folders[1])
