"""Does a budget win by being shared out unequally among layers and heads?

`python -m pipelines.benchmarks.shares [--out FOLDER]` trains on the flights of 2013 in windows of 576
departures (18 blocks): four layers with four rankings each, so that every head may have its own share.
`... shares MODEL_FOLDER` takes a model that a rollout of infra/datasets/flights.yaml left (36 blocks).
Shares are found on validation windows, from one block for everybody, by giving the next block to where it
helps most, until the mean is that of the uniform budget; they are judged on the test part.

  mass   helps most: takes most of dense attention's mass that is still missed (curves of an audit)
  loss   helps most: lowers the task's loss most (every candidate is tried)
"""

import argparse
import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from pipelines.benchmarks.adaptation import site_spec
from pipelines.benchmarks.attention import table
from pipelines.candidates import model_config
from pipelines.checkpoint import load_model
from pipelines.data.preprocessing import fit_preprocessing
from pipelines.data.snapshot import read_snapshot, take_snapshot
from pipelines.data.spec import DatasetSpec, Split, load_spec
from pipelines.data.windows import Windows, training_rows
from pipelines.evaluation import resampling
from pipelines.fingerprint import ROOT, environment
from pipelines.training import train
from pipelines.training_batches import to_tensors
from sparse_model.attention import BlockSelection, select
from sparse_model.attention.selection import num_blocks_of
from sparse_model.config import Budget, ModelConfig
from sparse_model.explanation import audit
from sparse_model.layers import Attention
from sparse_model.losses import task_loss
from sparse_model.model import SparseEncoder
from validation.policy import Policy, load_policy
from validation.statistics import METRICS, Scored, paired_interval

SEEDS = (0, 1)
MEAN_BLOCKS = (2, 3)
VALIDATION_WINDOWS = 32
BATCH = 8
Shares = tuple[tuple[int, ...], ...]
"""Key blocks that a query block reads, for every ranking of every layer."""


def shared_spec() -> DatasetSpec:
    """All three airports in short windows, judged on July; a ranking for every head of four layers."""
    spec = site_spec()
    model = spec.model.model_copy(update={"num_layers": 4, "selector_heads": 4})
    split = Split(validation=datetime(2013, 6, 1), test=datetime(2013, 7, 1), end=datetime(2013, 8, 1))
    plan = spec.training.model_copy(update={"densities": (0.0625, 0.125, 0.25), "target_density": 0.125})
    return spec.model_copy(update={"model": model, "split": split, "training": plan})


@contextmanager
def reading(model: SparseEncoder, shares: Shares) -> Iterator[None]:
    """Within the block every layer reads by its own shares, whatever budget it is called with."""
    attentions = [layer.attention for layer in model.layers]
    for attention, counts in zip(attentions, shares, strict=True):
        attention.select = partial(_select, attention, counts)  # pyright: ignore
    try:
        yield
    finally:
        for attention in attentions:
            del attention.select  # pyright: ignore


def _select(attention: Attention, counts: tuple[int, ...], x_BNW: Tensor, *_: object) -> BlockSelection:
    """Each ranking's own number of best blocks, in one selection."""
    size = attention.config.block_size
    sq, sk = attention.selector(x_BNW)
    parts = [
        select(sq[:, head : head + 1], sk[:, head : head + 1], count, size)
        for head, count in enumerate(counts)
    ]
    widest = max(counts)
    indices = [
        torch.nn.functional.pad(part.indices_BSQK, (0, widest - part.indices_BSQK.shape[-1]))
        for part in parts
    ]
    return BlockSelection(torch.cat(indices, 1), torch.cat([part.counts_BSQ for part in parts], 1), size)


def uniform(model: SparseEncoder, blocks: int) -> Shares:
    config = model.config
    return ((blocks,) * config.selector_heads,) * config.num_layers


def greedy(model: SparseEncoder, total: int, worth: Callable[[Shares], float], most: int) -> Shares:
    """From one block for every ranking, one more at a time to where `worth` falls most, until `total`."""
    shares = uniform(model, 1)
    while sum(map(sum, shares)) < total:
        shares = min(_one_more(shares, most), key=worth)
    return shares


def _one_more(shares: Shares, most: int) -> list[Shares]:
    return [
        (*shares[:layer], (*counts[:head], count + 1, *counts[head + 1 :]), *shares[layer + 1 :])
        for layer, counts in enumerate(shares)
        for head, count in enumerate(counts)
        if count < most
    ]


def missed_by_mass(model: SparseEncoder, batches: list[list[Tensor]], most: int) -> Callable[[Shares], float]:
    """Missed mass of any shares, from what each ranking misses at 1, 2, ... `most` blocks."""
    num_steps = batches[0][0].shape[1]
    num_blocks = num_blocks_of(num_steps, model.config.block_size)
    rows = torch.arange(num_steps - 64, num_steps)
    curves = []
    for blocks in range(1, most + 1):
        budget = Budget(blocks / num_blocks)
        missed = [audit(model, *_inputs(batch), budget, rows).missed for batch in batches]
        curves.append(torch.cat(missed).mean((0, 3)).unflatten(1, (model.config.selector_heads, -1)).mean(-1))
    curve_KLS = torch.stack(curves)

    def worth(shares: Shares) -> float:
        index = torch.tensor(shares)[None] - 1
        return float(curve_KLS.gather(0, index).sum())

    return worth


def _inputs(batch: list[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    numeric, known, categorical, *_ = batch
    return numeric, known, categorical


def loss_of(model: SparseEncoder, batches: list[list[Tensor]]) -> Callable[[Shares], float]:
    """Mean task loss of validation windows under any shares."""

    def worth(shares: Shares) -> float:
        with reading(model, shares), torch.inference_mode():
            losses = [
                task_loss(model(*_inputs(batch), Budget(1.0)), batch[3], batch[4], model.config.task)
                for batch in batches
            ]
        return float(torch.stack(losses).mean())

    return worth


def scored(model: SparseEncoder, windows: Windows, shares: Shares) -> Scored:
    """Probabilities of the test part under the shares."""
    outputs, targets, masks = [], [], []
    cutoffs = windows.cutoffs("test")
    with reading(model, shares), torch.inference_mode():
        for group in np.array_split(cutoffs, -(-len(cutoffs) // BATCH)):
            numeric, known, categorical, target, mask = to_tensors(windows.batch(group))
            outputs.append(model(numeric, known, categorical, Budget(1.0)).sigmoid()[:, windows.lookback :])
            targets.append(target[:, windows.lookback :])
            masks.append(mask[:, windows.lookback :])
    return Scored(*(torch.cat(parts).double().numpy() for parts in (outputs, targets, masks)))


def compare(
    model: SparseEncoder, windows: Windows, policy: Policy, seed: int, mean_blocks: Sequence[int]
) -> list[dict[str, Any]]:
    """Both ways of sharing against the uniform budget, at every mean number of blocks."""
    picked = windows.some_cutoffs("validation", VALIDATION_WINDOWS)
    groups = np.array_split(picked, -(-len(picked) // BATCH))
    batches = [to_tensors(windows.batch(group)) for group in groups]
    num_rankings = model.config.num_layers * model.config.selector_heads
    rows = []
    for blocks in mean_blocks:
        most, plain = 3 * blocks, scored(model, windows, uniform(model, blocks))
        by_mass, by_loss = missed_by_mass(model, batches, most), loss_of(model, batches)
        for way, worth in (("mass", by_mass), ("loss", by_loss)):
            shares = greedy(model, blocks * num_rankings, worth, most)
            ours = scored(model, windows, shares)
            row = {"seed": seed, "blocks": blocks, "way": way, "shares": shares}
            row["validation"] = {
                name: {"uniform": of(uniform(model, blocks)), "shared": of(shares)}
                for name, of in (("missed_mass", by_mass), ("loss", by_loss))
            }
            for name in ("auroc", "log_loss"):
                how = resampling(policy, windows.spec, plain.num_windows)
                row[name] = METRICS[name](plain)
                row[f"{name}_change"] = paired_interval(METRICS[name], ours, plain, **how).model_dump()
            rows.append(row)
            print(table([_short(row)]), flush=True)
    return rows


def _short(row: dict[str, Any]) -> dict[str, Any]:
    def change(name: str) -> str:
        found = row[f"{name}_change"]
        return f"{found['value']:+.4f} [{found['low']:+.4f}, {found['high']:+.4f}]"

    shares = " | ".join(" ".join(map(str, counts)) for counts in row["shares"])
    return {
        "seed": row["seed"],
        "blocks": row["blocks"],
        "way": row["way"],
        "shares by layer": shares,
        "uniform auroc": row["auroc"],
        "auroc change [95%]": change("auroc"),
        "log loss change [95%]": change("log_loss"),
    }


def _windows(spec: DatasetSpec, folder: Path) -> Windows:
    snapshot = take_snapshot(spec, folder)
    rows = read_snapshot(snapshot)
    return Windows(snapshot, spec, fit_preprocessing(training_rows(rows, spec), spec), rows)


def trained(folder: Path, policy: Policy) -> list[dict[str, Any]]:
    """Models trained here, one for each seed."""
    spec = shared_spec()
    windows, rows = _windows(spec, folder), []
    for seed in SEEDS:
        config, place = model_config(windows, spec), folder / str(seed)
        checkpoint, _ = train(windows, config, spec.training, "sparse", seed, place, lambda *_: None)
        rows += compare(load_model(checkpoint), windows, policy, seed, MEAN_BLOCKS)
    return rows


def given(model_folder: Path, folder: Path, policy: Policy) -> list[dict[str, Any]]:
    """A rollout's model, at the budget that it is judged at."""
    spec = load_spec(ROOT / "infra" / "datasets" / "flights.yaml")
    model = SparseEncoder(ModelConfig.from_dict(json.loads((model_folder / "config.json").read_text())))
    model.load_state_dict(load_file(model_folder / "model.safetensors"))
    blocks = num_blocks_of(spec.lookback + spec.horizon, model.config.block_size)
    chosen = Budget(spec.training.target_density).num_selected(blocks)
    return compare(model.eval(), _windows(spec, folder), policy, 0, (chosen,))


def main(out: Path | None = None, model_folder: Path | None = None) -> dict[str, Any]:
    """Share budgets out, judge them, print, and write shares.json into `out`."""
    started, policy = time.monotonic(), load_policy(ROOT / "infra" / "rollout.yaml")
    with TemporaryDirectory() as work:
        folder = Path(work)
        rows = given(model_folder, folder, policy) if model_folder else trained(folder, policy)
    result = {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "environment": environment().model_dump(),
        "seconds": round(time.monotonic() - started),
        "model": model_folder.name if model_folder else shared_spec().model.model_dump(exclude_none=True),
        "validation_windows": VALIDATION_WINDOWS,
        "rows": rows,
    }
    if out:
        (out / "shares.json").write_text(json.dumps(result, indent=1) + "\n")
    return result


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model_folder", type=Path, nargs="?")
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    main(asked.out, asked.model_folder)
