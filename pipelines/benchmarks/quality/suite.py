"""What `dankai bench quality` measures, in which order.

A unit writes its measurements one by one and is skipped when all of them are there, configured alike.
Units of one phase run side by side (the models are small: several fill one GPU); a later phase builds on the
weights of an earlier one.
"""

from collections.abc import Callable
from dataclasses import asdict, fields
from functools import partial
from typing import Any, NamedTuple

import torch

from pipelines.benchmarks.quality import experiments, listops, mqar, planted
from pipelines.benchmarks.quality.fitting import DENSITIES, RECIPE, Stage
from pipelines.benchmarks.quality.results import Results, digest
from pipelines.benchmarks.quality.units import Cells, Place, Size, Unit
from sparse_model.config import ModelConfig

_DEFAULTS = {field.name: field.default for field in fields(ModelConfig)}


def work_off(unit: Unit, place: Place, results: Results) -> str:
    """Do a unit unless it is done; its label."""
    label = f"{unit.task} {unit.method} seed {unit.seed}"
    weights = list((place.folder / f"{unit.task}-{unit.method}-{unit.seed}").glob("*.pt"))
    if results.has(unit.keys, digest(unit.settings)) and (weights or not unit.is_start):
        return f"{label}: already measured"
    if place.device.type == "cuda":
        torch.set_float32_matmul_precision("high")
    for key, values in unit.run(unit, place):
        results.add(key, values, unit.settings, place.device)
    return f"{label}: measured"


def phases(size: Size, tasks: tuple[str, ...]) -> list[list[Unit]]:
    """All units of the named tasks, phase by phase; a pilot needs planted recall's dense models too."""
    wanted = [row for row in _experiments(size) if row.task in tasks]
    if "pilot" in tasks and "planted" not in tasks:
        wanted += [row for row in _experiments(size) if (row.task, row.method) == ("planted", "dense")]
    return [
        [_unit(size, row, seed) for seed in size.seeds for row in wanted if row.phase == phase]
        for phase in range(3)
    ]


class _Experiment(NamedTuple):
    """A row of the plan: one unit per seed."""

    phase: int
    task: str
    method: str
    lengths: tuple[int, ...]
    densities: tuple[float, ...]
    run: Callable[[Unit, Place], Cells]
    is_start: bool = False


def _experiments(size: Size) -> list[_Experiment]:
    dense, sparse, frozen = (_lengths(each) for each in (size.dense[1:], size.sparse, (size.selector,)))
    rows = [
        _Experiment(0, "planted", "dense", dense, (1.0,), experiments.planted_dense, True),
        _Experiment(1, "planted", "ours", sparse, DENSITIES, experiments.planted_sparse, True),
        _Experiment(2, "planted", "oracle", sparse, DENSITIES, experiments.planted_oracle),
        _Experiment(0, "mqar", "dense", size.mqar_lengths, (1.0,), experiments.mqar_dense, True),
        _Experiment(1, "mqar", "ours", size.mqar_lengths, DENSITIES[:3], experiments.mqar_ours),
        _Experiment(0, "listops", "dense", (listops.MAX_LENGTH,), (1.0,), experiments.listops_either, True),
        _Experiment(1, "listops", "ours", (listops.MAX_LENGTH,), (0.25,), experiments.listops_either),
    ]
    for rule in experiments.RULES:
        rows.append(_Experiment(1, "planted", rule, sparse, DENSITIES, experiments.planted_sparse))
    for channels in (16, 32):
        name, budgets = f"frozen, {channels} channels", (1.0, *DENSITIES)
        fitted = partial(experiments.frozen_pilot, channels=channels)
        careful = partial(experiments.careful_pilot, channels=channels)
        rows.append(_Experiment(1, "pilot", name, frozen, budgets, fitted, True))
        rows.append(_Experiment(2, "pilot", f"{name}, weak layers dense", frozen, DENSITIES, careful))
    return rows


def _unit(size: Size, row: _Experiment, seed: int) -> Unit:
    parts = {
        "planted": ("first", "repeats", "dense", "sparse", "test_steps"),
        "pilot": ("first", "repeats", "dense", "selector", "test_steps"),
        "mqar": ("mqar_lengths", "mqar_first", "mqar_dense", "mqar_sparse", "repeats", "test_steps"),
        "listops": ("listops_examples", "listops_start", "listops"),
    }[row.task]
    config = {"planted": planted, "pilot": planted, "listops": listops}.get(row.task)
    shape = config.config() if config else mqar.config(mqar.vocabulary_for(size.mqar_lengths))
    settings: dict[str, Any] = {
        "task": row.task,
        "method": row.method,
        "model": {name: value for name, value in shape.to_dict().items() if value != _DEFAULTS.get(name)},
        "stages": {name: asdict(size)[name] for name in parts},
        "understood": experiments.UNDERSTOOD.get(row.task),
        **RECIPE,
    }
    return Unit(row.task, row.method, seed, settings, row.lengths, row.densities, row.run, row.is_start)


def _lengths(stages: tuple[Stage, ...]) -> tuple[int, ...]:
    return tuple(stage.num_steps for stage in stages)
