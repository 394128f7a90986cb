"""Ctrl-C says how to go on."""

from pathlib import Path

import pytest

from tests.tiny_rollout import Preloaded, write_dataset, write_policy


@pytest.mark.parametrize(
    "moment",
    [
        "first before pipelines.data.snapshot:read_source",
        "second before pipelines.training:Fit.training_step",
        "second before pipelines.cost:_Probe._read",
    ],
)
def test_ctrl_c_is_one_line_that_says_how_to_go_on(moment: str, tmp_path: Path, preloaded: Preloaded) -> None:
    dataset, policy = write_dataset(tmp_path), write_policy(tmp_path)
    command = ("rollout", "run", dataset, "--policy", policy, "--quiet")
    ended = preloaded.dankai(*command, home=tmp_path / "home", hook=moment, interrupt=True)
    assert ended.code == 130
    assert ended.err.strip() == "dankai: stopped; run the same command again to go on from here"
