"""Training: it learns, it repeats, it goes on after a kill -9, and it loads nothing that could run code."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from pipelines.checkpoint import Checkpoint, load_model
from pipelines.data.windows import Windows
from pipelines.training import train
from pipelines.training_batches import Batches
from pipelines.training_plan import TrainingPlan
from sparse_model.recomputation import recomputed
from tests.tiny_rollout import ROOT, train_tiny, write_dataset
from validation.errors import InputError

DIE_IN_TRAINING = """
import os, signal, sys
from pathlib import Path
from pipelines import training
from pipelines.data.spec import load_spec
from sitecustomize import guard  # or it would not stay offline
from tests.tiny_rollout import train_tiny, windows_of

folder = Path(sys.argv[1])
plain = training.Fit.training_step

def train_until(step):
    def dying(self, batch, index):
        if self.global_step == step:
            os.kill(os.getpid(), signal.SIGKILL)
        return plain(self, batch, index)

    training.Fit.training_step = dying
    train_tiny(windows_of(load_spec(folder / "pump.yaml"), folder), "sparse", folder / f"step-{step}")

for step in map(int, sys.argv[2:]):
    if (child := os.fork()) == 0:  # one process pays for the imports
        train_until(step)
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def weights(checkpoint: Checkpoint) -> dict[str, torch.Tensor]:
    return load_file(checkpoint.weights)


@pytest.mark.parametrize("mode", ["dense", "sparse", "selector"])
def test_the_loss_goes_down(mode: str, trained: dict[str, Checkpoint], pump: Windows, tmp_path: Path) -> None:
    start = trained["dense"] if mode == "selector" else None
    checkpoint, curve = train_tiny(pump, mode, tmp_path, warm_start=start)  # pyright: ignore[reportArgumentType]
    first, *_, last = [loss for _, loss in curve["train_loss"]]
    assert last < first
    assert checkpoint.validation_loss == min(loss for _, loss in curve["validation_loss"])


def test_a_trained_model_is_better_than_a_coin(trained: dict[str, Checkpoint]) -> None:
    """Trips of the tiny dataset happen in a third of the hours: knowing no more costs 0.62 nats."""
    assert trained["dense"].validation_loss < 0.5
    assert trained["sparse"].validation_loss < 0.5


def test_the_same_seed_gives_the_same_weights_and_another_seed_others(
    trained: dict[str, Checkpoint], pump: Windows, tmp_path: Path
) -> None:
    again, _ = train_tiny(pump, "sparse", tmp_path / "again")
    other, _ = train_tiny(pump, "sparse", tmp_path / "other", seed=1)
    assert again.sha256 == trained["sparse"].sha256
    assert other.sha256 != again.sha256


def test_a_training_killed_with_kill_9_goes_on_to_the_very_same_weights(
    trained: dict[str, Checkpoint], pump: Windows, tmp_path: Path
) -> None:
    """Before the first checkpoint (step 1), and between two (step 7)."""
    write_dataset(tmp_path)
    command = [sys.executable, "-c", DIE_IN_TRAINING, str(tmp_path), "1", "7"]
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    died = subprocess.run(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": path}, capture_output=True)
    assert died.stdout.split() == [b"%d" % -signal.SIGKILL] * 2, died.stderr.decode()
    for folder, has_checkpoint in ((tmp_path / "step-1", False), (tmp_path / "step-7", True)):
        assert (folder / "last.ckpt").exists() == has_checkpoint
        resumed, curve = train_tiny(pump, "sparse", folder)
        assert resumed.sha256 == trained["sparse"].sha256
        assert resumed.num_steps == trained["sparse"].num_steps
        assert [step for step, _ in curve["train_loss"]] == list(range(12))


def test_a_training_that_was_over_is_not_done_again(
    trained: dict[str, Checkpoint], pump: Windows, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> Any:
        raise AssertionError("a step was trained again")

    monkeypatch.setattr("pipelines.training.Fit.training_step", refuse)
    again, _ = train_tiny(pump, "sparse", Path(trained["sparse"].folder))
    assert again.sha256 == trained["sparse"].sha256


def test_a_training_that_recomputes_ends_with_the_same_weights(
    pump: Windows, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made_again = []

    def noted(layer: torch.nn.Module, *inputs: Any) -> Any:
        made_again.append(layer)
        return recomputed(layer, *inputs)

    monkeypatch.setattr("sparse_model.model.recomputed", noted)
    ended = []
    for recompute in (False, True):
        plan = pump.spec.training.model_copy(update={"num_steps": 2, "recompute": recompute})
        folder = tmp_path / str(recompute)
        ended.append(train(pump, load_config(pump), plan, "sparse", 0, folder, lambda *_: None)[0])
        assert len(made_again) == recompute * plan.num_steps * ended[0].config["num_layers"]
    assert ended[0].sha256 == ended[1].sha256


def test_a_batch_depends_on_seed_and_step_alone(pump: Windows) -> None:
    plan = pump.spec.training
    whole = Batches(pump, plan, "sparse", seed=0, first=0, count=12)
    resumed = Batches(pump, plan, "sparse", seed=0, first=7, count=5)
    for ours, theirs in zip(whole[7], resumed[0], strict=True):
        assert torch.equal(ours, theirs)
    assert not torch.equal(whole[7][0], whole[8][0])


def test_windows_start_short_and_end_at_full_length(pump: Windows) -> None:
    batches = Batches(pump, pump.spec.training, "sparse", seed=0, first=0, count=12)
    lengths = [batches[step][0].shape[1] for step in range(12)]
    assert lengths == [32] * 6 + [80] * 6  # a quarter of the lookback, then all of it, and the horizon
    sizes = {batches[step][0].shape[0] * batches[step][0].shape[1] for step in range(12)}
    assert sizes == {1280}


def test_a_training_stops_early_when_nothing_gets_better(pump: Windows, tmp_path: Path) -> None:
    still = {"peak_learning_rate": 1e-12, "num_steps": 60, "steps_per_epoch": 3, "patience": 2}
    plan = TrainingPlan.model_validate({**pump.spec.training.model_dump(), **still})
    config = load_config(pump)
    _, curve = train(pump, config, plan, "dense", 0, tmp_path, lambda *_: None)
    assert len(curve["train_loss"]) < 30


def test_the_pilot_changes_the_selector_and_nothing_else(trained: dict[str, Checkpoint]) -> None:
    before, after = weights(trained["dense"]), weights(trained["selector"])
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed
    assert all(".selector." in name for name in changed)


def test_the_pilot_needs_the_model_it_learns_from(pump: Windows, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="warm_start"):
        train_tiny(pump, "selector", tmp_path)


def test_a_retraining_starts_from_the_weights_it_is_given(
    trained: dict[str, Checkpoint], pump: Windows, tmp_path: Path
) -> None:
    plan = pump.spec.training.model_copy(update={"num_steps": 1, "peak_learning_rate": 1e-9})
    config = load_config(pump)
    tuned, _ = train(pump, config, plan, "sparse", 0, tmp_path, lambda *_: None, trained["sparse"])
    before, after = weights(trained["sparse"]), weights(tuned)
    for name in before:
        np.testing.assert_allclose(before[name], after[name], atol=1e-6)


def test_altered_weights_are_refused(trained: dict[str, Checkpoint], tmp_path: Path) -> None:
    content = bytearray(trained["dense"].weights.read_bytes())
    content[-1] ^= 1
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(InputError, match="not the weights that were recorded"):
        load_model(trained["dense"].model_copy(update={"folder": str(tmp_path)}))
    with pytest.raises(InputError, match="train again or restore"):
        load_model(trained["dense"].model_copy(update={"folder": str(tmp_path / "gone")}))


class Owned:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.path,))


def test_a_checkpoint_that_would_run_code_is_not_resumed_from(pump: Windows, tmp_path: Path) -> None:
    torch.save({"state_dict": Owned(tmp_path / "owned")}, tmp_path / "last.ckpt")
    with pytest.raises(InputError, match="no checkpoint that may be read"):
        train_tiny(pump, "dense", tmp_path)
    assert not (tmp_path / "owned").exists()


def test_a_pickle_in_the_place_of_weights_is_refused(trained: dict[str, Checkpoint], tmp_path: Path) -> None:
    from pipelines.files import sha256_of

    path = tmp_path / "model.safetensors"
    torch.save({"state_dict": Owned(tmp_path / "owned")}, path)
    false = trained["dense"].model_copy(update={"folder": str(tmp_path), "sha256": sha256_of(path)})
    with pytest.raises(Exception, match=r"(?i)header|safetensor"):
        load_model(false)
    assert not (tmp_path / "owned").exists()


def load_config(pump: Windows) -> Any:
    from pipelines.candidates import model_config

    return model_config(pump, pump.spec)


def test_the_checkpoint_says_what_it_is(trained: dict[str, Checkpoint], pump: Windows) -> None:
    sparse = trained["sparse"]
    assert sparse.snapshot == pump.snapshot.content_hash
    assert sparse.plan == pump.spec.training.digest()
    assert (sparse.mode, sparse.seed, sparse.num_steps) == ("sparse", 0, 12)
    assert json.loads((Path(sparse.folder) / "config.json").read_text())["width"] == 16
    assert all(Path(path).is_file() for path in sparse.artifact_paths())
