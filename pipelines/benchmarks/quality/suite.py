"""What `dankai bench quality` measures: units of work, each a model of one seed trained and scored.

A unit writes its measurements one by one and is skipped when all of them are there under the same configuration.
Units of one phase run side by side (the models are small: several fill one GPU); a later phase builds on the
weights of an earlier one.
"""

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipelines.benchmarks.quality import controls, listops, mqar, pilot, planted
from pipelines.benchmarks.quality.fitting import (
    DENSITIES,
    RECIPE,
    Batch,
    MakeBatch,
    Readout,
    Stage,
    accuracy,
    fit,
)
from pipelines.benchmarks.quality.fitting import plain_readout as plain
from pipelines.benchmarks.quality.results import Key, Results, digest
from sparse_model.config import Budget, ModelConfig
from sparse_model.model import SparseEncoder

_LEARNED = 0.02  # training loss below which the first, shortest stage has understood the task
_EXTRA_DENSITY = 0.5  # drawn in training beside those of the table


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
    mqar_dense: tuple[Stage, ...]
    mqar_sparse: tuple[Stage, ...]
    listops_examples: tuple[int, int]
    """Training and test expressions."""
    listops: Stage
    seeds: tuple[int, ...] = (0, 1, 2)


FULL = Size(
    name="full",
    first=Stage(512, 250, 64, 2e-3),
    repeats=16,
    dense=(Stage(2048, 150, 16, 1e-3), Stage(8192, 150, 8, 1e-3), Stage(32768, 40, 1, 2e-4), Stage(65536, 30, 1, 2e-4)),
    sparse=(Stage(8192, 800, 4, 1e-3), Stage(32768, 60, 1, 3e-4), Stage(65536, 40, 1, 3e-4)),
    selector=Stage(8192, 400, 1, 1e-2),
    test_steps=2**20,
    mqar_lengths=(4096, 16384),
    mqar_dense=(Stage(1024, 150, 16, 1e-3), Stage(4096, 150, 8, 1e-3), Stage(16384, 60, 2, 5e-4)),
    mqar_sparse=(Stage(4096, 400, 4, 1e-3), Stage(16384, 150, 1, 5e-4)),
    listops_examples=(96_000, 2_000),
    listops=Stage(listops.MAX_LENGTH, 2500, 32, 1e-3),
)  # fmt: skip
QUICK = Size(
    name="quick",
    first=Stage(256, 2, 2, 2e-3),
    repeats=1,
    dense=(Stage(256, 1, 2, 1e-3), Stage(512, 1, 1, 1e-3)),
    sparse=(Stage(512, 1, 1, 1e-3),),
    selector=Stage(512, 1, 1, 1e-2),
    test_steps=512,
    mqar_lengths=(256,),
    mqar_dense=(Stage(128, 1, 2, 1e-3), Stage(256, 1, 2, 1e-3)),
    mqar_sparse=(Stage(256, 1, 1, 1e-3),),
    listops_examples=(4, 4),
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
    run: "Callable[[Unit, Place], Iterator[tuple[Key, dict[str, Any]]]]"

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


def work_off(unit: Unit, place: Place, results: Results) -> str:
    """Do a unit unless it is done; its label."""
    label = f"{unit.task} {unit.method} seed {unit.seed}"
    weights = place.folder / f"{unit.task}-{unit.method}-{unit.seed}"
    builds_weights = unit.method == "dense" and unit.task in ("planted", "mqar")
    if results.has(unit.keys, digest(unit.settings)) and (not builds_weights or list(weights.glob("*.pt"))):
        return f"{label}: already measured"
    if place.device.type == "cuda":
        torch.set_float32_matmul_precision("high")
    for key, values in unit.run(unit, place):
        results.add(key, values, unit.settings, place.device)
    return f"{label}: measured"


def phases(size: Size, tasks: tuple[str, ...]) -> list[list[Unit]]:
    """All units of the named tasks; a phase needs the ones before it."""
    first, second, third = [], [], []
    for seed in size.seeds:
        if "planted" in tasks:
            first.append(_unit(size, "planted", "dense", seed, _lengths(size.dense[1:]), (1.0,), _planted_dense))
            for method in ("ours", *_RULES):
                unit = _unit(size, "planted", method, seed, _lengths(size.sparse), DENSITIES, _planted_sparse)
                second.append(unit)
            third.append(
                _unit(size, "planted", "oracle", seed, _lengths(size.sparse), DENSITIES, _planted_oracle)
            )
        if "pilot" in tasks:
            for channels in (16, 32):
                unit = _unit(
                    size, "pilot", f"frozen, {channels} channels", seed, _lengths((size.selector,)),
                    (1.0, *DENSITIES), partial(_pilot, channels=channels),
                )  # fmt: skip
                second.append(unit)
        if "mqar" in tasks:
            first.append(_unit(size, "mqar", "dense", seed, size.mqar_lengths, (1.0,), _mqar_dense))
            second.append(_unit(size, "mqar", "ours", seed, size.mqar_lengths, DENSITIES[:3], _mqar_ours))
        if "listops" in tasks:
            length = (listops.MAX_LENGTH,)
            first.append(_unit(size, "listops", "dense", seed, length, (1.0,), _listops))
            first.append(_unit(size, "listops", "ours", seed, length, (0.25,), _listops))
    return [first, second, third]


def _unit(size: Size, task: str, method: str, seed: int, lengths: Any, densities: Any, run: Any) -> Unit:
    parts = {
        "planted": ("first", "repeats", "dense", "sparse", "test_steps"),
        "pilot": ("first", "repeats", "dense", "selector", "test_steps"),
        "mqar": ("mqar_lengths", "mqar_dense", "mqar_sparse", "repeats", "test_steps"),
        "listops": ("listops_examples", "listops"),
    }[task]
    config = {"planted": planted, "pilot": planted, "listops": listops}.get(task)
    shape = config.config() if config else mqar.config(mqar.vocabulary_for(size.mqar_lengths))
    stages = {name: asdict(size)[name] for name in parts}
    settings = {"task": task, "method": method, "model": shape.to_dict(), "stages": stages, **RECIPE}
    return Unit(task, method, seed, settings, tuple(lengths), tuple(densities), run)


def _lengths(stages: tuple[Stage, ...]) -> tuple[int, ...]:
    return tuple(stage.num_steps for stage in stages)


_RULES: dict[str, controls.Scores] = {
    "random": controls.random_blocks,
    "local and strided": controls.local_and_strided,
    "mean-pooled": controls.mean_pooled,
}


def _new(config: ModelConfig, seed: int, device: torch.device) -> SparseEncoder:
    torch.manual_seed(seed)
    return SparseEncoder(config).to(device)


def _save(model: SparseEncoder, place: Place, unit: Unit, num_steps: int) -> None:
    folder = place.folder / f"{unit.task}-{unit.method}-{unit.seed}"
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(model.state_dict(), folder / f"{num_steps}.pt")


def _load(
    config: ModelConfig, place: Place, task: str, method: str, seed: int, num_steps: int, selector: bool = False
) -> SparseEncoder:
    """A model with saved weights; its selectors are new unless asked for too."""
    model = _new(config, seed, place.device)
    path = place.folder / f"{task}-{method}-{seed}" / f"{num_steps}.pt"
    state = torch.load(path, map_location=place.device, weights_only=True)
    kept = {name: tensor for name, tensor in state.items() if selector or ".selector." not in name}
    model.load_state_dict(kept, strict=selector)
    return model


def _understand(model: SparseEncoder, make: MakeBatch, stage: Stage, size: Size, seed: int, readout: Readout) -> int:
    """Train the first stage until it is understood; how many times that took. Raises when it never is."""
    for repeat in range(size.repeats):
        loss = fit(model, make, stage, 1000 * seed + repeat, readout=readout)
        if loss < _LEARNED or size.name == "quick":
            return repeat + 1
    raise RuntimeError(f"seed {seed}: the first stage was not understood in {size.repeats} repeats (loss {loss:.2f})")


def _planted_tests(place: Place, seed: int, num_steps: int) -> list[tuple[Batch, Tensor]]:
    """Test sequences that no training saw (their seeds are apart), and where their answers lie."""
    random = torch.Generator(place.device).manual_seed(10_000_000 + seed)
    count = max(1, place.size.test_steps // num_steps)
    together = max(1, min(count, 2**16 // num_steps))
    return [planted.planted(together, num_steps, random) for _ in range(count // together)]


def _planted_dense(unit: Unit, place: Place) -> Iterator[tuple[Key, dict[str, Any]]]:
    model = _new(planted.config(), unit.seed, place.device)
    repeats = _understand(model, planted.batch, place.size.first, place.size, unit.seed, plain)
    for stage in place.size.dense:
        loss = fit(model, planted.batch, stage, 100 + unit.seed)
        _save(model, place, unit, stage.num_steps)
        if stage.num_steps in unit.lengths:
            tests = [batch for batch, _ in _planted_tests(place, unit.seed, stage.num_steps)]
            values = {"accuracy": accuracy(model, tests, None), "train_loss": loss, "first_repeats": repeats}
            yield Key(unit.task, unit.method, stage.num_steps, 1.0, unit.seed), values


def _planted_sparse(unit: Unit, place: Place) -> Iterator[tuple[Key, dict[str, Any]]]:
    """The learned ranking or a fixed rule, trained alike from the same dense start."""
    rule = _RULES.get(unit.method)
    start = place.size.dense[0].num_steps
    model = controls.use(_load(planted.config(), place, "planted", "dense", unit.seed, start), rule)
    for stage in place.size.sparse:
        densities = (_EXTRA_DENSITY, *DENSITIES)
        loss = fit(model, planted.batch, stage, 200 + unit.seed, densities, teach=rule is None)
        _save(model, place, unit, stage.num_steps)
        tests = [batch for batch, _ in _planted_tests(place, unit.seed, stage.num_steps)]
        for density in unit.densities:
            values = {"accuracy": accuracy(model, tests, Budget(density)), "train_loss": loss}
            yield Key(unit.task, unit.method, stage.num_steps, density, unit.seed), values


def _planted_oracle(unit: Unit, place: Place) -> Iterator[tuple[Key, dict[str, Any]]]:
    """The weights of "ours" with lists from one who knows where the answers lie: no training."""
    for num_steps in unit.lengths:
        model = _load(planted.config(), place, "planted", "ours", unit.seed, num_steps, selector=True)
        tests = _planted_tests(place, unit.seed, num_steps)
        for density in unit.densities:
            right = [
                accuracy(controls.use(model, controls.planted_oracle(batch.asked_BA, sources)), [batch], Budget(density))
                for batch, sources in tests
            ]
            yield Key(unit.task, unit.method, num_steps, density, unit.seed), {"accuracy": sum(right) / len(right)}


def _pilot(unit: Unit, place: Place, channels: int) -> Iterator[tuple[Key, dict[str, Any]]]:
    stage = place.size.selector
    config = planted.config(selector_dim=channels)
    model = _load(config, place, "planted", "dense", unit.seed, stage.num_steps)
    loss = pilot.fit_selector(model, planted.batch, stage, 300 + unit.seed)
    tests = [batch for batch, _ in _planted_tests(place, unit.seed, stage.num_steps)]
    for density in unit.densities:
        budget = None if density == 1.0 else Budget(density)
        values: dict[str, Any] = {"accuracy": accuracy(model, tests, budget), "divergence": loss}
        if budget is not None:
            values |= pilot.error_by_layer_and_head(model, tests[0], budget)
        yield Key(unit.task, unit.method, stage.num_steps, density, unit.seed), values


def _mqar_tests(place: Place, seed: int, num_steps: int, make: MakeBatch) -> list[Batch]:
    random = torch.Generator(place.device).manual_seed(10_000_000 + seed)
    count = max(1, place.size.test_steps // 4 // num_steps)
    return [make(1, num_steps, random) for _ in range(count)]


def _mqar_dense(unit: Unit, place: Place) -> Iterator[tuple[Key, dict[str, Any]]]:
    vocabulary = mqar.vocabulary_for(unit.lengths)
    make = partial(mqar.batch, vocabulary=vocabulary)
    model = _new(mqar.config(vocabulary), unit.seed, place.device)
    stages = place.size.mqar_dense
    repeats = _understand(model, make, stages[0], place.size, unit.seed, mqar.readout)
    _save(model, place, unit, stages[0].num_steps)
    for stage in stages[1:]:
        loss = fit(model, make, stage, 100 + unit.seed, readout=mqar.readout)
        tests = _mqar_tests(place, unit.seed, stage.num_steps, make)
        values = {"accuracy": accuracy(model, tests, None, mqar.readout), "train_loss": loss, "first_repeats": repeats}
        yield Key(unit.task, unit.method, stage.num_steps, 1.0, unit.seed), values


def _mqar_ours(unit: Unit, place: Place) -> Iterator[tuple[Key, dict[str, Any]]]:
    vocabulary = mqar.vocabulary_for(unit.lengths)
    make = partial(mqar.batch, vocabulary=vocabulary)
    start = place.size.mqar_dense[0].num_steps
    model = _load(mqar.config(vocabulary), place, "mqar", "dense", unit.seed, start)
    for stage in place.size.mqar_sparse:
        densities = (_EXTRA_DENSITY, *unit.densities)
        loss = fit(model, make, stage, 200 + unit.seed, densities, mqar.readout)
        tests = _mqar_tests(place, unit.seed, stage.num_steps, make)
        for density in unit.densities:
            values = {"accuracy": accuracy(model, tests, Budget(density), mqar.readout), "train_loss": loss}
            yield Key(unit.task, unit.method, stage.num_steps, density, unit.seed), values


def _listops(unit: Unit, place: Place) -> Iterator[tuple[Key, dict[str, Any]]]:
    """Dense, or sparse from the first step, both from random weights."""
    codes, values, test_codes, test_values = (
        part.to(place.device)
        for part in listops.dataset(place.folder, 0, *place.size.listops_examples, place.workers)
    )
    dense = unit.method == "dense"
    model = _new(listops.config(), unit.seed, place.device)
    densities = () if dense else (_EXTRA_DENSITY, 0.25, 0.125)
    loss = fit(model, listops.sampler(codes, values), place.size.listops, unit.seed, densities)
    order = (test_codes > 0).sum(1).argsort()
    tests = [listops.batch(test_codes[rows], test_values[rows]) for rows in order.split(32)]
    for density in unit.densities:
        budget = None if dense else Budget(density)
        result = {"accuracy": accuracy(model, tests, budget), "train_loss": loss}
        yield Key(unit.task, unit.method, listops.MAX_LENGTH, density, unit.seed), result
