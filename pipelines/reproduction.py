"""A stored training, done again from its snapshot, lock and seed: is it what it was said to be?"""

import shutil
from pathlib import Path

from pipelines.checkpoint import Checkpoint
from pipelines.data.stream import content_hash
from pipelines.data.windows import Windows
from pipelines.fingerprint import environment
from pipelines.job import Report
from pipelines.settings import Settings
from pipelines.steps import stored
from pipelines.training_job import TrainingJob, load_training_job
from validation.errors import InputError
from validation.gates import Outcome
from validation.record import Record

TOLERANCE = 0.01
"""Relative difference of the best validation loss. On one kind of machine equal bits are expected, and said;
another processor or number of processes adds in another order, and training magnifies it."""


class Reproduction(Record):
    """What came of it."""

    run: str
    weights: str
    """SHA-256 of those that were stored."""
    weights_again: str
    largest_difference: float
    """Of any weight."""
    loss: float
    """Best validation loss of the stored training."""
    loss_again: float
    tolerance: float
    outcome: Outcome
    reason: str


def reproduce(settings: Settings, run: str, tolerance: float, report: Report) -> Reproduction:
    """Train `run` (of an MLflow run id or of the weights' SHA-256 the first six letters or more) once more.

    Raises InputError for a run that is not known here, and where its snapshot or lock is not what it was.
    """
    checkpoint = _stored(settings, run)
    job = _unchanged(checkpoint)
    folder = settings.home / "reproductions" / checkpoint.sha256[:16]  # a killed one goes on from there
    again = _trained(job, folder, report)
    found = _judged(checkpoint, again, job, tolerance)
    shutil.rmtree(folder)
    return found


def _stored(settings: Settings, run: str) -> Checkpoint:
    trained = stored(settings.steps, "*-train-*", Checkpoint, settings.keys)
    known = {checkpoint.sha256: checkpoint for checkpoint in trained}
    found = [
        c for c in known.values() if len(run) >= 6 and (c.run_id.startswith(run) or c.sha256.startswith(run))
    ]
    if len(found) != 1:
        what = "no training" if not found else f"{len(found)} trainings"
        fix = "give the id of a training's MLflow run, or its weights' SHA-256, six letters or more"
        raise InputError(f"{run}: {what} of that name in {settings.steps}; {fix}")
    return found[0]


def _unchanged(checkpoint: Checkpoint) -> TrainingJob:
    """The stored training's own record, once snapshot and lock are known to be those that it names."""
    job = load_training_job(Path(checkpoint.folder))
    if (job.plan.digest(), job.mode, job.seed) != (checkpoint.plan, checkpoint.mode, checkpoint.seed):
        raise InputError(f"{checkpoint.folder}: training.json is not about these weights; restore the file")
    snapshot = Path(job.snapshot.uri)
    if not snapshot.is_file() or content_hash(snapshot) != checkpoint.snapshot:
        fix = f"restore the table with content {checkpoint.snapshot[:12]}"
        raise InputError(f"{snapshot}: not the snapshot that was trained on; {fix}")
    if job.made_with.lock != environment().lock:
        fix = f"install the lock with digest {job.made_with.lock[:12]}, and run the command from its checkout"
        raise InputError(f"requirements.lock: not the one that was trained with; {fix}")
    return job


def _trained(job: TrainingJob, folder: Path, report: Report) -> Checkpoint:
    from pipelines.training import train
    from sparse_model.config import ModelConfig

    windows = Windows(job.snapshot, job.spec, job.preprocessing)
    config = ModelConfig.from_dict(job.config)
    return train(windows, config, job.plan, job.mode, job.seed, folder, report, job.warm_start)[0]


def _judged(before: Checkpoint, again: Checkpoint, job: TrainingJob, tolerance: float) -> Reproduction:
    apart = abs(again.validation_loss - before.validation_loss) / max(abs(before.validation_loss), 1e-12)
    is_within = apart <= tolerance  # not so for NaN
    same = before.sha256 == again.sha256
    said = "equal bits" if same else f"validation loss {apart:.3g} apart, {tolerance:g} allowed"
    changed = [name for name in ("code", "packages", "cpu", "gpu") if _differs(job, name)]
    reason = f"{said}; other {', '.join(changed)} than then" if changed else said
    return Reproduction(
        run=before.run_id,
        weights=before.sha256,
        weights_again=again.sha256,
        largest_difference=_largest_difference(before, again),
        loss=before.validation_loss,
        loss_again=again.validation_loss,
        tolerance=tolerance,
        outcome=Outcome.PASS if same or is_within else Outcome.FAIL,
        reason=reason,
    )


def _differs(job: TrainingJob, name: str) -> bool:
    return getattr(job.made_with, name) != getattr(environment(), name)


def _largest_difference(before: Checkpoint, again: Checkpoint) -> float:
    from safetensors.torch import load_file

    first, second = load_file(before.weights), load_file(again.weights)
    return max(float((values - second[name]).abs().max()) for name, values in first.items())
