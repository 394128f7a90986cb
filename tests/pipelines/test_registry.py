"""MLflow behind one door: runs that always end, versions that can be served, nothing pickled."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from pipelines.files import sha256_of
from pipelines.mlflow_words import AS_TRAINING
from pipelines.registry import ModelVersion, Tracker
from pipelines.settings import Settings, load_settings
from sparse_model.config import Budget, ModelConfig
from sparse_model.model import SparseEncoder
from validation.errors import InputError

CONFIG = ModelConfig(
    num_numeric=3,
    cardinalities=(5,),
    num_outputs=2,
    width=16,
    num_layers=1,
    num_heads=2,
    num_kv_heads=2,
    ffn_width=16,
    block_size=8,
    selector_heads=1,
    selector_dim=8,
)


@pytest.fixture(scope="module")
def model() -> SparseEncoder:
    torch.manual_seed(0)
    model = SparseEncoder(CONFIG)
    torch.nn.init.normal_(model.head.weight)
    return model.eval()


@pytest.fixture(scope="module")
def checkpoint(model: SparseEncoder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint")
    save_file(model.state_dict(), folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(CONFIG.to_dict()))
    return folder


def register(tracker: Tracker, dataset: str, checkpoint: Path, run_id: str) -> ModelVersion:
    weights = checkpoint / "model.safetensors"
    config = checkpoint / "config.json"
    return tracker.register_version(
        dataset, weights, config, sha256_of(weights), "data hash", run_id, density=0.25
    )


@pytest.fixture(scope="module")
def registered(tracker: Tracker, checkpoint: Path) -> ModelVersion:
    with tracker.run("train", "training") as run_id:
        return register(tracker, "served", checkpoint, run_id)


def question(num_steps: int = 40) -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    return {
        "numeric": random.normal(size=(2, num_steps, 3)).astype(np.float32),
        "known": random.integers(0, 2, (2, num_steps, 3)).astype(np.float32),
        "categorical": random.integers(0, 5, (2, num_steps, 1)),
    }


def direct_answer(model: SparseEncoder, budget: Budget | None) -> np.ndarray:
    with torch.inference_mode():
        return model(*(torch.from_numpy(array) for array in question().values()), budget).numpy()


def test_processes_that_open_a_fresh_database_at_once_all_succeed_without_a_word(first_openers: str) -> None:
    assert first_openers == "[0, 0, 0, 0]"


def test_a_run_keeps_its_evidence(tracker: Tracker, tmp_path: Path) -> None:
    from matplotlib.figure import Figure

    (tmp_path / "notes.txt").write_text("seen")
    with tracker.run("train", "training", {"seed": "7"}) as run_id:
        tracker.log_params(run_id, {"model": {"width": 16, "layers": {"count": 2}}, "lr": 1e-3})
        tracker.log_params(run_id, {f"many{number}": number for number in range(250)})
        tracker.log_metrics(run_id, {"auroc[origin=EWR]": 0.75, "not a number": float("nan")})
        tracker.log_dataset(run_id, "flights", "d" * 64, "data/flights.parquet", "training")
        tracker.log_artifact(run_id, tmp_path / "notes.txt", "notes")
        tracker.log_dict(run_id, {"kpi": 1}, "kpis.json")
        tracker.log_figure(run_id, Figure(), "curve.png")
    run = tracker.get_run(run_id)
    assert run.info.status == "FINISHED"
    assert run.data.params["model.layers.count"] == "2"
    assert len(run.data.params) == 253
    assert run.data.metrics["auroc_origin_EWR_"] == 0.75
    assert np.isnan(run.data.metrics["not a number"])
    assert run.data.tags["kind"] == "training"
    assert run.data.tags["seed"] == "7"
    assert run.inputs
    assert run.info.artifact_uri
    [used] = run.inputs.dataset_inputs
    assert (used.dataset.name, used.dataset.digest) == ("flights", "d" * 36)
    stored = Path(run.info.artifact_uri.removeprefix("file://"))
    assert {path.name for path in stored.rglob("*") if path.is_file()} == {
        "notes.txt",
        "kpis.json",
        "curve.png",
    }


def test_a_run_knows_what_it_ran_on_and_how_loaded_the_machine_was(tracker: Tracker) -> None:
    with tracker.run("train", "training") as run_id:
        pass
    run = tracker.get_run(run_id)
    for tag in (
        "env.code",
        "env.git_commit",
        "env.lock",
        "env.python",
        "env.torch",
        "env.cpu",
        "env.platform",
    ):
        assert run.data.tags[tag], tag
    assert run.data.tags["env.torch"] == torch.__version__
    assert {"env.cuda", "env.gpu"} <= set(run.data.tags)
    assert run.data.metrics["system/system_memory_usage_megabytes"] > 0
    assert "system/cpu_utilization_percentage" in run.data.metrics


def test_a_long_series_arrives_whole_and_in_order(tracker: Tracker) -> None:
    with tracker.run("train", "training") as run_id:
        tracker.log_series(run_id, ((step, {"loss": 1 / (step + 1), "lr": 0.1}) for step in range(1700)))
    history = tracker._client.get_metric_history(run_id, "loss")
    assert [(point.step, point.value) for point in history] == [
        (step, 1 / (step + 1)) for step in range(1700)
    ]


def test_a_run_that_raises_is_marked_failed_with_the_reason(tracker: Tracker) -> None:
    with tracker.run("rollout", "rollout") as parent:
        with pytest.raises(InputError), tracker.run("train", "training", parent=parent) as run_id:
            raise InputError("flights.yaml: no positive label")
        with pytest.raises(KeyboardInterrupt), tracker.run("train", "training") as stopped:
            raise KeyboardInterrupt
    run = tracker.get_run(run_id)
    assert run.info.status == "FAILED"
    assert run.data.tags["failure"] == "InputError: flights.yaml: no positive label"
    assert run.data.tags["mlflow.parentRunId"] == parent
    assert tracker.get_run(stopped).data.tags["failure"].startswith("KeyboardInterrupt")
    assert tracker.get_run(parent).info.status == "FINISHED"


def test_no_run_is_ever_the_active_one(tracker: Tracker) -> None:
    import mlflow

    with tracker.run("outer", "test") as outer, tracker.run("inner", "test") as inner:
        assert mlflow.active_run() is None
        assert outer != inner


DIE_IN_A_RUN = """
import os, signal
from pipelines.settings import *
settings = load_settings(); quiet_environment(settings)
from pipelines.registry import Tracker
with Tracker.open(settings).run("train", "training") as run_id:
    print(run_id, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_the_run_of_a_process_killed_with_kill_9_is_closed_by_the_next_to_open(
    store: Settings, tracker: Tracker
) -> None:
    environ = {**os.environ, "DANKAI_HOME": str(store.home), "MLFLOW_TRACKING_URI": ""}
    died = subprocess.run(
        [sys.executable, "-c", DIE_IN_A_RUN], capture_output=True, text=True, env=environ, timeout=90
    )
    assert died.returncode == -signal.SIGKILL, died.stderr
    dead = died.stdout.strip()
    assert tracker.get_run(dead).info.status == "RUNNING"
    with tracker.run("alive", "test") as alive:
        Tracker.open(store)
        assert tracker.get_run(alive).info.status == "RUNNING"
    assert tracker.get_run(dead).info.status == "FAILED"
    assert tracker.get_run(dead).data.tags["failure"] == "its process died"


@pytest.mark.parametrize("uri", ["postgresql://ada:hidden-word@127.0.0.1:1/dankai", "http://127.0.0.1:1"])
def test_a_store_that_does_not_answer_is_one_clear_line_at_once(tmp_path: Path, uri: str) -> None:
    settings = load_settings({"DANKAI_HOME": str(tmp_path), "MLFLOW_TRACKING_URI": uri})
    with pytest.raises(InputError, match=r"MLFLOW_TRACKING_URI: .* does not answer") as caught:
        Tracker.open(settings)
    assert "hidden-word" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_database_file_that_is_none_is_one_clear_line_at_once(tmp_path: Path) -> None:
    settings = load_settings({"DANKAI_HOME": str(tmp_path)})
    (tmp_path / "mlflow.db").write_text("no database, though it has the name of one" * 100)
    with pytest.raises(InputError, match=r"mlflow\.db does not answer \(file is not a database\)"):
        Tracker.open(settings)


def test_a_version_carries_the_hashes_of_weights_and_data(
    tracker: Tracker, registered: ModelVersion, checkpoint: Path
) -> None:
    assert registered.checkpoint == sha256_of(checkpoint / "model.safetensors")
    assert registered.snapshot == "data hash"
    assert registered.name == "dankai-served"


def test_registering_the_same_weights_of_a_run_again_gives_the_same_version(
    tracker: Tracker, registered: ModelVersion, checkpoint: Path
) -> None:
    assert register(tracker, "served", checkpoint, registered.run_id) == registered


def test_weights_other_than_the_judged_ones_are_not_registered(tracker: Tracker, checkpoint: Path) -> None:
    weights, config = checkpoint / "model.safetensors", checkpoint / "config.json"
    with pytest.raises(InputError, match="not the judged checkpoint"):
        tracker.register_version("served", weights, config, "0" * 64, "data", "run", density=0.0)


def test_a_model_that_answers_nonsense_is_not_registered(tracker: Tracker, tmp_path: Path) -> None:
    broken = SparseEncoder(CONFIG)
    torch.nn.init.constant_(broken.head.bias, float("nan"))
    save_file(broken.state_dict(), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(CONFIG.to_dict()))
    with tracker.run("train", "training") as run_id, pytest.raises(InputError, match="no finite numbers"):
        register(tracker, "nonsense", tmp_path, run_id)
    assert tracker.aliases("dankai-nonsense") == {}


def test_aliases_are_set_moved_and_removed(tracker: Tracker, registered: ModelVersion) -> None:
    name = registered.name
    tracker.set_alias(name, "champion", registered.version)
    assert tracker.get_by_alias(name, "champion") == registered.model_copy(update={"aliases": ("champion",)})
    tracker.delete_alias(name, "champion")
    assert tracker.get_by_alias(name, "champion") is None
    assert tracker.aliases("dankai-nobody") == {}
    with pytest.raises(InputError, match="cannot make version 99 champion"):
        tracker.set_alias(name, "champion", 99)


def test_a_version_comes_back_from_the_registry_bit_for_bit_or_not_at_all(
    tracker: Tracker, registered: ModelVersion, checkpoint: Path, tmp_path: Path
) -> None:
    folder = tracker.download_version(registered, tmp_path)
    for name in ("model.safetensors", "config.json"):
        assert (folder / name).read_bytes() == (checkpoint / name).read_bytes()
    with pytest.raises(InputError, match="altered"):
        tracker.download_version(registered.model_copy(update={"checkpoint": "0" * 64}), tmp_path)


SERVE = """
import json, sys
import mlflow.pyfunc
import numpy as np
model = mlflow.pyfunc.load_model(sys.argv[1])
question = dict(np.load(sys.argv[2]))
answers = {name: model.predict(question, params) for name, params in
           {"default": None, "dense": {"budget": 0.0}, "half": {"budget": 0.5}}.items()}
np.savez(sys.argv[3], **answers)
import sparse_model
print(sparse_model.__file__)
"""


def test_a_stranger_serves_the_version_from_its_files_alone_at_any_density(
    tracker: Tracker, registered: ModelVersion, model: SparseEncoder, tmp_path: Path
) -> None:
    folder = tracker.download_version(registered, tmp_path).parent
    np.savez(tmp_path / "question.npz", allow_pickle=False, **question())
    arguments: list[Any] = [
        sys.executable,
        "-c",
        SERVE,
        folder,
        tmp_path / "question.npz",
        tmp_path / "answers.npz",
    ]
    served = subprocess.run(arguments, capture_output=True, text=True, cwd=tmp_path, timeout=90)
    assert served.returncode == 0, served.stderr
    assert Path(served.stdout.strip()).is_relative_to(folder)
    answers = np.load(tmp_path / "answers.npz")
    for name, budget in {"default": Budget(0.25), "dense": None, "half": Budget(0.5)}.items():
        np.testing.assert_allclose(answers[name], direct_answer(model, budget), rtol=1e-5, atol=1e-6)


def test_registering_leaves_the_import_path_alone(tracker: Tracker, checkpoint: Path) -> None:
    before = list(sys.path)
    with tracker.run("train", "training") as run_id:
        register(tracker, "path", checkpoint, run_id)
    assert sys.path == before


def test_a_stored_version_holds_no_pickle_and_a_planted_one_is_not_loaded(
    tracker: Tracker, registered: ModelVersion, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import mlflow.pyfunc
    import yaml

    monkeypatch.setattr(sys, "path", list(sys.path))  # MLflow puts the model's folder there
    folder = tracker.download_version(registered, tmp_path).parent
    assert {path.suffix for path in folder.rglob("*")} & {".pkl", ".pickle", ".pt", ".bin"} == set()
    trap = f"cos\nsystem\n(S'touch {tmp_path / 'owned'}'\ntR."
    (folder / "python_model.pkl").write_text(trap)
    described = yaml.safe_load((folder / "MLmodel").read_text())
    served = described["flavors"]["python_function"]
    del served["model_code_path"]
    served.update(loader_module="mlflow.pyfunc.model", python_model="python_model.pkl")
    (folder / "MLmodel").write_text(yaml.safe_dump(described))
    with pytest.raises(mlflow.MlflowException, match="pickle is disallowed"):
        mlflow.pyfunc.load_model(str(folder))
    assert not (tmp_path / "owned").exists()


def test_every_search_that_the_operators_page_gives_is_one_that_mlflow_takes(tracker: Tracker) -> None:
    page = (Path(__file__).parents[2] / "infra" / "operators.md").read_text()
    searches = re.findall(r"(?m)^((?:tags|attributes)\.\S+ \S+ '.*?')(?: {3,}|$)", page)
    assert len(searches) >= 8
    with tracker.run("flights pilot", "stage", {"dataset": "flights", "stage": "pilot", "verdict": "HOLD"}):
        pass
    found = {text: len(tracker._client.search_runs([tracker._experiment_id], text)) for text in searches}
    assert found["tags.kind = 'stage' and tags.verdict = 'HOLD'"] == 1  # and the others were understood


def test_the_address_of_a_runs_page_shows_no_password(tmp_path: Path) -> None:
    client: Any = None
    tracker = Tracker(client, "7", "https://ada:secret@runs.example/", tmp_path)
    place = "#/experiments/7/runs/r"
    assert tracker.page("r") == f"https://runs.example/{place}?{AS_TRAINING}"
    assert (
        tracker.page("r", artifact="x.html") == f"https://runs.example/{place}/artifacts/x.html?{AS_TRAINING}"
    )
    local = Tracker(client, "7", "sqlite:///mlflow.db", tmp_path)
    assert local.page("r") is None
    assert local.page("r", "http://127.0.0.1:5000") == f"http://127.0.0.1:5000/{place}?{AS_TRAINING}"
