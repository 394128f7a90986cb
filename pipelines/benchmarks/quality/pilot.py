"""The pilot: a selector fitted to a frozen dense model on sequences without labels."""

from typing import Any

import torch

from pipelines.benchmarks.quality.fitting import Batch, MakeBatch, Stage, optimizer_of, step
from pipelines.pilot import disagreement, kept_dense_where_needed
from sparse_model.config import Budget
from sparse_model.coverage import coverage
from sparse_model.layers import Attention
from sparse_model.losses import Probes
from sparse_model.model import SparseEncoder, Training

MAX_DISAGREEMENT = 0.05  # TrainingPlan's default
NUM_PROBES = 128  # steps of a sequence and layer; half of them where attention has most to lose


def fit_selector(model: SparseEncoder, make_batch: MakeBatch, stage: Stage, seed: int) -> float:
    """Fit the selectors alone, as mode "selector" does; returns the mean divergence of the last tenth."""
    device = next(model.parameters()).device
    random = torch.Generator(device).manual_seed(seed)
    torch.manual_seed(seed)
    optimizer, schedule = optimizer_of(freeze_backbone(model), stage)
    losses = []
    for _ in range(stage.updates):
        batch = make_batch(stage.batch, stage.num_steps, random)
        even = torch.randint(stage.num_steps, (1, NUM_PROBES // 2), generator=random, device=device)
        known = torch.ones_like(batch.numeric_BNF)
        request = Training(Probes(even, NUM_PROBES // 2))
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            terms = model.predict(
                batch.numeric_BNF, known, batch.categorical_BNC, None, batch.lengths_B, request
            ).selector
        loss = torch.stack([term.divergence for term in terms]).mean()
        step(model, optimizer, schedule, loss)
        losses.append(loss.detach())
    return float(torch.stack(losses[-max(1, len(losses) // 10) :]).mean())


def freeze_backbone(model: SparseEncoder) -> list[torch.nn.Parameter]:
    """Leave only the selectors open to training, and return their parameters."""
    model.requires_grad_(False)
    opened: list[torch.nn.Parameter] = []
    for layer in model.layers:
        attention = layer.attention
        assert isinstance(attention, Attention)
        opened += attention.selector.requires_grad_(True).parameters()
    return opened


def error_by_layer_and_head(model: SparseEncoder, batch: Batch, budget: Budget) -> dict[str, Any]:
    """What the pilot knows beforehand, without labels: errors at stake and left, [layers][heads]."""
    known = torch.ones_like(batch.numeric_BNF)
    at_stake, left = coverage(model, batch.numeric_BNF, known, batch.categorical_BNC, budget)
    rounded = ([[round(value, 4) for value in row] for row in t.tolist()] for t in (at_stake, left))
    return dict(zip(("error_at_stake", "error_left"), rounded, strict=True))


def careful(model: SparseEncoder, held_out: Batch, budget: Budget) -> tuple[SparseEncoder, dict[str, Any]]:
    """The model that a pilot would run at this budget, and what it knows of it without labels."""
    known = torch.ones_like(held_out.numeric_BNF)
    mask = torch.zeros(*known.shape[:2], model.config.num_outputs, device=known.device)
    mask.scatter_(1, held_out.asked_BA[..., None].expand(-1, -1, model.config.num_outputs), 1.0)
    batches = [(held_out.numeric_BNF, known, held_out.categorical_BNC, mask, mask)]
    kept = kept_dense_where_needed(model, batches, budget, MAX_DISAGREEMENT)
    dense, layers = len(kept.config.dense_layers), model.config.num_layers
    return kept, {
        "disagreement_before": round(disagreement(model, batches, budget), 4),
        "disagreement": round(disagreement(kept, batches, budget), 4),
        "dense_layers": list(kept.config.dense_layers),
        "blocks_read": (dense + (layers - dense) * budget.density) / layers,
    }
