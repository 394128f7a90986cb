"""Units of the quality benchmark: what is trained how long, where, and into which cells it is scored."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pipelines.benchmarks.quality import listops
from pipelines.benchmarks.quality.fitting import Stage
from pipelines.benchmarks.quality.results import Key

Cells = Iterator[tuple[Key, dict[str, Any]]]
"""Measurements as they are made."""


@dataclass(frozen=True)
class Size:
    """How much is trained and scored; part of every measurement's configuration."""

    name: str
    first: Stage
    """Dense, repeated until the loss says that the task is understood."""
    repeats: int
    """At most."""
    dense: tuple[Stage, ...]
    """Dense, to the lengths scored; the sparse models start from the first of these."""
    sparse: tuple[Stage, ...]
    """Every way of selecting, one stage per length scored."""
    selector: Stage
    """The pilot: selector alone."""
    test_steps: int
    """Steps of all test sequences of a length, at least one sequence."""
    mqar_lengths: tuple[int, ...]
    mqar_first: Stage
    mqar_dense: tuple[Stage, ...]
    mqar_sparse: tuple[Stage, ...]
    listops_examples: tuple[int, int]
    """Training and test expressions."""
    listops_start: Stage
    """Dense, for both; then each goes on in its own way."""
    listops: Stage
    seeds: tuple[int, ...] = (0, 1, 2)


FULL = Size(
    name="full",
    first=Stage(512, 250, 64, 2e-3),
    repeats=16,
    dense=(
        Stage(2048, 150, 16, 1e-3),
        Stage(8192, 150, 8, 1e-3),
        Stage(32768, 40, 1, 2e-4),
        Stage(65536, 30, 1, 2e-4),
    ),
    sparse=(Stage(8192, 800, 4, 1e-3), Stage(32768, 60, 1, 3e-4), Stage(65536, 40, 1, 3e-4)),
    selector=Stage(8192, 400, 1, 1e-2),
    test_steps=2**20,
    mqar_lengths=(4096, 16384),
    mqar_first=Stage(128, 500, 256, 1e-3),
    mqar_dense=(Stage(1024, 200, 16, 1e-3), Stage(4096, 150, 8, 1e-3), Stage(16384, 60, 2, 5e-4)),
    mqar_sparse=(Stage(4096, 400, 4, 1e-3), Stage(16384, 150, 1, 5e-4)),
    listops_examples=(96_000, 2_000),
    listops_start=Stage(listops.MAX_LENGTH, 1000, 32, 1e-3),
    listops=Stage(listops.MAX_LENGTH, 1500, 32, 1e-3),
)
QUICK = Size(
    name="quick",
    first=Stage(256, 2, 2, 2e-3),
    repeats=1,
    dense=(Stage(256, 1, 2, 1e-3), Stage(512, 1, 1, 1e-3)),
    sparse=(Stage(512, 1, 1, 1e-3),),
    selector=Stage(512, 1, 1, 1e-2),
    test_steps=512,
    mqar_lengths=(256,),
    mqar_first=Stage(128, 1, 2, 1e-3),
    mqar_dense=(Stage(128, 1, 2, 1e-3), Stage(256, 1, 2, 1e-3)),
    mqar_sparse=(Stage(256, 1, 1, 1e-3),),
    listops_examples=(4, 4),
    listops_start=Stage(listops.MAX_LENGTH, 1, 2, 1e-3),
    listops=Stage(listops.MAX_LENGTH, 1, 2, 1e-3),
    seeds=(0,),
)


@dataclass(frozen=True)
class Unit:
    """One model of one seed: trained, then scored cell by cell."""

    task: str
    method: str
    seed: int
    settings: dict[str, Any]
    lengths: tuple[int, ...]
    densities: tuple[float, ...]
    run: "Callable[[Unit, Place], Cells]"
    is_start: bool = False
    """Others go on from its weights, so it is done again where these are gone."""

    @property
    def keys(self) -> list[Key]:
        return [Key(self.task, self.method, n, d, self.seed) for n in self.lengths for d in self.densities]


@dataclass(frozen=True)
class Place:
    """Where a unit works."""

    size: Size
    folder: Path
    """Weights and generated data, shared by the units."""
    device: torch.device
    workers: int
