"""A plant for the edge benchmarks: a small model with random weights, its bundles, and rows to score."""

import json
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from pipelines.checkpoint import Checkpoint, save_weights
from pipelines.data.preprocessing import Preprocessing, Scale, Vocabulary
from pipelines.data.spec import DatasetSpec
from pipelines.edge.bundle import Bundle, build_bundle
from pipelines.edge.rows import Inputs

LOOKBACK, HORIZON = 64, 16
SPEC = DatasetSpec.model_validate(
    {
        "name": "plant",
        "description": "pumps of a plant",
        "task": "event",
        "source": {"kind": "csv", "path": "plant.csv"},
        "time": "time",
        "entity": "entity",
        "numeric": ("load", "wind"),
        "categorical": ("site",),
        "known_future": ("wind", "site"),
        "calendar": ("hour",),
        "target": ("late",),
        "lookback": LOOKBACK,
        "horizon": HORIZON,
        "stride": HORIZON,
        "split": {"validation": 0.6, "test": 0.8},
    }
)


def plant_bundle(parent: Path, key: Ed25519PrivateKey, seed: int = 0, load_std: float = 4.0) -> Bundle:
    """A signed bundle; with a `load_std` near 0 it answers its golden input and no row of the plant."""
    import torch

    from sparse_model.config import ModelConfig
    from sparse_model.model import SparseEncoder

    torch.manual_seed(seed)
    shape = {"num_numeric": 6, "cardinalities": (3,), "num_outputs": 1, "width": 32, "block_size": 8}
    model = SparseEncoder(ModelConfig.from_dict(shape)).eval()
    torch.nn.init.normal_(model.head.weight, std=0.3)
    folder = parent / f"checkpoint-{seed}"
    checkpoint = Checkpoint(
        folder=str(folder),
        sha256=save_weights(model, folder),
        config=model.config.to_dict(),
        snapshot="0" * 64,
        plan="1" * 64,
        mode="sparse",
        seed=seed,
        num_steps=1,
        validation_loss=0.0,
        train_seconds=0.0,
        peak_memory_bytes=0,
    )
    windows = [_noise(seed) for seed in range(3)]
    return build_bundle(
        checkpoint, SPEC, _preprocessing(load_std), windows, 0.5, "2" * 64, key, parent / "bundles"
    )


def rows(number: int, entities: int = 1, seed: int = 0) -> Iterator[str]:
    """Lines of JSON, minute by minute, one for each entity in turn."""
    random, start = np.random.default_rng(seed), datetime(2024, 1, 1)
    for place in range(number):
        minute, entity = divmod(place, entities)
        row = {
            "time": (start + timedelta(minutes=minute)).isoformat(),
            "entity": f"pump {entity}",
            "load": round(float(random.normal(2, 4)), 4),
            "wind": None if place % 50 == 0 else round(float(random.normal()), 4),
            "site": ("north", "south")[entity % 2],
            "late": int(random.random() < 0.3),
        }
        yield json.dumps(row)


def _preprocessing(load_std: float) -> Preprocessing:
    return Preprocessing(
        scales=(Scale(name="load", mean=2.0, std=load_std), Scale(name="wind", mean=0.0, std=1.0)),
        calendar=("hour",),
        lead=Scale(name="lead_hours", mean=0.0, std=10.0),
        past_target="late",
        vocabularies=(Vocabulary(name="site", values=("north", "south")),),
    )


def _noise(seed: int) -> Inputs:
    random, steps = np.random.default_rng(seed), LOOKBACK + HORIZON
    return Inputs(
        random.normal(size=(steps, 6)).astype(np.float32),
        (random.random((steps, 6)) < 0.8).astype(np.float32),
        random.integers(0, 3, (steps, 1)),
    )
