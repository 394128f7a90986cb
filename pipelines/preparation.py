"""From a dataset file to data that may be trained on: snapshot, validation, preprocessing."""

import hashlib
from pathlib import Path
from tempfile import TemporaryDirectory

from pipelines.batches import batch_file, batches, known_rows
from pipelines.candidates import model_config
from pipelines.checkpoint import Checkpoint
from pipelines.data.contract import contract_of
from pipelines.data.preprocessing import fit_preprocessing
from pipelines.data.snapshot import Snapshot, freeze, kept_snapshots, snapshot_path, take_snapshot
from pipelines.data.spec import DatasetSpec
from pipelines.data.stream import chunks
from pipelines.data.windows import Windows, refuse_unusable_split, training_chunks
from pipelines.devices import refuse_unfit
from pipelines.files import sha256_of
from pipelines.job import Job, Prepared, dataset_folder
from pipelines.settings import Settings
from validation.data import DataReport, validate_parts
from validation.errors import InputError
from validation.gates import Outcome
from validation.structure import Structure


def refuse_unusable(spec: DatasetSpec, settings: Settings) -> None:
    """Look the whole table over before any store is opened, so that a refused one leaves nothing behind.

    Raises InputError.
    """
    refuse_unfit(spec.training)
    with TemporaryDirectory() as elsewhere:
        folder = _snapshots(spec, settings)
        is_taken = snapshot_path(spec, folder).exists()
        snapshot = take_snapshot(spec, folder if is_taken else Path(elsewhere))
        structure = Structure(contract_of(spec))
        for rows in chunks(snapshot.uri):
            structure.see(rows.to_pandas())
        structure.end()
        windows = Windows(snapshot, spec, fit_preprocessing(training_chunks(snapshot, spec), spec))
        refuse_unusable_split(windows)
        model_config(windows, spec)


def windows_of(checkpoint: Checkpoint, spec: DatasetSpec, settings: Settings) -> Windows:
    """The windows that a checkpoint was trained and judged on. Raises InputError for a changed table."""
    taken = [take_snapshot(spec, _snapshots(spec, settings)), *kept_snapshots(_snapshots(spec, settings))]
    snapshot = next((each for each in taken if each.content_hash == checkpoint.snapshot), None)
    if snapshot is None:
        raise spec.refuse("source", "its table changed since the model was trained; run the rollout again")
    return Windows(snapshot, spec, fit_preprocessing(training_chunks(taken[0], spec), spec))


def snapshot_data(job: Job) -> Snapshot:
    """Freeze the dataset's table, or find the snapshot of the same inputs."""
    with job.reporting("taking the snapshot"):
        return take_snapshot(job.spec, _snapshots(job.spec, job.settings))


def _snapshots(spec: DatasetSpec, settings: Settings) -> Path:
    return dataset_folder(settings, spec.name) / "snapshots"


def validate_snapshot(job: Job, snapshot: Snapshot) -> DataReport:
    """Run the dataset's expectations; the report says how many rows were set aside, and where."""
    contract = contract_of(job.spec)
    share = job.policy.data.max_quarantined_share

    def compute() -> DataReport:
        name = snapshot.content_hash[:12]
        docs, aside = job.folder / "data_docs" / name, job.folder / "quarantine" / name
        with job.reporting("validating the data"):
            if job.spread is not None:
                from pipelines.fan_out import validate_in_pieces

                return validate_in_pieces(job.spread, snapshot, contract, docs, aside, share)
            parts = (rows.to_pandas() for rows in chunks(snapshot.uri))
            return validate_parts(parts, contract, docs, aside, max_quarantined_share=share)

    inputs = {"snapshot": snapshot.content_hash, "contract": contract, "share": share}
    return job.once("validate", inputs, DataReport, compute)


def prepare(job: Job, snapshot: Snapshot, report: DataReport) -> Prepared:
    """Fit preprocessing on the training part. Raises InputError when the data may not be used."""
    if report.outcome is not Outcome.PASS:
        raise InputError(f"{job.spec.file}: the data is not fit for training: {report.reason}")
    with job.reporting("preparing the data"):
        preprocessing = fit_preprocessing(training_chunks(snapshot, job.spec), job.spec)
        refuse_unusable_split(Windows(snapshot, job.spec, preprocessing))
    return Prepared(snapshot=snapshot, report=report, preprocessing=preprocessing)


def source_data(job: Job) -> Prepared:
    """The dataset's own table, fit for training."""
    snapshot = snapshot_data(job)
    return prepare(job, snapshot, validate_snapshot(job, snapshot))


def known_data(job: Job) -> Prepared:
    """That table with every batch that was believed since. Scales and vocabularies stay the source's."""
    prepared, later = source_data(job), batches(job.settings, job.spec.name)
    if not later:
        return prepared
    content = [sha256_of(batch_file(job.settings, each)) for each in later]
    digest = hashlib.sha256("".join([prepared.snapshot.content_hash, *content]).encode()).hexdigest()
    path = _snapshots(job.spec, job.settings) / f"{job.spec.name}-known-{digest[:16]}.parquet"
    frozen = freeze(job.spec, lambda: known_rows(job.settings, prepared.snapshot), path)
    return prepared.model_copy(update={"snapshot": frozen})


def known_before(job: Job, content_hash: str) -> Prepared:
    """The data as they were known when this snapshot was taken. Raises InputError where it is gone."""
    folder = _snapshots(job.spec, job.settings)
    for snapshot in kept_snapshots(folder):
        if snapshot.content_hash == content_hash and Path(snapshot.uri).exists():
            return source_data(job).model_copy(update={"snapshot": snapshot})
    gone = f"snapshot {content_hash[:12]}, which the live model was trained on, is gone"
    raise InputError(f"{folder}: {gone}; restore it, or run the rollout again")
