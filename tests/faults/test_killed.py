"""kill -9 at any moment: the same command, run again, goes on from there; never is there a second champion."""

from collections.abc import Callable
from pathlib import Path

import pytest

from pipelines.registry import Tracker
from pipelines.release_log import ReleaseLog
from pipelines.rollout import current_state
from pipelines.settings import load_settings
from tests.tiny_rollout import Ended, Preloaded, write_dataset, write_policy

Run = Callable[..., Ended]

# In the order in which a rollout comes by: each run goes on from the kill before.
MOMENTS = (
    "first before pipelines.data.snapshot:replace_file",  # table written, its record not
    "first before validation.data:_run_checkpoint",
    "first before pipelines.data.windows:Windows.__init__",
    "first after pipelines.checkpoint:replace_file",  # config written, weights not
    "first before pipelines.release_log:_append_whole",  # incumbent registered, not live
    "first after pipelines.release_log:_append_whole",  # live in the log, not in the registry
    "second before pipelines.scoring:replace_file",
    "first after pipelines.cost:measure_turns",
    "first after pipelines.release_log:_append_whole",  # the pilot's verdict
    "first before pipelines.edge.bundle:replace_file",
    "third before pipelines.registry:Tracker.set_alias",  # between aliases
    "first before pipelines.summary:replace_file",
)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("killed")
    write_dataset(home)
    write_policy(home)
    return home


@pytest.fixture(scope="module")
def run(home: Path, preloaded: Preloaded) -> Run:
    command = ("rollout", "run", home / "pump.yaml", "--policy", home / "policy-0.yaml", "--quiet")
    return lambda **how: preloaded.dankai(*command, home=home, **how)


def champions(home: Path) -> tuple[int | None, int | None]:
    """What is live by the release log, whose chain is verified here, and by the registry."""
    settings = load_settings({"DANKAI_HOME": str(home)})
    state = current_state(ReleaseLog.open(settings), "pump")
    if state.champion is None:
        return None, None
    return state.champion, Tracker.open(settings).aliases("dankai-pump").get("champion")


@pytest.mark.timeout(240)
def test_a_rollout_killed_again_and_again_ends_as_if_nothing_had_happened(home: Path, run: Run) -> None:
    decided = 0
    for moment in MOMENTS:
        ended = run(hook=moment)
        assert ended.code == -9, f"{moment}: {ended.code} {ended.err}"
        entries = ReleaseLog.open(load_settings({"DANKAI_HOME": str(home)})).entries()
        assert len(entries) >= decided, moment
        decided = len(entries)
    ended = run()
    assert ended.code == 0, ended.err
    assert "Stage steady is reached" in ended.out
    entries = ReleaseLog.open(load_settings({"DANKAI_HOME": str(home)})).entries()
    actions = [str(entry.decision.action) for entry in entries]
    assert actions == ["bootstrap", "promote", "promote", "promote", "retrain", "promote", "retrain"]
    by_log, by_registry = champions(home)
    assert by_log == by_registry == entries[5].decision.version
