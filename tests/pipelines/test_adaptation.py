"""A new site: few windows of its own, in the source's terms; selector and head alone are trained."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from pipelines.adaptation import latest_windows
from pipelines.checkpoint import Checkpoint
from pipelines.data.windows import Windows
from tests.tiny_rollout import train_tiny
from validation.errors import InputError


def test_a_site_connects_its_number_of_windows_before_the_test_part(pump: Windows) -> None:
    """Ten windows of 16 hours: 64 hours of lookback and 160 of them; the last two are held back."""
    site = latest_windows(pump, 10)
    assert site.table.equals(pump.table[len(pump.table) - len(site.table) :])
    train, validation = (int((site.parts == number).sum()) for number in (0, 1))
    assert (train, validation) == (64 + 8 * 16, 2 * 16)
    np.testing.assert_array_equal(
        site.table["time"][site.cutoffs("test")], pump.table["time"][pump.cutoffs("test")]
    )


def test_what_is_judged_is_the_same_and_read_in_the_same_terms(pump: Windows) -> None:
    site = latest_windows(pump, 10)
    ours, theirs = (windows.batch(windows.cutoffs("test")[:3]) for windows in (site, pump))
    np.testing.assert_array_equal(ours.numeric, theirs.numeric)
    np.testing.assert_array_equal(ours.target, theirs.target)
    assert site.cardinalities == pump.cardinalities


def test_more_windows_than_there_are_is_one_line(pump: Windows) -> None:
    with pytest.raises(InputError, match=r"only 42 windows lie before it, 400 were asked for"):
        latest_windows(pump, 400)


def test_adapting_trains_selector_and_head_and_nothing_else(
    pump: Windows, trained: dict[str, Checkpoint], tmp_path: Path
) -> None:
    site = latest_windows(pump, 20)
    adapted, curve = train_tiny(site, "adapt", tmp_path, warm_start=trained["sparse"])
    before, after = (load_file(each.weights) for each in (trained["sparse"], adapted))
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"head.weight", "head.bias", "layers.0.attention.selector.to_qk.weight"}
    assert len(curve["task_loss"]) == pump.spec.training.tuning_steps
    assert adapted.mode == "adapt"


def test_adapting_needs_the_model_of_another_site(pump: Windows, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="warm_start: adapt trains a part of a model"):
        train_tiny(pump, "adapt", tmp_path)
