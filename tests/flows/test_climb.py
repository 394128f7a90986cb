"""When a climb may go on: by what the release log says, not by a PASS of long ago."""

from pathlib import Path

from flows.rollout import has_left
from pipelines.checkpoint import Checkpoint
from pipelines.decisions import demote, rollback
from pipelines.release_log import Stage
from tests.release_cases import ADA, climbed, log_in


def test_a_climb_goes_on_only_where_this_very_model_has_left_the_stage(tmp_path: Path) -> None:
    log = log_in(tmp_path)
    state = climbed(log)
    first, second, other = (Checkpoint.model_construct(sha256=f"weights {number}") for number in (2, 3, 9))
    assert has_left(state, "pilot", first)
    assert has_left(state, "edge", second)
    assert not has_left(state, "pilot", other)
    state = demote(log, state, Stage.TRAINING, ADA, "the device changed")
    assert has_left(state, "pilot", first)
    assert not has_left(state, "training", second)
    assert not has_left(state, "edge", second)
    state = rollback(log, state, ADA, "slow")
    assert not has_left(state, "training", second)
