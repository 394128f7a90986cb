"""After a crash between the release log and the registry, the next start makes them agree again."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pipelines.registry import ModelVersion, Tracker, registered_name
from pipelines.release_log import ReleaseLog
from pipelines.rollout import AliasChange, bootstrap, challenge, current_state, reconcile
from pipelines.settings import Settings
from validation.errors import InputError


@pytest.fixture
def log(tmp_path: Path) -> ReleaseLog:
    return ReleaseLog(tmp_path / "release_log.jsonl", tmp_path / "keys", environ={})


def versions(tracker: Tracker, dataset: str) -> list[ModelVersion]:
    """Four registered versions without files: aliases need no more."""
    name = registered_name(dataset)
    tracker._client.create_registered_model(name)
    for _ in range(4):
        tracker._client.create_model_version(name, "runs:/none/model")
    return [
        ModelVersion(name=name, version=number, checkpoint=f"weights {number}", snapshot="data")
        for number in range(1, 5)
    ]


def release(log: ReleaseLog, tracker: Tracker, dataset: str) -> None:
    """Version 1 live, version 2 its challenger, and the registry told."""
    known = versions(tracker, dataset)
    state = bootstrap(log, current_state(log, dataset), known[0], "ada", "the incumbent")
    challenge(log, state, known[1], "monitor", "drift")
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
        AliasChange(model=name, alias="champion", was=3, now=1),
        AliasChange(model=name, alias="challenger", was=None, now=2),
        AliasChange(model=name, alias="edge", was=4, now=None),
    ]
    assert tracker.aliases(name) == {"champion": 1, "challenger": 2, "somebody_elses": 4}


@pytest.mark.parametrize("kept", [1, 0])
def test_a_log_that_lost_entries_is_noticed_and_no_alias_is_moved(
    log: ReleaseLog, tracker: Tracker, kept: int
) -> None:
    dataset = f"cut{kept}"
    release(log, tracker, dataset)
    log.path.write_bytes(b"".join(log.path.read_bytes().splitlines(keepends=True)[:kept]))
    if not kept:  # somebody starts over
        impostor = ModelVersion(name=f"dankai-{dataset}", version=4, checkpoint="new", snapshot="data")
        bootstrap(log, current_state(log, dataset), impostor, "eve", "a fresh start")
    with pytest.raises(InputError, match="which the release log has not; restore the log"):
        reconcile(log, tracker)
    assert tracker.aliases(f"dankai-{dataset}") == {"champion": 1, "challenger": 2}


def test_installations_that_share_a_registry_leave_each_other_alone(
    log: ReleaseLog, tracker: Tracker, tmp_path: Path
) -> None:
    release(log, tracker, "ours")
    release(ReleaseLog(tmp_path / "their_log.jsonl", tmp_path / "keys", environ={}), tracker, "theirs")
    assert reconcile(log, tracker) == []
    assert tracker.aliases("dankai-theirs") == {"champion": 1, "challenger": 2}


def test_a_champion_whose_version_was_deleted_is_reported(log: ReleaseLog, tracker: Tracker) -> None:
    release(log, tracker, "deleted")
    tracker._client.delete_model_version("dankai-deleted", "1")
    with pytest.raises(InputError, match="cannot make version 1 champion"):
        reconcile(log, tracker)


CRASH = """
import os, signal, sys
from pathlib import Path
from pipelines.settings import *
settings = load_settings(); quiet_environment(settings)
import mlflow
from pipelines.registry import ModelVersion, Tracker
from pipelines.release_log import ReleaseLog
from pipelines.rollout import *
from validation.gates import Evidence, Outcome, Verdict

folder = Path(sys.argv[1])

def die_at_write(number):
    num_writes = 0
    def counted(real):
        def write(self, *arguments):
            nonlocal num_writes
            if num_writes == number:
                os.kill(os.getpid(), signal.SIGKILL)
            num_writes += 1
            return real(self, *arguments)
        return write
    for name in ("set_alias", "delete_alias", "note_release_head"):
        setattr(Tracker, name, counted(getattr(Tracker, name)))

def promote_and_die(number):
    dataset = f"crash{number}"
    log, tracker = ReleaseLog(folder / f"{dataset}.jsonl", folder / "keys", {}), Tracker.open(settings)
    second = ModelVersion(name=f"dankai-{dataset}", version=2, checkpoint="weights 2", snapshot="data")
    evidence = Evidence(checkpoint="weights 2", snapshot="data", task_metric="auroc")
    passed = Verdict(stage="pilot", outcome=Outcome.PASS, checks=(), policy_digest="p", evidence=evidence)
    die_at_write(number)
    apply_verdict(log, current_state(log, dataset), second, passed, "rollout")
    reconcile(log, tracker)

for number in range(int(sys.argv[2])):  # one process pays for the imports, its children die
    child = os.fork()
    if child == 0:
        promote_and_die(number)
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def test_kill_9_between_any_two_writes_leaves_one_champion_and_is_put_right(
    tracker: Tracker, store: Settings, tmp_path: Path
) -> None:
    # After the log entry come champion, last_green, the challenger's end, pilot and the noted head.
    writes, before, after = 5, {"champion": 1, "challenger": 2}, {"champion": 2, "last_green": 1, "pilot": 2}
    logs = {
        f"crash{number}": ReleaseLog(tmp_path / f"crash{number}.jsonl", tmp_path / "keys", environ={})
        for number in range(writes + 1)
    }
    for dataset, log in logs.items():
        release(log, tracker, dataset)
    environ = {**os.environ, "DANKAI_HOME": str(store.home), "MLFLOW_TRACKING_URI": ""}
    command = [sys.executable, "-c", CRASH, str(tmp_path), str(writes + 1)]
    crashes = subprocess.run(command, capture_output=True, text=True, env=environ, timeout=110)
    assert crashes.stdout.split() == [str(-signal.SIGKILL)] * writes + ["0"], crashes.stderr
    assert tracker.aliases("dankai-crash0") == before
    assert tracker.aliases(f"dankai-crash{writes}") == after
    for number, (dataset, log) in enumerate(logs.items()):
        assert tracker.aliases(f"dankai-{dataset}").get("champion") == (2 if number else 1)
        assert current_state(log, dataset).champion == 2
        assert bool(reconcile(log, tracker)) == (number < writes - 1)
        assert tracker.aliases(f"dankai-{dataset}") == after
        assert tracker.release_head(f"dankai-{dataset}") == current_state(log, dataset).head
        assert reconcile(log, tracker) == []
