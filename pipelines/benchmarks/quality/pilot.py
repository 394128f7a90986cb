"""The pilot: a selector fitted to a frozen dense model on sequences without labels."""

import torch

from pipelines.benchmarks.quality.fitting import MakeBatch, Stage, step, warm_cosine
from sparse_model.layers import Attention
from sparse_model.losses import Probes
from sparse_model.model import SparseEncoder, Training

NUM_PROBES = 128  # steps of a sequence and layer; half of them where attention has most to lose


def fit_selector(model: SparseEncoder, make_batch: MakeBatch, stage: Stage, seed: int) -> float:
    """Fit the selectors alone, as training mode "selector" does; returns the mean divergence of the last tenth."""
    device = next(model.parameters()).device
    random = torch.Generator(device).manual_seed(seed)
    torch.manual_seed(seed)
    parameters = freeze_backbone(model)
    optimizer = torch.optim.AdamW(parameters, lr=stage.rate, betas=(0.9, 0.98), weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, warm_cosine(stage.updates))
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
