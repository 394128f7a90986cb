"""A bundle: the folder that a device gets. Graph, preprocessing, golden answer, signed manifest.

A bundle is named by its content and never changes. It appears under its name whole or not at all.
"""

import hashlib
import io
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from pipelines.budgets import Calibration
from pipelines.checkpoint import Checkpoint, load_model
from pipelines.data.preprocessing import Preprocessing
from pipelines.data.spec import DatasetSpec
from pipelines.edge.compiled import CompiledEncoder, NotCompiled, running_here
from pipelines.edge.parity import ParityReport, parity
from pipelines.edge.rows import Inputs
from pipelines.edge.runtime import Engine, OnnxEncoder
from pipelines.edge.verification import FORMAT, MANIFEST, PURPOSE, SIGNATURE, BundleError, read_bundle
from pipelines.files import exclusive_lock, replace_file, sync_folder
from pipelines.signing import key_id, sign
from validation.errors import InputError
from validation.record import Record

if TYPE_CHECKING:
    from pipelines.edge.precision import Precision
    from sparse_model.model import SparseEncoder

_DRAFT = ".building-"
MACHINES = ("aarch64", "x86_64")
"""Processors that onnxruntime is there for; a device of another kind refuses the bundle."""


class Bundle(Record):
    """A signed bundle on disk."""

    folder: str
    manifest_sha256: str
    size_bytes: int
    key_id: str
    checkpoint: str
    density: float
    parity: ParityReport

    def artifact_paths(self) -> tuple[str, ...]:
        return (str(Path(self.folder) / MANIFEST), str(Path(self.folder) / SIGNATURE))


def build_bundle(
    checkpoint: Checkpoint,
    spec: DatasetSpec,
    preprocessing: Preprocessing,
    windows: Sequence[Inputs],
    density: float,
    verdict: str,
    key: Ed25519PrivateKey,
    parent: Path,
    calibration: Calibration | None = None,
    precision: "Precision" = "fp32",
    releases: Path | None = None,
) -> Bundle:
    """Export, compare with the checkpoint on `windows`, sign, and put the bundle at parent/HASH.

    The golden input is the window on which graph and checkpoint agree best; its answer is the checkpoint's.
    `verdict` is the digest of the verdict that let the checkpoint come this far. A parity that does not
    hold is recorded, not raised: the gate judges it. `releases` is the book of release numbers, one for all
    folders that bundles of a dataset are put in; by default it lies beside the bundles. Raises InputError for
    a reduced `precision` where the compiled encoder, which alone has it, does not run.
    """
    model = load_model(checkpoint)
    made_from = {
        "checkpoint": checkpoint.sha256,
        "snapshot": checkpoint.snapshot,
        "dataset": spec.digest(),
        "verdict": verdict,
    }
    parent.mkdir(parents=True, exist_ok=True)
    with exclusive_lock(parent / ".lock"):
        _remove_drafts(parent)
        try:
            draft = parent / f"{_DRAFT}{os.getpid()}"
            draft.mkdir()
            report = _write_files(draft, checkpoint, model, preprocessing, windows, density, precision)
            contract = _contract(spec, preprocessing, model)
            unnumbered = _manifest(draft, checkpoint, contract, report, calibration, made_from)
            release = release_number(releases or parent / ".releases.json", _bytes(unnumbered))
            content = _bytes({**unnumbered, "release": release})
            replace_file(draft / MANIFEST, content)
            replace_file(draft / SIGNATURE, sign(key, PURPOSE, content).encode())
            folder = _publish(draft, parent, content, key.public_key())
        finally:
            _remove_drafts(parent)
    return Bundle(
        folder=str(folder),
        manifest_sha256=hashlib.sha256(content).hexdigest(),
        size_bytes=sum(file.stat().st_size for file in folder.iterdir()),
        key_id=key_id(key.public_key()),
        checkpoint=checkpoint.sha256,
        density=density,
        parity=report,
    )


def verify_bundle(folder: Path, key: Ed25519PublicKey) -> dict[str, Any]:
    """The manifest of a bundle that `key` signed. Raises InputError where it must not be used."""
    try:
        return read_bundle(folder, key)[0]
    except BundleError as error:
        raise InputError(str(error)) from None


def _write_files(
    draft: Path,
    checkpoint: Checkpoint,
    model: "SparseEncoder",
    preprocessing: Preprocessing,
    windows: Sequence[Inputs],
    density: float,
    precision: "Precision",
) -> ParityReport:
    from pipelines.edge.export import export_onnx

    export_onnx(model, draft / "model.onnx")
    report = _worst_parity((draft / "model.onnx").read_bytes(), model, windows, density, precision)
    if not np.isfinite(report.max_abs_error):
        raise InputError(f"{checkpoint.weights}: answers with NaN or infinity; train again")
    golden = windows[int(np.argmin(report.window_errors))]
    replace_file(draft / "preprocessing.json", preprocessing.model_dump_json(indent=1).encode())
    replace_file(draft / "golden.npz", _arrays(golden, _checkpoint_outputs(model, golden, density)))
    return report


def _worst_parity(
    graph: bytes,
    model: "SparseEncoder",
    windows: Sequence[Inputs],
    density: float,
    precision: "Precision",
) -> ParityReport:
    """Of every engine that runs here: a device takes whichever it has."""
    threads = os.cpu_count() or 1
    engines: list[Engine] = [OnnxEncoder(graph, threads)] if precision == "fp32" else []
    for name in running_here() or ["compiled"]:  # which then says why it does not
        try:
            engines.append(CompiledEncoder(graph, model.config.to_dict(), threads, precision, name))
        except NotCompiled as why:
            if not engines:
                raise InputError(f"--precision {precision}: {why}") from None
    reports = [parity(engine, model, windows, density, precision) for engine in engines]
    return max(reports, key=lambda report: (not report.passed, report.max_abs_error))


def _checkpoint_outputs(model: "SparseEncoder", window: Inputs, density: float) -> np.ndarray:
    import torch

    from sparse_model.config import Budget

    with torch.inference_mode():
        return model(*(torch.from_numpy(array)[None] for array in window), Budget(density))[0].numpy()


def _arrays(golden: Inputs, outputs: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.savez(
        buffer, outputs=outputs, **golden._asdict()
    )  # numpy dates every entry 1980: equal bytes each time
    return buffer.getvalue()


def _manifest(
    draft: Path,
    checkpoint: Checkpoint,
    contract: dict[str, Any],
    report: ParityReport,
    calibration: Calibration | None,
    made_from: Mapping[str, str],
) -> dict[str, Any]:
    # Where parity holds, what is left of the error are ties; the device's own rounding may break them too.
    tolerance = max(report.tolerance, report.max_abs_error) if report.passed else report.tolerance
    return {
        "format": FORMAT,
        "machines": list(MACHINES),
        "files": _listing(draft),
        "contract": contract,
        "model": checkpoint.config,
        "precision": report.precision,
        "extras": [] if report.precision == "fp32" else ["compiled"],
        "density": report.density,
        "budgets": [point.model_dump(mode="json") for point in calibration.points] if calibration else [],
        "budgets_measured": calibration.conditions.model_dump(mode="json") if calibration else {},
        "golden_tolerance": tolerance,
        "made_from": dict(made_from),
        "versions": {name: version(name) for name in ("dankai", "numpy", "onnxruntime", "torch")},
    }


def _bytes(manifest: Mapping[str, Any]) -> bytes:
    return json.dumps(manifest, indent=1, sort_keys=True, allow_nan=False).encode() + b"\n"


def release_number(book: Path, content: bytes) -> int:
    """The number of this content, the next one where it is new: devices go to higher numbers only."""
    digest = hashlib.sha256(content).hexdigest()
    with exclusive_lock(book.with_name(f"{book.name}.lock")):
        numbers: dict[str, int] = json.loads(book.read_bytes()) if book.exists() else {}
        if digest not in numbers:
            numbers[digest] = max(numbers.values(), default=0) + 1
            replace_file(book, json.dumps(numbers, indent=1).encode())
    return numbers[digest]


def _contract(spec: DatasetSpec, preprocessing: Preprocessing, model: "SparseEncoder") -> dict[str, Any]:
    """What a device has to hand in, and how the graph's outputs become scores."""
    from sparse_model.detection import NUM_FOLDS, SPAN

    numeric = preprocessing.numeric_names
    return {
        "task": spec.task,
        "target": spec.target,
        "lookback": spec.lookback,
        "horizon": spec.horizon,
        "known_ahead": spec.known_future,
        "numeric": numeric,
        "categorical": [entry.name for entry in preprocessing.vocabularies],
        "cardinalities": preprocessing.cardinalities,
        "target_inputs": [numeric.index(name) for name in spec.target] if spec.task == "detect" else [],
        "span": SPAN,
        "num_folds": NUM_FOLDS,
        "block_size": model.config.block_size,
    }


def _listing(draft: Path) -> Mapping[str, dict[str, Any]]:
    contents = {file.name: file.read_bytes() for file in sorted(draft.iterdir())}
    return {
        name: {"sha256": hashlib.sha256(content).hexdigest(), "size_bytes": len(content)}
        for name, content in contents.items()
    }


def _publish(draft: Path, parent: Path, manifest: bytes, key: Ed25519PublicKey) -> Path:
    """Give the draft its name. An equal bundle that is there already stays, unless it was damaged."""
    folder = parent / hashlib.sha256(manifest).hexdigest()[:16]
    read_bundle(draft, key)
    if folder.exists():
        try:
            read_bundle(folder, key)
            return folder
        except BundleError:
            folder.rename(draft.with_name(f"{draft.name}-damaged"))
    draft.rename(folder)
    sync_folder(parent)
    return folder


def _remove_drafts(parent: Path) -> None:
    """What builds leave behind, killed ones too. Only under the lock, so no other build is at work."""
    for path in parent.glob(f"{_DRAFT}*"):
        shutil.rmtree(path)
