"""kill -9 and Ctrl-C at any moment: the same command goes on from there; at most one champion is live."""

from pathlib import Path

import psutil
import pytest

from pipelines.registry import Tracker
from pipelines.release_log import ReleaseEntry, ReleaseLog
from pipelines.settings import load_settings
from tests.tiny_rollout import Preloaded, write_dataset, write_policy

KILL, CTRL_C = -9, 130
# In the order in which a rollout comes by: each run goes on from where the one before was stopped.
STOPS = (
    (KILL, "first before pipelines.data.snapshot:replace_file"),  # table written, its record not
    (CTRL_C, "second before pipelines.training:Fit.training_step"),
    (KILL, "first after pipelines.checkpoint:replace_file"),  # config written, weights not
    (KILL, "first after pipelines.release_store:_append_whole"),  # live in the log, not in the registry
    (KILL, "first before pipelines.edge.bundle:replace_file"),
    (KILL, "first before pipelines.summary:replace_file"),
)
# With more of them in between, for `make end-to-end`.
ALL_STOPS = (
    STOPS[0],
    (KILL, "first before validation.suite:Suite.run"),
    STOPS[1],
    (KILL, "second after pipelines.training:Fit.on_validation_epoch_end"),
    STOPS[2],
    (KILL, "first after pipelines.registry:sign_model"),  # incumbent's files signed, no version yet
    (KILL, "first before pipelines.release_store:_append_whole"),  # incumbent registered, not live
    STOPS[3],
    (KILL, "second before pipelines.scoring:replace_file"),
    (CTRL_C, "third before pipelines.cost:_Probe._read"),
    (KILL, "first after pipelines.release_store:_append_whole"),  # the pilot's verdict
    STOPS[4],
    (KILL, "second before pipelines.registry:Tracker.set_alias"),  # between two aliases
    STOPS[5],
)


def entries(home: Path) -> list[ReleaseEntry]:
    """The release log; its chain is verified as it is read."""
    return ReleaseLog.open(load_settings({"DANKAI_HOME": str(home)})).entries()


def at_work_in(home: Path) -> list[str]:
    commands = [" ".join(process.info["cmdline"] or []) for process in psutil.process_iter(["cmdline"])]
    return [command for command in commands if str(home) in command]


@pytest.mark.timeout(240)
@pytest.mark.parametrize(
    "stops", [pytest.param(STOPS, id="some"), pytest.param(ALL_STOPS, id="all", marks=pytest.mark.operations)]
)
def test_a_rollout_stopped_again_and_again_ends_as_if_nothing_had_happened(
    stops: tuple[tuple[int, str], ...], tmp_path: Path, preloaded: Preloaded
) -> None:
    command = ("rollout", "run", write_dataset(tmp_path), "--policy", write_policy(tmp_path), "--quiet")
    command += ("--bootstrap", "the dense model in use")
    home, num_decided = tmp_path / "home", 0
    for code, moment in stops:
        is_stopped = code == CTRL_C  # whoever stops it is left alone with no process of it
        ended = preloaded.dankai(*command, home=home, hook=moment, interrupt=is_stopped, fresh=is_stopped)
        assert ended.code == code, f"{moment}: {ended}"
        if code == CTRL_C:
            said = "dankai: stopped; run the same command again to go on from here"
            assert ended.err.splitlines()[-1] == said, moment
            assert "Traceback" not in ended.err, moment
            assert at_work_in(home) == [], moment
        assert len(entries(home)) >= num_decided, moment
        num_decided = len(entries(home))
    ended = preloaded.dankai(*command, home=home)
    assert ended.code == 0, ended.err
    assert "Stage steady is reached" in ended.out
    log = entries(home)
    actions = [str(entry.decision.action) for entry in log]
    assert actions == ["bootstrap", "promote", "promote", "promote", "retrain", "promote"]
    aliases = Tracker.open(load_settings({"DANKAI_HOME": str(home)})).aliases("dankai-pump")
    assert aliases["champion"] == log[5].decision.version
