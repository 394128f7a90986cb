"""A trained model on disk: weights as safetensors, its shape as JSON. No pickle anywhere."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.files import replace_file, sha256_of
from validation.errors import InputError
from validation.record import Record

if TYPE_CHECKING:
    from sparse_model.model import SparseEncoder


class Checkpoint(Record):
    """Where a trained model lies, what it is and what it was made from."""

    folder: str
    """Holds model.safetensors and config.json."""
    sha256: str
    """Of the weights file."""
    config: dict[str, Any]
    """ModelConfig as a dictionary."""
    snapshot: str
    """Content hash of the data it was trained on."""
    plan: str
    """Digest of the training plan."""
    mode: str
    seed: int
    num_steps: int
    validation_loss: float
    train_seconds: float
    peak_memory_bytes: int
    """Largest resident memory (CPU) or allocated device memory (GPU) of the training process."""
    run_id: str = ""
    account: str = ""
    """Of the operating system, that trained it; "" where unknown."""

    @property
    def weights(self) -> Path:
        return Path(self.folder) / "model.safetensors"

    def artifact_paths(self) -> tuple[str, ...]:
        return (str(self.weights), str(Path(self.folder) / "config.json"))


def save_weights(model: "SparseEncoder", folder: Path) -> str:
    """Write weights and config atomically; returns the SHA-256 of the weights."""
    from safetensors.torch import save

    state = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    replace_file(folder / "config.json", json.dumps(model.config.to_dict(), indent=1).encode())
    replace_file(folder / "model.safetensors", save(state))
    return sha256_of(folder / "model.safetensors")


def load_model(checkpoint: Checkpoint) -> "SparseEncoder":
    """The model of a checkpoint, in evaluation mode. Refuses weights that are not the recorded ones."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    from sparse_model.config import ModelConfig
    from sparse_model.model import SparseEncoder

    if not checkpoint.weights.is_file() or sha256_of(checkpoint.weights) != checkpoint.sha256:
        raise InputError(
            f"{checkpoint.weights}: not the weights that were recorded ({checkpoint.sha256[:12]}); "
            "train again or restore the file"
        )
    model = SparseEncoder(ModelConfig.from_dict(checkpoint.config))
    try:
        model.load_state_dict(load_file(checkpoint.weights))
    except (SafetensorError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"{checkpoint.weights}: no weights of this model ({reason}); train again") from None
    return model.eval()
