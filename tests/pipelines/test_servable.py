"""A model is loaded only when a trusted key signed every file in it: what was planted never runs."""

import json
import pickle
import shutil
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from pipelines.files import sha256_of
from pipelines.registry import ModelVersion, Tracker
from pipelines.servable import MANIFEST, SIGNATURE, WEIGHTS, sign_model, verify_model
from pipelines.signing import key_id
from validation.errors import InputError

KEY = Ed25519PrivateKey.generate()
TRUSTED = {key_id(KEY.public_key()): KEY.public_key()}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """Files as MLflow lays them out, signed."""
    folder = tmp_path / "model"
    for name in ("MLmodel", "serving_model.py", "code/sparse_model/model.py", f"artifacts/{WEIGHTS}"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"content of {name}")
    sign_model(folder, KEY)
    return folder


def checkpoint_of(folder: Path) -> str:
    return sha256_of(folder / "artifacts" / WEIGHTS)


def test_a_model_as_it_was_signed_is_let_through(model: Path) -> None:
    verify_model(model, TRUSTED, checkpoint_of(model))


def replace_by_link(path: Path, target: Path) -> None:
    target.write_bytes(path.read_bytes())
    path.unlink()
    path.symlink_to(target)


def other_signature(model: Path) -> None:
    sign_model(model, Ed25519PrivateKey.generate())


def claimed_key(model: Path) -> None:
    """The attacker's signature under the trusted key's name."""
    other_signature(model)
    manifest = json.loads((model / MANIFEST).read_text())
    (model / MANIFEST).write_text(json.dumps(manifest | {"key": key_id(KEY.public_key())}))


PLANTED: dict[str, Callable[[Path], object]] = {
    "a pickle beside it": lambda m: (m / "python_model.pkl").write_bytes(pickle.dumps(print)),
    "code beside it": lambda m: (m / "code" / "sitecustomize.py").write_text("raise SystemExit"),
    "another MLmodel": lambda m: (m / "MLmodel").write_text("loader_module: evil"),
    "other code": lambda m: (m / "serving_model.py").write_text("raise SystemExit"),
    "other weights": lambda m: (m / "artifacts" / WEIGHTS).write_bytes(pickle.dumps(print)),
    "a file gone": lambda m: (m / "code/sparse_model/model.py").unlink(),
    "a link out": lambda m: replace_by_link(m / "MLmodel", m.parent / "outside"),
    "a linked folder": lambda m: (m / "code" / "more").symlink_to(m.parent),
    "no manifest": lambda m: (m / MANIFEST).unlink(),
    "no signature": lambda m: (m / SIGNATURE).unlink(),
    "a manifest that is none": lambda m: (m / MANIFEST).write_text("[]"),
    "another key's signature": other_signature,
    "another key's signature under this key's name": claimed_key,
}


@pytest.mark.parametrize("what", PLANTED)
def test_anything_planted_or_altered_is_refused_in_one_line(what: str, model: Path) -> None:
    checkpoint = checkpoint_of(model)
    PLANTED[what](model)
    with pytest.raises(InputError) as caught:
        verify_model(model, TRUSTED, checkpoint)
    assert str(model) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_weights_other_than_the_decided_ones_are_refused_though_they_are_signed(model: Path) -> None:
    with pytest.raises(InputError, match="not checkpoint 000000000000"):
        verify_model(model, TRUSTED, "0" * 64)


def test_what_is_planted_in_the_artifact_store_is_not_served(tracker: Tracker, tmp_path: Path) -> None:
    """A real version of a real registry: its stored code is replaced by code that leaves a file behind."""
    import torch
    from safetensors.torch import save_file

    from sparse_model.config import ModelConfig
    from sparse_model.model import SparseEncoder

    config = ModelConfig(num_numeric=1, cardinalities=(), num_outputs=1, width=8, num_heads=2, num_kv_heads=2)
    torch.manual_seed(0)
    save_file(SparseEncoder(config).state_dict(), tmp_path / WEIGHTS)
    (tmp_path / "config.json").write_text(json.dumps(config.to_dict()))
    with tracker.run("train", "training") as run_id:
        version = tracker.register_version(
            "planted",
            tmp_path / WEIGHTS,
            tmp_path / "config.json",
            sha256_of(tmp_path / WEIGHTS),
            "data",
            run_id,
            density=0.25,
        )
    store = Path(str(tracker.get_run(run_id).info.artifact_uri).removeprefix("file://")) / "model"
    (tmp_path / "first").mkdir()
    tracker.download_version(version, tmp_path / "first")
    trap = f"import os\nos.mkdir({str(tmp_path / 'owned')!r})\n"
    (store / "serving_model.py").write_text(trap + (store / "serving_model.py").read_text())
    (tmp_path / "second").mkdir()
    with pytest.raises(InputError, match=r"serving_model\.py: was altered .* the model is not loaded"):
        tracker.download_version(version, tmp_path / "second")
    assert not (tmp_path / "owned").exists()
    shutil.rmtree(store)
    (tmp_path / "third").mkdir()
    with pytest.raises(InputError, match="its files cannot be had"):
        tracker.download_version(version, tmp_path / "third")


class HostileServer(BaseHTTPRequestHandler):
    """A tracking server whose artifacts have names that lead out of the folder they are downloaded to."""

    names = ("../../escaped", "/tmp/escaped", "..%2f..%2fescaped")

    def do_GET(self) -> None:
        place = urlsplit(self.path)
        asked = parse_qs(place.query).get("path", [""])[0]
        if place.path.endswith("/runs/get"):
            run: dict[str, Any] = {"run_id": "r" * 32, "experiment_id": "0", "status": "FINISHED"}
            self.answer(
                {"run": {"info": run | {"artifact_uri": "mlflow-artifacts:/0/r/artifacts"}, "data": {}}}
            )
        elif place.path.endswith("/mlflow-artifacts/artifacts"):
            files = [{"path": name, "is_dir": False, "file_size": 5} for name in self.names]
            self.answer({"files": files if asked.endswith("model") else []})
        else:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"owned")

    def answer(self, content: dict[str, Any]) -> None:
        body = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Says nothing."""


@pytest.fixture
def hostile_server() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), HostileServer)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("name", [*HostileServer.names, "harmless.txt"])
def test_artifact_names_of_a_hostile_server_lead_nowhere(
    name: str, hostile_server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow import MlflowClient

    monkeypatch.setattr(HostileServer, "names", (name,))
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    folder = tmp_path / "a" / "b" / "download"
    folder.mkdir(parents=True)
    tracker = Tracker(MlflowClient(hostile_server, hostile_server), "0", hostile_server, tmp_path / "keys")
    version = ModelVersion(name="dankai-x", version=1, checkpoint="c", snapshot="s", run_id="r" * 32)
    said = "no readable signed manifest" if name == "harmless.txt" else "its files cannot be had"
    with pytest.raises(InputError, match=said):
        tracker.download_version(version, folder)
    written = [path for path in tmp_path.rglob("*") if path.is_file() and not path.is_relative_to(folder)]
    assert written == []
    assert not Path("/tmp/escaped").exists()
