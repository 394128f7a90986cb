"""A registered model's folder: written, signed, verified, loaded; a folder that MLflow can serve.

MLflow runs the Python files that lie in a model, wherever they came from. So a model is served only when
every file in it, its code included, is one that the holder of a trusted key put there.
"""

import hashlib
import json
import shutil
import sys
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from pipelines.files import replace_file, sha256_of
from pipelines.fingerprint import ROOT
from pipelines.signing import key_id, sign, verify
from validation.errors import InputError

if TYPE_CHECKING:
    import numpy as np
    from mlflow.models import ModelSignature
    from mlflow.pyfunc import PyFuncModel

MANIFEST, SIGNATURE = "dankai-manifest.json", "dankai-manifest.sig"
PURPOSE = "served model"
WEIGHTS, CONFIG = "model.safetensors", "config.json"
SERVING_PACKAGES = ("mlflow", "torch", "safetensors", "numpy")


def save_model(folder: Path, checkpoint: Path, config: Path, density: float) -> None:
    """Write an MLflow model that is code plus safetensors (no pickle), and see that it answers."""
    import mlflow.pyfunc
    import numpy as np

    shape = json.loads(config.read_text())
    with tempfile.TemporaryDirectory() as staging:
        artifacts = {"weights": f"{staging}/{WEIGHTS}", "config": f"{staging}/{CONFIG}"}
        shutil.copyfile(checkpoint, artifacts["weights"])  # MLflow follows no links
        shutil.copyfile(config, artifacts["config"])
        with _own_modules():
            mlflow.pyfunc.save_model(
                str(folder),
                python_model=str(Path(__file__).with_name("serving_model.py")),
                artifacts=artifacts,
                code_paths=[str(ROOT / "sparse_model")],
                signature=_signature(shape, density),
                model_config={"budget": density},
                input_example=_question(shape),
                pip_requirements=[f"{name}=={_installed(name)}" for name in SERVING_PACKAGES],
            )
            # MLflow only warns when its example fails, so the answer is looked at here.
            answer = mlflow.pyfunc.load_model(str(folder)).predict(_question(shape))
    expected = (1, 2 * shape["block_size"] + 1, shape["num_outputs"])
    if answer.shape != expected or not np.isfinite(answer).all():
        raise InputError(f"{checkpoint}: served, it answers {answer.shape} or no finite numbers; train again")


@contextmanager
def _own_modules() -> Iterator[None]:
    """Loading a model leaves its copy of sparse_model first on sys.path: use ours and put the path back."""
    import sparse_model.model  # noqa: F401  (what is imported already is not looked for again)

    path = sys.path
    try:
        # MLflow insists on a hint about type hints, which it would then read as a schema.
        with warnings.catch_warnings(record=True):
            yield
    finally:
        sys.path = path


def _signature(shape: Mapping[str, Any], density: float) -> "ModelSignature":
    """Named arrays in, one array out; a caller may choose the budget."""
    import numpy as np
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, ParamSchema, ParamSpec, Schema, TensorSpec

    single, steps = np.dtype("float32"), (-1, -1)
    columns, codes = shape["num_numeric"], len(shape["cardinalities"])
    inputs: list[ColSpec | TensorSpec] = [
        TensorSpec(single, (*steps, columns), "numeric"),
        TensorSpec(single, (*steps, columns), "known"),
        TensorSpec(np.dtype("int64"), (*steps, codes), "categorical"),
    ]
    outputs = Schema([TensorSpec(single, (*steps, shape["num_outputs"]))])
    return ModelSignature(Schema(inputs), outputs, ParamSchema([ParamSpec("budget", "double", density)]))


def _question(shape: Mapping[str, Any]) -> dict[str, "np.ndarray"]:
    """One short sequence: two whole blocks and a part of one."""
    import numpy as np

    num_steps, codes = 2 * shape["block_size"] + 1, len(shape["cardinalities"])
    numeric = np.ones((1, num_steps, shape["num_numeric"]), np.float32)
    return {"numeric": numeric, "known": numeric, "categorical": np.zeros((1, num_steps, codes), np.int64)}


def _installed(package: str) -> str:
    from importlib.metadata import version

    return version(package).split("+")[0]  # a local label like +cpu is not on the index


def sign_model(folder: Path, key: Ed25519PrivateKey) -> None:
    """List every file of the model with its SHA-256, and sign the list."""
    content = json.dumps({"key": key_id(key.public_key()), "files": _digests(folder)}, indent=1).encode()
    replace_file(folder / MANIFEST, content)
    replace_file(folder / SIGNATURE, sign(key, PURPOSE, content).encode())


def verify_model(folder: Path, trusted: Mapping[str, Ed25519PublicKey], checkpoint: str) -> None:
    """Raises InputError unless the folder holds the files that a trusted key signed, and those weights.

    A link, an unlisted file (a planted pickle), a changed line of code or of MLmodel: each is refused.
    """
    listed = _signed_files(folder, trusted)
    present = _digests(folder)
    for name in sorted(listed.keys() | present.keys()):
        if listed.get(name) != present.get(name):
            fault = "is not part of it" if name not in listed else "was altered or is gone"
            raise InputError(f"{folder / name}: {fault}; the model is not loaded: register it again")
    if listed.get(f"artifacts/{WEIGHTS}") != checkpoint:
        raise InputError(
            f"{folder / 'artifacts' / WEIGHTS}: its weights were altered: not checkpoint {checkpoint[:12]}"
        )


def _signed_files(folder: Path, trusted: Mapping[str, Ed25519PublicKey]) -> dict[str, str]:
    try:
        content, signature = ((folder / name).read_bytes() for name in (MANIFEST, SIGNATURE))
        manifest = json.loads(content)
        key, files = trusted.get(str(manifest["key"])), dict(manifest["files"])
    except (OSError, ValueError, KeyError, TypeError):
        raise InputError(
            f"{folder / MANIFEST}: no readable signed manifest; register the model again"
        ) from None
    if key is None or not verify(key, PURPOSE, content, signature.decode(errors="replace")):
        raise InputError(
            f"{folder / SIGNATURE}: not a trusted key's signature of {MANIFEST}; was it altered?"
        )
    return files


def _digests(folder: Path) -> dict[str, str]:
    """SHA-256 of every file by its path in the folder; a link counts by its target's name alone."""
    return {
        path.relative_to(folder).as_posix(): _digest(path)
        for path in sorted(folder.rglob("*"))
        if path.is_symlink() or not path.is_dir()
        if path.relative_to(folder).as_posix() not in (MANIFEST, SIGNATURE)
    }


def _digest(path: Path) -> str:
    if path.is_symlink():
        return f"link {hashlib.sha256(bytes(path.readlink())).hexdigest()}"
    return sha256_of(path) if path.is_file() else "no file"


def import_mlflow() -> None:
    """Import now what loading and invoking a model would import first, in seconds."""
    import mlflow.pyfunc.scoring_server  # noqa: F401


def load_model(folder: Path) -> "PyFuncModel":
    """What MLflow serves. Runs the model's own code: only for a folder that `verify_model` let pass."""
    import mlflow.pyfunc

    with warnings.catch_warnings(record=True):
        return mlflow.pyfunc.load_model(str(folder))


def invoke(model: Any, body: bytes, content_type: str) -> tuple[int, str]:
    """HTTP status and body that MLflow's scoring server gives for a request to /invocations.

    What it refuses comes back as {"error_code", "message"}, the message in one line.
    """
    from mlflow.exceptions import MlflowException
    from mlflow.pyfunc.scoring_server import invocations

    try:
        answer = invocations(body, content_type, model, model.metadata.get_input_schema())
    except MlflowException as error:
        return error.get_http_status_code(), refusal(error.error_code, _said(error.message))
    is_fine = answer.status == 200
    return answer.status, answer.response if is_fine else refusal("BAD_REQUEST", answer.response)


def refusal(code: str, message: str) -> str:
    """The body of an answer that is none."""
    return json.dumps({"error_code": code, "message": message[:500]})


def _said(message: str) -> str:
    """MLflow's reason in one line, without the whole request before it and its own history after it."""
    line = " ".join(message.split()).split(" IMPORTANT: ")[0].split(" Input: ")[0]
    return line.rsplit("Error: ", 1)[-1] if "Failed to" in line else line
