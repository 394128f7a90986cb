"""A bundle of any model that this installation trained: the one that is live, a version, or a folder."""

from pathlib import Path
from typing import TYPE_CHECKING

from pipelines.budgets import FILE, load_calibration
from pipelines.checkpoint import Checkpoint
from pipelines.edge.bundle import Bundle, build_bundle
from pipelines.edge.parity import parity_inputs
from pipelines.files import sha256_of
from pipelines.release import live_checkpoint, trained_checkpoint
from pipelines.release_log import ReleaseLog
from pipelines.settings import Settings
from pipelines.signing import load_key
from validation.errors import InputError
from validation.gates import Outcome

if TYPE_CHECKING:
    from pipelines.data.spec import DatasetSpec
    from pipelines.edge.precision import Precision


def build_edge_bundle(
    settings: Settings,
    spec: "DatasetSpec",
    checkpoint: Checkpoint,
    parent: Path | None = None,
    precision: "Precision | None" = None,
) -> Bundle:
    """Export, sign and put at parent/HASH (default: the dataset's own bundles). Raises InputError.

    `precision` is the dataset's own unless given. The manifest names the verdict that last let this model
    pass, "" where no gate ever did.
    """
    from pipelines.job import dataset_folder
    from pipelines.preparation import windows_of

    windows, own = windows_of(checkpoint, spec, settings), dataset_folder(settings, spec.name) / "bundles"
    is_calibrated = (Path(checkpoint.folder) / FILE).exists()
    return build_bundle(
        checkpoint,
        spec,
        windows.preprocessing,
        parity_inputs(windows),
        1.0 if checkpoint.mode == "dense" else spec.training.target_density,
        _last_pass(settings, checkpoint),
        load_key(settings.keys),
        parent or own,
        load_calibration(Path(checkpoint.folder)) if is_calibrated else None,
        precision or spec.edge_precision,
        own / ".releases.json",
    )


def find_checkpoint(
    settings: Settings, dataset: str, version: int | None = None, folder: Path | None = None
) -> Checkpoint:
    """The model that is live, or the one of a registered version or of a checkpoint's folder.

    Raises InputError where it is not there or was not trained by this installation.
    """
    if folder is not None:
        weights = folder / "model.safetensors"
        if not weights.is_file():
            raise InputError(f"{folder}: holds no model.safetensors; name the folder of a checkpoint")
        return trained_checkpoint(settings, dataset, sha256_of(weights))
    if version is not None:
        from pipelines.registry import Tracker, registered_name

        stored = Tracker.open(settings).get_version(registered_name(dataset), version)
        return trained_checkpoint(settings, dataset, stored.checkpoint)
    return live_checkpoint(settings, dataset)


def _last_pass(settings: Settings, checkpoint: Checkpoint) -> str:
    """Digest of the newest verdict that let the checkpoint pass a gate."""
    passed = [
        entry.decision.verdict
        for entry in ReleaseLog.open(settings).entries()
        if entry.decision.checkpoint == checkpoint.sha256 and entry.decision.outcome is Outcome.PASS
    ]
    return next((verdict for verdict in reversed(passed) if verdict), "")
