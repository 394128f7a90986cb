"""All that a training needs, as a file beside its weights: other processes and a later day train from it."""

from pathlib import Path
from typing import Any

from pydantic import ValidationError

from pipelines.checkpoint import Checkpoint
from pipelines.data.preprocessing import Preprocessing
from pipelines.data.snapshot import Snapshot
from pipelines.data.spec import DatasetSpec
from pipelines.files import replace_file
from pipelines.fingerprint import Environment
from pipelines.training_plan import Mode, TrainingPlan
from validation.errors import InputError
from validation.record import Record

FILE = "training.json"


class TrainingJob(Record):
    """The arguments of one call of `training.train`, and where it was made."""

    snapshot: Snapshot
    spec: DatasetSpec
    preprocessing: Preprocessing
    config: dict[str, Any]
    """ModelConfig as a dictionary."""
    plan: TrainingPlan
    mode: Mode
    seed: int
    folder: str
    warm_start: Checkpoint | None
    made_with: Environment

    def save(self) -> None:
        replace_file(Path(self.folder) / FILE, self.model_dump_json(indent=1).encode() + b"\n")


def load_training_job(folder: Path) -> TrainingJob:
    """Raises InputError where none was kept, or not a whole one."""
    path = folder / FILE
    try:
        return TrainingJob.model_validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        why = type(error).__name__
        raise InputError(
            f"{path}: no record of a training ({why}); trainings of this version keep one"
        ) from None
