"""From a dataset file to data that may be trained on: snapshot, validation, preprocessing."""

from pipelines.data.contract import contract_of
from pipelines.data.preprocessing import fit_preprocessing
from pipelines.data.snapshot import Snapshot, read_snapshot, take_snapshot
from pipelines.data.windows import Windows, refuse_unusable_split, training_rows
from pipelines.job import Job, Prepared
from validation.data import DataReport, validate
from validation.errors import InputError
from validation.gates import Outcome


def snapshot_data(job: Job) -> Snapshot:
    """Freeze the dataset's table, or find the snapshot of the same inputs."""
    return take_snapshot(job.spec, job.folder / "snapshots")


def validate_snapshot(job: Job, snapshot: Snapshot) -> DataReport:
    """Run the dataset's expectations; the report says how many rows were set aside, and where."""
    contract = contract_of(job.spec)
    share = job.policy.data.max_quarantined_share

    def compute() -> DataReport:
        return validate(
            read_snapshot(snapshot).to_pandas(),
            contract,
            job.folder / "data_docs" / snapshot.content_hash[:12],
            job.folder / "quarantine" / snapshot.content_hash[:12],
            max_quarantined_share=share,
        )

    inputs = {"snapshot": snapshot.content_hash, "contract": contract, "share": share}
    return job.once("validate", inputs, DataReport, compute)


def prepare(job: Job, snapshot: Snapshot, report: DataReport) -> Prepared:
    """Fit preprocessing on the training part. Raises InputError when the data may not be used."""
    if report.outcome is not Outcome.PASS:
        raise InputError(f"{job.spec.file}: the data is not fit for training: {report.reason}")
    table = read_snapshot(snapshot)
    preprocessing = fit_preprocessing(training_rows(table, job.spec), job.spec)
    refuse_unusable_split(Windows(snapshot, job.spec, preprocessing))
    return Prepared(snapshot=snapshot, report=report, preprocessing=preprocessing)
