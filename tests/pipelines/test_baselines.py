"""The simple models that a network has to beat: honest, and blind to what was not known."""

from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from pipelines.baselines import score_baseline
from pipelines.data.spec import load_spec
from pipelines.data.windows import Windows
from pipelines.scoring import load_scored
from tests.tiny_rollout import pump_table, windows_of, write_dataset
from validation.statistics import METRICS

FORECAST: dict[str, Any] = {
    "task": "forecast",
    "target": ["load"],
    "known_future": None,
    "slices": None,
}
DETECT: dict[str, Any] = {
    "task": "detect",
    "target": ["load", "plan"],
    "known_future": None,
    "label": "tripped",
    "horizon": 0,
    "slices": None,
}
Make = Callable[..., Windows]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    def windows(table: pl.DataFrame | None = None, **changes: Any) -> Windows:
        return windows_of(load_spec(write_dataset(tmp_path, table=table, **changes)), tmp_path)

    return windows


def metric(windows: Windows, name: str, folder: Path) -> float:
    [scores] = score_baseline(windows, ["test"], folder, lambda *_: None)
    return METRICS[name](load_scored(scores))


def test_events_that_follow_the_plan_are_foreseen(make: Make, tmp_path: Path) -> None:
    assert metric(make(), "auroc", tmp_path) > 0.9


def test_events_without_any_reason_are_not(make: Make, tmp_path: Path) -> None:
    chance = np.random.default_rng(1).integers(0, 2, len(pump_table()))
    assert metric(make(pump_table().with_columns(tripped=pl.Series(chance))), "auroc", tmp_path) < 0.6


def test_rows_that_were_quarantined_are_left_out_and_change_no_other(make: Make, tmp_path: Path) -> None:
    """An outcome of 2, a site that does not exist, a load out of range; in training and in the test part."""
    bad = pl.int_range(pl.len()) % 97 == 0
    table = pump_table().with_columns(
        tripped=pl.when(bad).then(2).otherwise("tripped"),
        site=pl.when(bad).then(pl.lit("nowhere")).otherwise("site"),
        load=pl.when(bad).then(1e6).otherwise("load"),
    )
    windows = make(table, allowed={"site": ["north", "south"]})
    [scores] = score_baseline(windows, ["test"], tmp_path, lambda *_: None)
    scored = load_scored(scores)
    is_bad = table.select(bad).to_series().to_numpy()[np.load(scores.path)["rows"]]
    assert is_bad.any()
    np.testing.assert_array_equal(scored.mask[..., 0] == 0, is_bad)
    assert METRICS["auroc"](scored) > 0.9


def test_a_wave_is_continued_and_noise_is_answered_with_its_spread(make: Make, tmp_path: Path) -> None:
    hours = np.arange(len(pump_table()))
    wave = pump_table().with_columns(load=pl.Series(np.sin(2 * np.pi * hours / 24)))
    assert metric(make(wave, **FORECAST), "mse", tmp_path) < 0.05
    assert 0.8 < metric(make(**FORECAST), "mse", tmp_path) < 1.5


def test_steps_off_the_usual_plane_are_found(make: Make, tmp_path: Path) -> None:
    """Load follows the plan, but not where the label says so; the label is never trained on."""
    strange = (pl.int_range(pl.len()) % 29 == 0) & (pl.col("at") >= datetime(2024, 4, 15))
    load = pl.when(strange).then(-pl.col("plan") + 3).otherwise("plan")
    table = pump_table().with_columns(load=load, tripped=strange.cast(pl.Int64))
    assert metric(make(table, **DETECT), "auroc", tmp_path) > 0.9


@pytest.mark.parametrize("task", [{}, FORECAST])
def test_no_baseline_sees_past_the_cutoff(task: dict[str, Any], make: Make, tmp_path: Path) -> None:
    """Whatever is not known ahead is turned into something else after one cutoff: its answers stay."""
    windows = make(**task)
    cutoff = int(windows.cutoffs("test")[5])
    ahead = pl.int_range(pl.len()) >= cutoff
    hidden = ["tripped"] if not task else ["load", "plan", "tripped"]
    changed = pump_table().with_columns(
        [pl.when(ahead).then(1 - pl.col(name)).otherwise(pl.col(name)).alias(name) for name in hidden]
    )
    answers = []
    for each in (windows, make(changed, **task)):
        [scores] = score_baseline(each, ["test"], tmp_path, lambda *_: None)
        answers.append(load_scored(scores).scores[5])
    np.testing.assert_array_equal(*answers)
