"""The other two tasks on the same code: values to come, and steps that are strange."""

from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from pipelines.checkpoint import load_model
from pipelines.data.spec import load_spec
from pipelines.data.windows import Windows
from pipelines.scoring import _model_scores, load_scored, score_model
from sparse_model.detection import SPAN, fold_of
from tests.tiny_rollout import pump_table, train_tiny, windows_of, write_dataset
from validation.statistics import METRICS

TASKS: dict[str, dict[str, Any]] = {
    "forecast": {"task": "forecast", "target": ["load"], "known_future": ["plan"], "slices": None},
    "detect": {
        "task": "detect",
        "target": ["load", "plan"],
        "known_future": None,
        "label": "tripped",
        "horizon": 0,
        "slices": None,
    },
}


def table() -> pl.DataFrame:
    """Load is the plan with its sign turned; from the test part on one hour in 29 it is far from it."""
    strange = (pl.int_range(pl.len()) % 29 == 0) & (pl.col("at") >= datetime(2024, 4, 15))
    load = pl.when(strange).then(pl.col("plan") + 6).otherwise(-pl.col("plan"))
    return pump_table().with_columns(load=load, tripped=strange.cast(pl.Int64))


def windows(task: str, folder: Path) -> Windows:
    return windows_of(load_spec(write_dataset(folder, table=table(), **TASKS[task])), folder)


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("mode", ["dense", "sparse"])
def test_every_task_is_trained_and_scored(task: str, mode: Any, tmp_path: Path) -> None:
    data = windows(task, tmp_path)
    checkpoint, curve = train_tiny(data, mode, tmp_path / "model")
    assert curve["train_loss"][-1][1] < curve["train_loss"][0][1]
    density = 0.25 if mode == "sparse" else None
    scored = load_scored(score_model(checkpoint, data, "test", density, mode, tmp_path, lambda *_: None))
    assert np.isfinite(scored.scores).all()
    if task == "forecast":
        assert scored.scores.shape == (24, 16, 1)
        nothing_known = METRICS["mse"](type(scored)(0 * scored.scores, scored.targets, scored.mask))
        assert METRICS["mse"](scored) < nothing_known
    else:
        assert scored.scores.shape[1:] == (64, 1)
        assert (scored.scores >= 0).all()
        assert METRICS["auroc"](scored) > 0.6


def test_what_is_expected_of_a_step_is_said_without_reading_it(tmp_path: Path) -> None:
    """Another value in the inputs of a step moves the scores of the steps around it, not its own."""
    data = windows("detect", tmp_path)
    checkpoint, _ = train_tiny(data, "dense", tmp_path / "model")
    batch = data.batch(data.cutoffs("test")[:1])
    other = replace(batch, numeric=batch.numeric.copy())
    step = 20
    other.numeric[:, step, :2] += 5.0  # load and plan; what it is compared with stays
    model, device = load_model(checkpoint), torch.device("cpu")
    with torch.inference_mode():
        one, two = (_model_scores(model, each, None, device)[0, :, 0] for each in (batch, other))
    hidden_with_it = fold_of(len(one), step // SPAN).numpy()
    np.testing.assert_array_equal(one[hidden_with_it], two[hidden_with_it])
    assert (one[~hidden_with_it] != two[~hidden_with_it]).any()
