"""A training's curve in MLflow: there while it grows, kept when it is stopped, one point per step."""

from pathlib import Path

import pytest

from pipelines.candidates import following, model_config
from pipelines.data.windows import Windows
from pipelines.registry import Tracker
from pipelines.training import train


def train_until(last: int, tracker: Tracker, pump: Windows, folder: Path, run_id: str) -> None:
    """The tiny dense training; it dies once step `last` is done."""

    def report(what: str, done: int, total: int) -> None:
        if done > last:
            raise RuntimeError("stopped")

    follow = following(tracker, run_id)
    config, plan = model_config(pump, pump.spec), pump.spec.training
    _, curve = train(pump, config, plan, "dense", 0, folder, report, follow=follow)
    follow(curve)


def steps(tracker: Tracker, run_id: str, metric: str) -> list[int]:
    return [point.step for point in tracker._client.get_metric_history(run_id, metric)]


def test_a_curve_is_tracked_at_each_validation_and_whole_in_the_run_that_goes_on(
    tracker: Tracker, pump: Windows, tmp_path: Path
) -> None:
    """A validation comes after every third of the twelve steps; the training dies in the eighth."""
    with pytest.raises(RuntimeError), tracker.run("stopped", "training") as stopped:
        train_until(7, tracker, pump, tmp_path, stopped)
    assert steps(tracker, stopped, "train_loss") == [0, 1, 2, 3, 4, 5]
    assert len(steps(tracker, stopped, "validation_loss")) == 2
    with tracker.run("resumed", "training") as resumed:
        train_until(99, tracker, pump, tmp_path, resumed)
    assert steps(tracker, resumed, "train_loss") == list(range(12))
    assert len(steps(tracker, resumed, "validation_loss")) == 4
