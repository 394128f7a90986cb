"""After a crash between the release log and the registry, the next start makes them agree again."""

from pathlib import Path

import pytest

from pipelines.decisions import bootstrap, challenge
from pipelines.reconciliation import AliasChange, reconcile
from pipelines.registry import ModelVersion, Tracker
from pipelines.release_log import ReleaseLog
from pipelines.rollout import current_state
from tests.release_cases import ADA, MONITOR, log_in, register_versions, started, version
from validation.errors import InputError


@pytest.fixture
def log(tmp_path: Path) -> ReleaseLog:
    return log_in(tmp_path)


def release(log: ReleaseLog, tracker: Tracker, dataset: str) -> None:
    """Version 1 live, version 2 its challenger, and the registry told."""
    register_versions(tracker, dataset)
    challenge(log, started(log, dataset), version(2, dataset), MONITOR, "drift")
    reconcile(log, tracker)


def test_aliases_follow_the_log_and_a_second_look_changes_nothing(log: ReleaseLog, tracker: Tracker) -> None:
    release(log, tracker, "follow")
    assert tracker.aliases("dankai-follow") == {"champion": 1, "challenger": 2}
    assert reconcile(log, tracker) == []


def test_an_alias_moved_or_deleted_by_hand_is_put_back_and_reported(
    log: ReleaseLog, tracker: Tracker
) -> None:
    release(log, tracker, "byhand")
    name = "dankai-byhand"
    tracker.set_alias(name, "champion", 3)
    tracker.delete_alias(name, "challenger")
    tracker.set_alias(name, "edge", 4)
    tracker.set_alias(name, "somebody_elses", 4)
    assert reconcile(log, tracker) == [
        AliasChange(model=name, alias="champion", was=3, now=1, by_hand=True),
        AliasChange(model=name, alias="challenger", was=None, now=2, by_hand=True),
        AliasChange(model=name, alias="edge", was=4, now=None, by_hand=True),
    ]
    assert tracker.aliases(name) == {"champion": 1, "challenger": 2, "somebody_elses": 4}


@pytest.mark.parametrize("kept", [1, 0])
def test_a_log_that_lost_entries_is_noticed_and_no_alias_is_moved(
    log: ReleaseLog, tracker: Tracker, tmp_path: Path, kept: int
) -> None:
    dataset = f"cut{kept}"
    release(log, tracker, dataset)
    path = tmp_path / "release_log.jsonl"
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:kept]))
    if not kept:  # somebody starts over
        impostor = ModelVersion(name=f"dankai-{dataset}", version=4, checkpoint="new", snapshot="data")
        bootstrap(log, current_state(log, dataset), impostor, ADA, "a fresh start")
    with pytest.raises(InputError, match="which the release log has not; restore the log"):
        reconcile(log, tracker)
    assert tracker.aliases(f"dankai-{dataset}") == {"champion": 1, "challenger": 2}


def test_installations_that_share_a_registry_leave_each_other_alone(
    log: ReleaseLog, tracker: Tracker, tmp_path: Path
) -> None:
    release(log, tracker, "ours")
    release(log_in(tmp_path, "their_log"), tracker, "theirs")
    assert reconcile(log, tracker) == []
    assert tracker.aliases("dankai-theirs") == {"champion": 1, "challenger": 2}


def test_a_champion_whose_version_was_deleted_is_reported(log: ReleaseLog, tracker: Tracker) -> None:
    release(log, tracker, "deleted")
    tracker._client.delete_model_version("dankai-deleted", "1")
    with pytest.raises(InputError, match="cannot make version 1 champion"):
        reconcile(log, tracker)
