"""The experiments: each trains one model of one seed and yields its measurements.

Test sequences and training batches come from generators whose seeds are apart.
"""

import math
from functools import partial
from typing import Any

import torch
from torch import Tensor

from pipelines.benchmarks.quality import controls, listops, mqar, pilot, planted
from pipelines.benchmarks.quality.fitting import DENSITIES, Batch, MakeBatch, Readout, Stage, accuracy, fit
from pipelines.benchmarks.quality.fitting import plain_readout as plain
from pipelines.benchmarks.quality.results import Key
from pipelines.benchmarks.quality.units import Cells, Place, Size, Unit
from sparse_model.config import Budget, ModelConfig
from sparse_model.model import SparseEncoder

UNDERSTOOD = {"planted": 0.02, "pilot": 0.02, "mqar": 0.1}
"""Nats of training loss below which the first, shortest stage has understood the task."""
_EXTRA_DENSITY = 0.5  # drawn in training beside those of the table
RULES: dict[str, controls.Scores] = {
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
    config: ModelConfig,
    place: Place,
    task: str,
    method: str,
    seed: int,
    num_steps: int,
    selector: bool = False,
) -> SparseEncoder:
    """A model with saved weights; its selectors are new unless asked for too."""
    model = _new(config, seed, place.device)
    path = place.folder / f"{task}-{method}-{seed}" / f"{num_steps}.pt"
    state = torch.load(path, map_location=place.device, weights_only=True)
    kept = {name: tensor for name, tensor in state.items() if selector or ".selector." not in name}
    model.load_state_dict(kept, strict=selector)
    return model


def _understand(
    model: SparseEncoder, make: MakeBatch, stage: Stage, size: Size, unit: Unit, readout: Readout = plain
) -> int:
    """Train the first stage until it is understood; how many times that took. Raises when it never is."""
    loss = math.inf
    for repeat in range(size.repeats):
        loss = fit(model, make, stage, 1000 * unit.seed + repeat, readout=readout)
        if loss < UNDERSTOOD[unit.task] or size.name == "quick":
            return repeat + 1
    raise RuntimeError(f"the first stage was not understood in {size.repeats} repeats (loss {loss:.2f})")


def _planted_tests(place: Place, seed: int, num_steps: int) -> list[tuple[Batch, Tensor]]:
    """Test sequences that no training saw (their seeds are apart), and where their answers lie."""
    random = torch.Generator(place.device).manual_seed(10_000_000 + seed)
    count = max(1, place.size.test_steps // num_steps)
    together = max(1, min(count, 2**16 // num_steps))
    return [planted.planted(together, num_steps, random) for _ in range(count // together)]


def planted_dense(unit: Unit, place: Place) -> Cells:
    model = _new(planted.config(), unit.seed, place.device)
    repeats = _understand(model, planted.batch, place.size.first, place.size, unit)
    for stage in place.size.dense:
        loss = fit(model, planted.batch, stage, 100 + unit.seed)
        _save(model, place, unit, stage.num_steps)
        if stage.num_steps in unit.lengths:
            tests = [batch for batch, _ in _planted_tests(place, unit.seed, stage.num_steps)]
            values = {"accuracy": accuracy(model, tests, None), "train_loss": loss, "first_repeats": repeats}
            yield Key(unit.task, unit.method, stage.num_steps, 1.0, unit.seed), values


def planted_sparse(unit: Unit, place: Place) -> Cells:
    """The learned ranking or a fixed rule, trained alike from the same dense start."""
    rule = RULES.get(unit.method)
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


def planted_oracle(unit: Unit, place: Place) -> Cells:
    """The weights of "ours" with lists from one who knows where the answers lie: no training."""
    for num_steps in unit.lengths:
        model = _load(planted.config(), place, "planted", "ours", unit.seed, num_steps, selector=True)
        tests = _planted_tests(place, unit.seed, num_steps)
        for density in unit.densities:
            right = [
                accuracy(
                    controls.use(model, controls.planted_oracle(batch.asked_BA, sources)),
                    [batch],
                    Budget(density),
                )
                for batch, sources in tests
            ]
            yield (
                Key(unit.task, unit.method, num_steps, density, unit.seed),
                {"accuracy": sum(right) / len(right)},
            )


def frozen_pilot(unit: Unit, place: Place, channels: int) -> Cells:
    stage, config = place.size.selector, planted.config(selector_dim=channels)
    model = _load(config, place, "planted", "dense", unit.seed, stage.num_steps)
    loss = pilot.fit_selector(model, planted.batch, stage, 300 + unit.seed)
    _save(model, place, unit, stage.num_steps)
    tests = [batch for batch, _ in _planted_tests(place, unit.seed, stage.num_steps)]
    for density in unit.densities:
        budget = None if density == 1.0 else Budget(density)
        values: dict[str, Any] = {"accuracy": accuracy(model, tests, budget), "divergence": loss}
        if budget is not None:
            values |= pilot.error_by_layer_and_head(model, tests[0], budget)
        yield Key(unit.task, unit.method, stage.num_steps, density, unit.seed), values


def careful_pilot(unit: Unit, place: Place, channels: int) -> Cells:
    """The same selector, with the layers that it does not serve kept dense, as the product's pilot does."""
    num_steps, config = place.size.selector.num_steps, planted.config(selector_dim=channels)
    fitted = f"frozen, {channels} channels"
    model = _load(config, place, unit.task, fitted, unit.seed, num_steps, selector=True)
    tests = [batch for batch, _ in _planted_tests(place, unit.seed, num_steps)]
    unseen = torch.Generator(place.device).manual_seed(20_000_000 + unit.seed)
    held_out = planted.batch(max(1, min(8, place.size.test_steps // num_steps)), num_steps, unseen)
    for density in unit.densities:
        kept, knowledge = pilot.careful(model, held_out, Budget(density))
        values: dict[str, Any] = {"accuracy": accuracy(kept, tests, Budget(density)), **knowledge}
        yield Key(unit.task, unit.method, num_steps, density, unit.seed), values


def _mqar_tests(place: Place, seed: int, num_steps: int, make: MakeBatch) -> list[Batch]:
    random = torch.Generator(place.device).manual_seed(10_000_000 + seed)
    count = max(1, place.size.test_steps // 4 // num_steps)
    return [make(1, num_steps, random) for _ in range(count)]


def mqar_dense(unit: Unit, place: Place) -> Cells:
    vocabulary = mqar.vocabulary_for(unit.lengths)
    make = partial(mqar.batch, vocabulary=vocabulary)
    torch.manual_seed(unit.seed)
    model = mqar.new_model(mqar.config(vocabulary)).to(place.device)
    repeats = _understand(model, make, place.size.mqar_first, place.size, unit, mqar.readout)
    for stage in place.size.mqar_dense:
        loss = fit(model, make, stage, 100 + unit.seed, readout=mqar.readout)
        _save(model, place, unit, stage.num_steps)
        if stage.num_steps not in unit.lengths:
            continue
        tests = _mqar_tests(place, unit.seed, stage.num_steps, make)
        values = {
            "accuracy": accuracy(model, tests, None, mqar.readout),
            "train_loss": loss,
            "first_repeats": repeats,
        }
        yield Key(unit.task, unit.method, stage.num_steps, 1.0, unit.seed), values


def mqar_ours(unit: Unit, place: Place) -> Cells:
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


def listops_either(unit: Unit, place: Place) -> Cells:
    """Dense to the end, or sparse from where the dense one's first stage ended."""
    codes, values, test_codes, test_values = (
        part.to(place.device)
        for part in listops.dataset(place.folder, 0, *place.size.listops_examples, place.workers)
    )
    make, start = listops.sampler(codes, values), place.size.listops_start
    if unit.method == "dense":
        model = _new(listops.config(), unit.seed, place.device)
        fit(model, make, start, unit.seed)
        _save(model, place, unit, start.num_steps)
        densities, budgets = (), {1.0: None}
    else:
        model = _load(listops.config(), place, "listops", "dense", unit.seed, start.num_steps)
        densities, budgets = (_EXTRA_DENSITY, 0.25, 0.125), {0.25: Budget(0.25)}
    loss = fit(model, make, place.size.listops, 100 + unit.seed, densities)
    order = (test_codes > 0).sum(1).argsort()
    tests = [listops.batch(test_codes[rows], test_values[rows]) for rows in order.split(32)]
    for density, budget in budgets.items():
        result = {"accuracy": accuracy(model, tests, budget), "train_loss": loss}
        yield Key(unit.task, unit.method, listops.MAX_LENGTH, density, unit.seed), result
