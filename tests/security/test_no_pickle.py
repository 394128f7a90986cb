"""A pickle runs code when it is loaded. Planted ones are refused, wherever they lie, and nothing runs."""

import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipelines.checkpoint import Checkpoint, load_model
from pipelines.data.spec import load_spec
from pipelines.data.windows import Windows
from pipelines.files import sha256_of
from pipelines.scoring import Scores, load_scored
from pipelines.settings import load_settings, quiet_environment
from sparse_model.config import ModelConfig
from tests.tiny_rollout import train_tiny, windows_of, write_dataset
from validation.errors import InputError


class Bomb:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return os.mkdir, (str(self.marker),)


@pytest.fixture
def marker(tmp_path: Path) -> Path:
    """Where a bomb would leave its file; it works, as one goes off here first."""
    place = tmp_path / "owned"
    pickle.loads(pickle.dumps(Bomb(place)))
    place.rmdir()
    return place


@pytest.fixture(scope="module")
def windows(tmp_path_factory: pytest.TempPathFactory) -> Windows:
    folder = tmp_path_factory.mktemp("windows")
    return windows_of(load_spec(write_dataset(folder)), folder)


@pytest.mark.parametrize("kind", ["pickle", "torch archive", "damaged"])
def test_a_training_does_not_go_on_from_a_planted_checkpoint(
    kind: str, windows: Windows, marker: Path, tmp_path: Path
) -> None:
    import torch

    folder = tmp_path / "training"
    folder.mkdir()
    planted = {"state_dict": Bomb(marker), "epoch": 0, "global_step": 1}
    if kind == "torch archive":
        torch.save(planted, folder / "last.ckpt")
    else:
        content = pickle.dumps(planted, 2) if kind == "pickle" else b"PK\x03\x04 cut short"
        (folder / "last.ckpt").write_bytes(content)
    with pytest.raises(
        InputError, match=r"last\.ckpt: no checkpoint that may be read .* remove it"
    ) as caught:
        train_tiny(windows, "dense", folder)
    assert "\n" not in str(caught.value)
    assert not marker.exists()
    assert sorted(path.name for path in folder.iterdir()) == ["last.ckpt"]


def test_weights_that_are_a_pickle_are_no_weights(marker: Path, tmp_path: Path) -> None:
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(pickle.dumps(Bomb(marker)))
    checkpoint = Checkpoint(
        folder=str(tmp_path),
        sha256=sha256_of(weights),
        config=ModelConfig(num_numeric=1, cardinalities=(), num_outputs=1).to_dict(),
        snapshot="s",
        plan="p",
        mode="dense",
        seed=0,
        num_steps=1,
        validation_loss=0.0,
        train_seconds=0.0,
        peak_memory_bytes=0,
    )
    with pytest.raises(InputError, match=r"model\.safetensors: no weights of this model"):
        load_model(checkpoint)
    assert not marker.exists()


def test_scores_that_hold_a_pickle_are_not_read(marker: Path, tmp_path: Path) -> None:
    path = tmp_path / "scores.npz"
    np.savez(path, scores=np.array([Bomb(marker)], dtype=object))
    scores = Scores(
        path=str(path),
        sha256=sha256_of(path),
        subject="x",
        scored="x",
        part="test",
        snapshot="s",
        num_windows=1,
    )
    with pytest.raises(ValueError, match="allow_pickle=False"):
        load_scored(scores)
    assert not marker.exists()


def test_mlflow_may_not_unpickle_even_where_the_environment_says_so(tmp_path: Path) -> None:
    environ = {"MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "true"}
    quiet_environment(load_settings({"DANKAI_HOME": str(tmp_path)}), environ)
    assert environ["MLFLOW_ALLOW_PICKLE_DESERIALIZATION"] == "false"
