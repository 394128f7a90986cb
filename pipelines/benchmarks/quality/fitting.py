"""Training and scoring shared by the tasks: classes asked for at some steps of a sequence.

Shape suffixes: B batch, N steps, F numeric columns, C categorical columns, A asked steps, O outputs,
L classes.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from sparse_model.config import Budget
from sparse_model.losses import Probes
from sparse_model.model import SparseEncoder, Training

DENSITIES = (0.25, 0.125, 0.0625, 0.03125, 0.015625)
"""Budgets of the tables; one is drawn for every training step, so that one checkpoint serves them all."""
RECIPE = {
    "selector_weight": 0.3,  # of the divergence in the loss, as in TrainingPlan
    "ranking_noise": 0.5,  # during the first third of a stage, as in TrainingPlan
    "even_probes": 96,  # steps of a sequence on which selector and attention are compared
    "asked_probes": 32,  # further ones, among those asked about: there a missed link costs
    "weight_decay": 0.05,
}


class Batch(NamedTuple):
    """Sequences and what is asked about them."""

    numeric_BNF: Tensor
    categorical_BNC: Tensor
    asked_BA: Tensor
    """int64, the steps whose class is asked."""
    labels_BA: Tensor
    """int64, the classes; -100 is not scored."""
    lengths_B: Tensor | None = None


MakeBatch = Callable[[int, int, torch.Generator], Batch]
"""(number of sequences, number of steps, random numbers) -> a batch on the generator's device."""
Readout = Callable[[SparseEncoder, Tensor], Tensor]
"""(model, outputs [B, A, O]) -> class logits [B, A, L]."""


class Stage(NamedTuple):
    """A stretch of training at one length."""

    num_steps: int
    """Length of the sequences."""
    updates: int
    batch: int
    rate: float
    """Peak learning rate; a short warm-up before, a cosine after."""


def plain_readout(_: SparseEncoder, outputs_BAO: Tensor) -> Tensor:
    """The outputs are the logits."""
    return outputs_BAO


def logits_of(
    model: SparseEncoder,
    batch: Batch,
    budget: Budget | None,
    readout: Readout,
    training: Training | None = None,
) -> tuple[Tensor, Tensor]:
    """Class logits [B, A, L] in float32, and the mean selector divergence (zero without `training`)."""
    device = batch.numeric_BNF.device.type
    with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
        known = torch.ones_like(batch.numeric_BNF)
        outputs, terms = model.predict(
            batch.numeric_BNF, known, batch.categorical_BNC, budget, batch.lengths_B, training
        )
        logits = readout(model, outputs.take_along_dim(batch.asked_BA[..., None], dim=1))
    divergence = torch.stack([term.divergence for term in terms]).mean() if terms else logits.new_zeros(())
    return logits.float(), divergence


def fit(
    model: SparseEncoder,
    make_batch: MakeBatch,
    stage: Stage,
    seed: int,
    densities: tuple[float, ...] = (),
    readout: Readout = plain_readout,
    teach: bool = True,
) -> float:
    """Train for one stage, dense without `densities`; returns the mean loss of its last tenth.

    `teach` trains the selector beside the task (there is none to teach where a fixed rule selects).
    """
    device = next(model.parameters()).device
    random = torch.Generator(device).manual_seed(seed)
    torch.manual_seed(seed)
    optimizer, schedule = optimizer_of(list(model.parameters()), stage)
    losses = []
    for update in range(stage.updates):
        batch = make_batch(stage.batch, stage.num_steps, random)
        noise = RECIPE["ranking_noise"] if update < stage.updates / 3 else 0.0
        budget = Budget(densities[int(torch.randint(len(densities), ()))]) if densities else None
        request = Training(_probes(batch, random), noise) if densities and teach else None
        logits, divergence = logits_of(model, batch, budget, readout, request)
        loss = cross_entropy(logits.flatten(0, 1), batch.labels_BA.flatten())
        step(model, optimizer, schedule, loss + RECIPE["selector_weight"] * divergence)
        losses.append(loss.detach())
    return float(torch.stack(losses[-max(1, len(losses) // 10) :]).mean())


def optimizer_of(
    parameters: list[torch.nn.Parameter], stage: Stage
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    """AdamW with warm-up and cosine decay over the stage, as in training."""
    decay = RECIPE["weight_decay"]
    optimizer = torch.optim.AdamW(parameters, lr=stage.rate, betas=(0.9, 0.98), weight_decay=decay)
    return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, warm_cosine(stage.updates))


def warm_cosine(updates: int) -> Callable[[int], float]:
    """Learning-rate factor: warm-up over a tenth (at most 100 updates), then a cosine down to 3%."""
    warmup = max(1, min(100, updates // 10))
    return lambda done: (
        min(1.0, (done + 1) / warmup) * (0.03 + 0.97 * 0.5 * (1 + math.cos(math.pi * done / updates)))
    )


def step(
    model: SparseEncoder,
    optimizer: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LRScheduler,
    loss: Tensor,
) -> None:
    """One update with the gradient's norm held at 1."""
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    schedule.step()
    optimizer.zero_grad(set_to_none=True)


def _probes(batch: Batch, random: torch.Generator) -> Probes:
    """Steps drawn evenly, and some that are asked about: there a missed link costs."""
    num_batch, num_steps = batch.numeric_BNF.shape[:2]
    device = batch.numeric_BNF.device
    even = torch.randint(num_steps, (num_batch, int(RECIPE["even_probes"])), generator=random, device=device)
    return Probes(torch.cat([even, batch.asked_BA[:, : int(RECIPE["asked_probes"])]], dim=1))


@torch.no_grad()
def accuracy(
    model: SparseEncoder,
    batches: list[Batch],
    budget: Budget | None,
    readout: Readout = plain_readout,
    before: Callable[[Batch], None] | None = None,
) -> float:
    """Share of asked steps answered rightly. `before` is called with each batch (an oracle looks at it)."""
    right, total = 0, 0
    for batch in batches:
        if before is not None:
            before(batch)
        answers = logits_of(model, batch, budget, readout)[0].argmax(-1)
        right += int((answers == batch.labels_BA).sum())
        total += int((batch.labels_BA >= 0).sum())
    return right / total
