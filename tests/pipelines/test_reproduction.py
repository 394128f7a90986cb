"""A stored training, done again: equal bits here, a verdict elsewhere, and no word on what it was not made
from."""

import shutil
from pathlib import Path

import pytest

from pipelines.checkpoint import Checkpoint
from pipelines.reproduction import Reproduction, reproduce
from pipelines.settings import Settings, load_settings
from pipelines.steps import once
from pipelines.training_job import load_training_job
from validation.errors import InputError
from validation.gates import Outcome


def remembered(folder: Path, checkpoint: Checkpoint) -> Settings:
    """An installation that has this training among its finished steps."""
    settings = load_settings({"DANKAI_HOME": str(folder)})
    once(settings.steps, "pump-train-dense-seed0", {}, Checkpoint, lambda: checkpoint, keys=settings.keys)
    return settings


def done_again(folder: Path, checkpoint: Checkpoint, tolerance: float) -> Reproduction:
    settings = remembered(folder, checkpoint)
    found = reproduce(settings, checkpoint.sha256[:8], tolerance, lambda *_: None)
    assert not list((settings.home / "reproductions").iterdir())
    return found


def test_a_training_gives_the_same_bits_again(trained: dict[str, Checkpoint], tmp_path: Path) -> None:
    found = done_again(tmp_path, trained["dense"], tolerance=0.0)
    assert (found.outcome, found.reason) == (Outcome.PASS, "equal bits")
    assert (found.weights, found.largest_difference) == (found.weights_again, 0.0)


@pytest.mark.parametrize(("tolerance", "outcome"), [(0.05, Outcome.PASS), (0.01, Outcome.FAIL)])
def test_other_weights_are_judged_by_the_tolerance(
    trained: dict[str, Checkpoint], tmp_path: Path, tolerance: float, outcome: Outcome
) -> None:
    """A run whose weights and loss (2% lower) nobody can train from what it names."""
    dense = trained["dense"]
    claimed = dense.model_copy(update={"sha256": "0" * 64, "validation_loss": dense.validation_loss / 1.02})
    found = done_again(tmp_path, claimed, tolerance)
    assert (found.outcome, found.weights_again) == (outcome, dense.sha256)
    assert found.reason == f"validation loss 0.02 apart, {tolerance:g} allowed"


def test_what_a_run_was_made_from_has_to_be_there(trained: dict[str, Checkpoint], tmp_path: Path) -> None:
    settings = remembered(tmp_path / "home", trained["dense"])
    with pytest.raises(InputError, match="no training of that name"):
        reproduce(settings, "abcdef123456", 0.01, lambda *_: None)
    changed = trained["dense"].model_copy(update={"folder": str(tmp_path / "copy"), "snapshot": "0" * 64})
    shutil.copytree(trained["dense"].folder, tmp_path / "copy")
    with pytest.raises(InputError, match="not the snapshot that was trained on"):
        reproduce(remembered(tmp_path / "other", changed), changed.sha256, 0.01, lambda *_: None)
    job = load_training_job(tmp_path / "copy")
    job.model_copy(update={"made_with": job.made_with.model_copy(update={"lock": "0" * 64})}).save()
    record = Path(job.folder) / "training.json"
    try:
        with pytest.raises(InputError, match=r"requirements.lock: not the one that was trained with"):
            reproduce(settings, trained["dense"].sha256, 0.01, lambda *_: None)
    finally:
        job.save()
    assert record.is_file()
