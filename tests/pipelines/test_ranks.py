"""One training on several processes: the same losses as in one, a lost process, and settings that cannot
work."""

import multiprocessing
import os
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from safetensors.torch import load_file

from flows.commands.reproduce import join
from pipelines.candidates import model_config
from pipelines.checkpoint import Checkpoint
from pipelines.data.spec import load_spec
from pipelines.data.windows import Windows
from pipelines.preparation import refuse_unusable
from pipelines.settings import load_settings
from pipelines.training import train
from pipelines.training_plan import TrainingPlan
from tests.tiny_rollout import pump_spec, write_dataset
from validation.errors import InputError


def trained(pump: Windows, folder: Path, mode: Any = "sparse", report: Any = None, **plan: Any) -> Any:
    """Checkpoint and curve of the tiny dataset's training with some settings changed."""
    changed = TrainingPlan.model_validate({**pump.spec.training.model_dump(), **plan})
    told = report or (lambda *_: None)
    return train(pump, model_config(pump, pump.spec), changed, mode, 0, folder, told)


def assert_alike(ours: tuple[Checkpoint, Any], theirs: tuple[Checkpoint, Any]) -> None:
    """The same losses, steps and weights, up to the order in which float32 numbers were added."""
    for name in ("train_loss", "validation_loss"):
        steps, losses = zip(*ours[1][name], strict=True)
        expected_steps, expected = zip(*theirs[1][name], strict=True)
        assert steps == expected_steps
        np.testing.assert_allclose(losses, expected, rtol=2e-4)
    weights, expected_weights = load_file(ours[0].weights), load_file(theirs[0].weights)
    for name, values in weights.items():
        np.testing.assert_allclose(values, expected_weights[name], atol=2e-3, err_msg=name)


def test_a_batch_in_parts_gives_the_losses_of_the_whole_batch(pump: Windows, tmp_path: Path) -> None:
    whole = trained(pump, tmp_path / "whole", "dense", num_steps=6)
    parts = trained(pump, tmp_path / "parts", "dense", num_steps=6, accumulate=4)
    assert_alike(parts, whole)


def test_a_killed_rank_ends_the_run_and_the_next_one_ends_as_one_process_does(
    pump: Windows, tmp_path: Path
) -> None:
    """Two processes over gloo draw what one draws that makes two parts of every batch, noise included."""

    def kill_second_rank(label: str, step: int, total: int) -> None:
        if step == 7:
            second = max(multiprocessing.active_children(), key=lambda rank: int(rank.name.split("-")[-1]))
            os.kill(second.pid or 0, signal.SIGKILL)

    with pytest.raises(InputError) as lost:
        trained(pump, tmp_path / "two", report=kill_second_rank, devices=2)
    assert str(lost.value).startswith("training: rank 1 of 2 was killed (SIGKILL); the same command, ")
    assert str(lost.value).endswith("last.ckpt")
    assert not multiprocessing.active_children()
    steps: list[int] = []
    resumed = trained(pump, tmp_path / "two", report=lambda _, step, __: steps.append(step), devices=2)
    assert steps == list(range(7, 13))
    assert_alike(resumed, trained(pump, tmp_path / "one", accumulate=2))


def test_weights_sharded_over_two_machines_train_to_the_same_model(
    pump: Windows, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other machine is a thread of this one, which finds the invitation in the same home folder."""
    from lightning.fabric.plugins.environments.lightning import find_free_network_port

    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(find_free_network_port()))
    monkeypatch.setenv("NODE_RANK", "1")
    monkeypatch.setenv("DANKAI_HOME", str(tmp_path))
    with ThreadPoolExecutor() as pool:
        other = pool.submit(CliRunner().invoke, join, ["--once"], catch_exceptions=False)
        folder = tmp_path / "datasets" / "pump" / "models" / "two"
        sharded = trained(pump, folder, "dense", num_steps=6, nodes=2, strategy="fsdp")
        assert other.result(timeout=60).exit_code == 0
    assert_alike(sharded, trained(pump, tmp_path / "one", "dense", num_steps=6))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"devices": 4096}, r"training.devices: 4096 are asked, this machine has"),
        (
            {"nodes": 2},
            r"training.nodes: 2 machines have to find each other; set MASTER_ADDR and MASTER_PORT",
        ),
    ],
)
def test_devices_that_are_not_there_are_refused_before_any_work(
    pump: Windows, tmp_path: Path, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        trained(pump, tmp_path / "model", **settings)
    assert not (tmp_path / "model").exists()


def test_a_rollout_is_refused_for_its_devices_before_anything_is_written(tmp_path: Path) -> None:
    plan = pump_spec()["training"] | {"devices": 4096, "tokens_per_step": 4096 * 80, "curriculum": [[1, 1]]}
    spec = load_spec(write_dataset(tmp_path, training=plan))
    home = tmp_path / "home"
    with pytest.raises(InputError, match=r"training.devices: 4096 are asked"):
        refuse_unusable(spec, load_settings({"DANKAI_HOME": str(home)}))
    assert not home.exists()


def test_a_batch_that_processes_cannot_share_alike_is_refused_with_the_file(tmp_path: Path) -> None:
    path = write_dataset(tmp_path)
    path.write_text(path.read_text().replace("num_probes: 8", "num_probes: 8\n  devices: 3"))
    with pytest.raises(InputError, match=r"1280 steps make 40 windows of 32, which 3 devices x 1") as why:
        load_spec(path)
    assert "\n" not in str(why.value)


def test_one_training_is_not_done_in_two_precisions(pump: Windows, tmp_path: Path) -> None:
    trained(pump, tmp_path, "dense", num_steps=3)
    with pytest.raises(InputError, match=r"training.precision: begun with 32-true, bf16-mixed is asked now"):
        trained(pump, tmp_path, "dense", num_steps=3, precision="bf16-mixed")
