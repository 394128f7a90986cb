"""Versions, verdicts, people and logs that the tests of releases share."""

import os
from pathlib import Path

from pipelines.actors import Actor
from pipelines.decisions import apply_verdict, bootstrap
from pipelines.registry import ModelVersion, Tracker, registered_name
from pipelines.release_log import ReleaseLog
from pipelines.release_store import DatabaseStore, FileStore
from pipelines.rollout import RolloutState, current_state
from validation.gates import Evidence, Outcome, Verdict

DATASET = "flights"
ADA, BOB = Actor(name="ada", account="ada"), Actor(name="bob", account="bob")
MONITOR = Actor(name="monitor", account="dankai", automatic=True)


def log_in(folder: Path, name: str = "release_log") -> ReleaseLog:
    """A log in a file of `folder`, its keys beside it."""
    return ReleaseLog(FileStore(folder / f"{name}.jsonl"), folder / "keys", environ={})


def log_at(address: str, folder: Path) -> ReleaseLog:
    """A log in a database, its keys in `folder`."""
    return ReleaseLog(DatabaseStore(address), folder / "keys", environ={})


def version(number: int, dataset: str = DATASET) -> ModelVersion:
    return ModelVersion(
        name=registered_name(dataset), version=number, checkpoint=f"weights {number}", snapshot="data"
    )


def verdict(stage: str, number: int, outcome: Outcome = Outcome.PASS, champion: int | None = None) -> Verdict:
    references = {} if champion is None else {"champion": f"weights {champion}"}
    evidence = Evidence.model_validate(
        {
            "checkpoint": f"weights {number}",
            "snapshot": "data",
            "task_metric": "auroc",
            "references": references,
        }
    )
    return Verdict.model_validate(
        {"stage": stage, "outcome": outcome, "checks": (), "policy_digest": "policy", "evidence": evidence}
    )


def started(log: ReleaseLog, dataset: str = DATASET) -> RolloutState:
    """Version 1 live in the pilot."""
    return bootstrap(log, current_state(log, dataset), version(1, dataset), ADA, "the dense incumbent")


def climbed(log: ReleaseLog, dataset: str = DATASET) -> RolloutState:
    """Steady, with version 2 from the pilot and version 3 live since training."""
    state = started(log, dataset)
    for stage, number in (("pilot", 2), ("training", 3), ("edge", 3)):
        state = apply_verdict(log, state, version(number, dataset), verdict(stage, number), ADA)
    return state


def register_versions(tracker: Tracker, dataset: str, number: int = 4) -> None:
    """Registered versions without files: aliases need no more."""
    name = registered_name(dataset)
    tracker._client.create_registered_model(name)
    for _ in range(number):
        tracker._client.create_model_version(name, "runs:/none/model")


def plain_environment(**more: str) -> dict[str, str]:
    """This process's environment without what names other stores."""
    return {**os.environ, "MLFLOW_TRACKING_URI": "", "DANKAI_DATABASE_URL": "", **more}
