"""Which windows are shown, what is told of them, and that it is what the model knew."""

from pathlib import Path

import numpy as np
import pytest

from pipelines.checkpoint import Checkpoint
from pipelines.data.windows import Windows
from pipelines.report.readings import read_windows, window_losses
from pipelines.report.sections.looks import blocks_read, exact_mass
from pipelines.report.story import WindowRead
from pipelines.scoring import load_scored, score_model
from validation.statistics import METRICS, Scored


@pytest.fixture(scope="module")
def read(
    pump: Windows, trained: dict[str, Checkpoint], tmp_path_factory: pytest.TempPathFactory
) -> tuple[WindowRead, ...]:
    folder = tmp_path_factory.mktemp("scores")
    scores = score_model(trained["sparse"], pump, "test", 0.25, "sparse", folder, lambda *_: None)
    read = read_windows(trained["sparse"], pump, scores, 0.25)
    losses = window_losses(load_scored(scores), "event")
    assert [each.loss for each in read] == [np.min(losses), np.sort(losses)[len(losses) // 2], np.max(losses)]
    return read


def test_the_best_the_typical_and_the_worst_are_shown_with_what_was_said_and_what_came(
    read: tuple[WindowRead, ...], pump: Windows
) -> None:
    assert [each.which for each in read] == ["best", "typical", "worst"]
    for each in read:
        assert each.num_windows == len(pump.cutoffs("test"))
        assert (len(each.times), len(each.answers)) == (pump.lookback, pump.horizon)
        assert each.times[-1].replace("T", " ") == each.explanation.cutoff < each.answers[0].time
        said = np.array([answer.score for answer in each.answers])[None]
        came = np.array([answer.truth for answer in each.answers])[None]
        loss = METRICS["log_loss"](Scored(said, came, np.ones_like(said)))
        assert loss == pytest.approx(each.loss, rel=1e-3)


def test_the_series_is_the_tables_own(read: tuple[WindowRead, ...], pump: Windows) -> None:
    [trace] = read[0].traces
    assert trace.name == "plan"
    rows = np.flatnonzero(
        pump.time_us <= np.datetime64(read[0].times[-1]).astype("datetime64[us]").astype(int)
    )
    assert trace.values == pytest.approx(pump.column("plan")[rows[-pump.lookback :]], rel=1e-4)


def test_the_blocks_of_a_window_share_out_all_its_attention(read: tuple[WindowRead, ...]) -> None:
    for each in read:
        blocks = blocks_read(each)
        assert len(blocks) == 10
        assert sum(block.mass for block in blocks) == pytest.approx(1, abs=1e-4)
        assert [block.first for block in blocks] == sorted(block.first for block in blocks)
        assert 0 < exact_mass(each) <= 1


def test_losses_of_windows_by_task() -> None:
    scores, mask = np.array([[0.9, 0.1], [0.2, 0.8], [0.5, 0.5]]), np.array([[1, 1], [1, 1], [0, 0]])
    scored = Scored(scores, np.array([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0]]), mask.astype(float))
    event, forecast, detect = (window_losses(scored, task) for task in ("event", "forecast", "detect"))
    assert event[:2] == pytest.approx([-np.log(0.9), -np.log(0.2)])
    assert forecast[:2] == pytest.approx([0.01, 0.64])
    assert detect[0] == 0
    assert detect[1] == pytest.approx(2 / 3)
    for losses in (event, forecast, detect):
        assert np.isnan(losses[2])  # nothing of it is scored, so it is neither the best nor the worst


def test_where_one_window_was_scored_it_is_shown_once(tmp_path: Path, read: tuple[WindowRead, ...]) -> None:
    from pipelines.report.readings import _picked

    assert _picked(np.array([7])) == {"best": 7}
    assert _picked(np.array([7, 3])) == {"best": 7, "worst": 3}
    assert _picked(np.array([], np.int64)) == {}
