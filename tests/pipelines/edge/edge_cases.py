"""Small models, windows and bundles for the edge tests."""

from pathlib import Path

import numpy as np
import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from pipelines.checkpoint import Checkpoint, save_weights
from pipelines.data.preprocessing import Preprocessing, Scale, Vocabulary
from pipelines.data.spec import DatasetSpec
from pipelines.edge.bundle import Bundle, build_bundle
from pipelines.edge.precision import Precision
from pipelines.edge.rows import Inputs
from sparse_model.config import ModelConfig
from sparse_model.model import SparseEncoder

KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
PREPROCESSING = Preprocessing(
    scales=(
        Scale(name="load", mean=2.0, std=4.0, low=-50.0, high=50.0),
        Scale(name="wind", mean=0.0, std=1.0),
    ),
    calendar=("hour", "weekday"),
    lead=Scale(name="lead_hours", mean=0.0, std=10.0),
    past_target="late",
    vocabularies=(Vocabulary(name="site", values=("north", "south")),),
)
SPEC = DatasetSpec.model_validate(
    {
        "name": "plant",
        "description": "a plant",
        "task": "event",
        "source": {"kind": "csv", "path": "plant.csv"},
        "time": "time",
        "numeric": ("load", "wind"),
        "categorical": ("site",),
        "known_future": ("wind", "site"),
        "calendar": ("hour", "weekday"),
        "target": ("late",),
        "lookback": 40,
        "horizon": 8,
        "stride": 8,
        "split": {"validation": 0.6, "test": 0.8},
    }
)


def random_model(seed: int = 0, **shape: object) -> SparseEncoder:
    """A model with random weights, its head included."""
    torch.manual_seed(seed)
    values = {"num_numeric": 8, "cardinalities": (3,), "num_outputs": 1, "width": 32, "block_size": 8} | shape
    model = SparseEncoder(ModelConfig.from_dict(values)).eval()
    torch.nn.init.normal_(model.head.weight, std=0.3)
    return model


def random_window(config: ModelConfig, num_steps: int, seed: int = 0) -> Inputs:
    """Noise of the model's shape, some of it unknown."""
    random = np.random.default_rng(seed)
    shape = (num_steps, config.num_numeric)
    codes = [random.integers(0, size, num_steps) for size in config.cardinalities]
    return Inputs(
        random.normal(size=shape).astype(np.float32),
        (random.random(shape) < 0.8).astype(np.float32),
        np.stack(codes, axis=1) if codes else np.zeros((num_steps, 0), np.int64),
    )


def built_bundle(parent: Path, head_bias: float = 0.0, precision: Precision = "fp32") -> Bundle:
    """A signed bundle of a small random model."""
    model = random_model()
    torch.nn.init.constant_(model.head.bias, head_bias)
    sha256 = save_weights(model, parent / "checkpoint")
    checkpoint = Checkpoint(
        folder=str(parent / "checkpoint"),
        sha256=sha256,
        config=model.config.to_dict(),
        snapshot="0" * 64,
        plan="1" * 64,
        mode="sparse",
        seed=0,
        num_steps=1,
        validation_loss=0.0,
        train_seconds=0.0,
        peak_memory_bytes=0,
    )
    windows = [random_window(model.config, 48, seed) for seed in range(3)]
    made_of = (checkpoint, SPEC, PREPROCESSING, windows, 0.5, "2" * 64, KEY, parent / "bundles")
    return build_bundle(*made_of, precision=precision)


if __name__ == "__main__":  # a build to be killed
    import sys

    built_bundle(Path(sys.argv[1]))
