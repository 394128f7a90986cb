"""Training under Lightning: dense, sparse end to end, or parts alone. Runs without MLflow or Prefect.

Every batch is a pure function of (seed, step), so a training that was killed goes on from its last
checkpoint with exactly the batches it would have seen.
"""

import logging
import math
import resource
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback, EarlyStopping, ModelCheckpoint
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from pipelines.checkpoint import Checkpoint, load_model, save_weights
from pipelines.data.windows import WindowBatch, Windows
from pipelines.pilot import disagreement, kept_dense_where_needed
from pipelines.training_plan import Mode, TrainingPlan
from sparse_model.config import Budget, ModelConfig
from sparse_model.detection import hide_spans
from sparse_model.losses import Probes, task_loss
from sparse_model.memory import keep_freed_memory
from sparse_model.model import SparseEncoder, Training
from validation.errors import InputError

Report = Callable[[str, int, int], None]
"""Progress: what is being done, units done, units planned."""
Curve = dict[str, list[tuple[int, float]]]
"""Metrics by step: name -> [(step, value)]."""
Follow = Callable[[Curve], None]
"""Told the curve so far after every validation."""
TRAINED_PARTS: dict[Mode, frozenset[str]] = {
    "selector": frozenset({"selector"}),
    "adapt": frozenset({"selector", "head"}),
}
"""Modes that start from given weights and train some modules of the model, by name; the others train all."""


class Batches(Dataset[list[Tensor]]):
    """Batch number `step` of a training, made when asked for."""

    def __init__(self, windows: Windows, plan: TrainingPlan, mode: Mode, seed: int, first: int, count: int):
        self.windows, self.plan, self.seed = windows, plan, seed
        self.mode: Mode = mode
        self.first, self.count = first, count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> list[Tensor]:
        step = self.first + index
        lookback = max(1, round(self.windows.lookback * self.plan.length_share(step, self.mode)))
        size = max(1, self.plan.tokens_per_step // (lookback + self.windows.horizon))
        generator = np.random.default_rng((self.seed, step))
        cutoffs = generator.choice(self.windows.cutoffs("train"), size=size)
        return to_tensors(self.windows.batch(cutoffs, lookback))


def to_tensors(batch: WindowBatch) -> list[Tensor]:
    """Numeric, known, categorical, target, target mask: what a model is trained on."""
    arrays = (batch.numeric, batch.known, batch.categorical, batch.target, batch.target_mask)
    return [torch.from_numpy(np.ascontiguousarray(array)) for array in arrays]


class Fit(lightning.LightningModule):
    """One training: the loss of a batch, the optimiser, and what is logged."""

    def __init__(self, model: SparseEncoder, windows: Windows, plan: TrainingPlan, mode: Mode, seed: int):
        super().__init__()
        self.model, self.windows, self.plan, self.seed = model, windows, plan, seed
        self.mode: Mode = mode
        self.curve: Curve = {}
        if mode in TRAINED_PARTS:
            for name, parameter in model.named_parameters():
                parameter.requires_grad_(not TRAINED_PARTS[mode].isdisjoint(name.split(".")))

    def train_dataloader(self) -> DataLoader[list[Tensor]]:
        """The batches of the current epoch; the dataloader is made anew for each (see Trainer)."""
        first = self.current_epoch * self.plan.steps_per_epoch
        count = min(self.plan.steps_per_epoch, self.plan.steps_of(self.mode) - first)
        batches = Batches(self.windows, self.plan, self.mode, self.seed, first, max(0, count))
        return DataLoader(batches, batch_size=None)

    def val_dataloader(self) -> DataLoader[list[Tensor]]:
        return DataLoader(_ValidationBatches(self.windows, self.plan.validation_windows), batch_size=None)

    def training_step(self, batch: list[Tensor], index: int) -> Tensor:
        number = self.seed * 1_000_003 + self.global_step
        torch.manual_seed(number)  # the noise on the ranking, which a resumed training has to draw again
        random = torch.Generator().manual_seed(number)
        loss, terms = self._loss(batch, random)
        self._note({"train_loss": loss, **terms})
        return loss

    def validation_step(self, batch: list[Tensor], index: int) -> Tensor:
        """The loss that the training is selected by, on fixed windows at the target budget.

        That of the task alone: the divergence of the selector grows as attention learns to be peaked, and
        a sum of both would stop the training where the task begins to be learned.
        """
        torch.manual_seed(index)  # peaked rows are drawn too: the same ones at every validation
        random = torch.Generator().manual_seed(index)
        total, terms = self._loss(batch, random, Budget(self.plan.target_density))
        loss = total if self.mode == "selector" else terms["task_loss"]
        self.log("validation_loss", loss, batch_size=batch[0].shape[0])
        return loss

    def on_validation_epoch_end(self) -> None:
        if not self.trainer.sanity_checking:
            self._note({"validation_loss": self.trainer.callback_metrics["validation_loss"]})

    def _loss(
        self, batch: list[Tensor], random: torch.Generator, budget: Budget | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        numeric, known, categorical, target, mask = batch
        if self.model.config.task == "detect":
            known, mask = hide_spans(known, mask, random)
        request = (
            None if self.mode == "dense" else Training(self._probes(numeric, random), self._noise(budget))
        )
        is_sparse = self.mode in ("sparse", "adapt")
        budget = (budget or self._random_budget(random)) if is_sparse else None
        outputs, selector = self.model.predict(
            numeric, known, categorical, budget, training=request, recompute=self.plan.recompute
        )
        loss = task_loss(outputs, target, mask, self.model.config.task)
        if not selector:
            return loss, {"task_loss": loss}
        divergence = torch.stack([term.divergence for term in selector]).mean()
        entropy = torch.stack([term.entropy for term in selector]).mean()
        terms = {"task_loss": loss, "selector_divergence": divergence, "selector_entropy": entropy}
        if self.mode == "selector":
            return divergence, terms
        return loss + self.plan.selector_weight * divergence + self.plan.sparsity_weight * entropy, terms

    def _probes(self, numeric: Tensor, random: torch.Generator) -> Probes:
        """Steps drawn evenly; for a frozen model half of them where its attention has most to lose."""
        peaked = self.plan.num_probes // 2 if self.mode == "selector" else 0
        steps = torch.randint(numeric.shape[1], (1, self.plan.num_probes - peaked), generator=random)
        return Probes(steps.to(numeric.device), peaked)

    def _random_budget(self, random: torch.Generator) -> Budget:
        choice = int(torch.randint(len(self.plan.densities), (1,), generator=random))
        return Budget(self.plan.densities[choice])

    def _noise(self, budget: Budget | None) -> float:
        """Exploration early in the training; none where a budget was asked for (validation)."""
        early = self.global_step < self.plan.steps_of(self.mode) / 3
        return self.plan.ranking_noise if early and budget is None and self.mode == "sparse" else 0.0

    def _note(self, metrics: dict[str, Tensor]) -> None:
        for name, value in metrics.items():
            self.curve.setdefault(name, []).append((self.global_step, float(value.detach())))

    def configure_optimizers(self) -> Any:
        """AdamW with warm-up and cosine decay."""
        parameters = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(
            parameters,
            lr=self.plan.peak_learning_rate,
            weight_decay=self.plan.weight_decay,
            betas=(0.9, 0.98),
        )
        total, warmup = self.plan.steps_of(self.mode), self.plan.warmup_steps

        def factor(step: int) -> float:
            return min(1.0, (step + 1) / warmup) * (
                0.03 + 0.97 * 0.5 * (1 + math.cos(math.pi * step / total))
            )

        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["curve"] = self.curve

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.curve = checkpoint["curve"]


class _ValidationBatches(Dataset[list[Tensor]]):
    """Fixed windows of the validation part, evenly spread over its time."""

    def __init__(self, windows: Windows, num_windows: int) -> None:
        picked = windows.some_cutoffs("validation", num_windows)
        self.windows, self.groups = windows, np.array_split(picked, max(1, len(picked) // 4))

    def __len__(self) -> int:
        return len(self.groups)

    def __getitem__(self, index: int) -> list[Tensor]:
        return to_tensors(self.windows.batch(self.groups[index], None))


class _Progress(Callback):
    def __init__(self, report: Report, follow: Follow, fit: Fit) -> None:
        self.report, self.follow, self.fit = report, follow, fit
        self.label, self.total = f"training {fit.mode} (seed {fit.seed})", fit.plan.steps_of(fit.mode)

    def on_train_batch_end(self, trainer: lightning.Trainer, *_: Any, **__: Any) -> None:
        self.report(self.label, trainer.global_step, self.total)

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self.follow(self.fit.curve)


def train(
    windows: Windows,
    config: ModelConfig,
    plan: TrainingPlan,
    mode: Mode,
    seed: int,
    folder: Path,
    report: Report,
    warm_start: Checkpoint | None = None,
    follow: Follow = lambda curve: None,
) -> tuple[Checkpoint, Curve]:
    """Train one model and keep the weights with the best validation loss.

    A checkpoint is kept in `folder` after every `plan.steps_per_epoch` steps; called again with the
    same arguments after a crash, the training goes on from there. `warm_start` gives the first
    weights ("selector" needs the dense model whose attention it learns, "adapt" the model of another site).
    `follow` is told the curve as it grows; after a resume that begins with what was noted before the crash.
    """
    if mode in TRAINED_PARTS and warm_start is None:
        raise ValueError(f"warm_start: {mode} trains a part of a model and needs the model")
    lightning.seed_everything(seed, verbose=False)
    keep_freed_memory()
    model = load_model(warm_start).train() if warm_start else SparseEncoder(config)
    fit = Fit(model, windows, plan, mode, seed)
    best, last = _keep(folder, "best", monitor="validation_loss"), _keep(folder, "last")
    started = time.monotonic()
    _run(_trainer(fit, [best, last], _Progress(report, follow, fit)), fit, folder)
    fit.load_state_dict(_state(folder / "best.ckpt"))
    if mode == "selector":
        model = _agreeing(fit)
    checkpoint = Checkpoint(
        folder=str(folder),
        sha256=save_weights(model, folder),
        config=model.config.to_dict(),
        snapshot=windows.snapshot.content_hash,
        plan=plan.digest(),
        mode=mode,
        seed=seed,
        num_steps=int(fit.curve["train_loss"][-1][0]) + 1,
        validation_loss=float(best.best_model_score) if best.best_model_score is not None else math.nan,
        train_seconds=time.monotonic() - started,
        peak_memory_bytes=_peak_memory(),
    )
    return checkpoint, fit.curve


def _agreeing(fit: Fit) -> SparseEncoder:
    """The fitted model, with layers kept dense where its answers to the validation windows would differ."""
    held_out, budget = list(fit.val_dataloader()), Budget(fit.plan.target_density)
    kept = kept_dense_where_needed(fit.model, held_out, budget, fit.plan.max_disagreement)
    last_step = fit.curve["train_loss"][-1][0]
    for name, model in (("disagreement_all_sparse", fit.model), ("disagreement", kept)):
        fit.curve[name] = [(last_step, disagreement(model, held_out, budget))]
    return kept


def _keep(folder: Path, name: str, monitor: str | None = None) -> ModelCheckpoint:
    """Keeps the newest checkpoint after every validation or, with `monitor`, the one with the lowest."""
    return ModelCheckpoint(
        folder, name, monitor=monitor, save_on_train_epoch_end=False, enable_version_counter=False
    )


def _run(trainer: lightning.Trainer, fit: Fit, folder: Path) -> None:
    try:
        trainer.fit(fit, ckpt_path=_resume_point(folder), weights_only=True)
    except SystemExit as end:  # how Lightning ends on Ctrl-C
        raise KeyboardInterrupt from end


def _trainer(fit: Fit, keepers: list[ModelCheckpoint], progress: _Progress) -> lightning.Trainer:
    plan = fit.plan
    _quiet_lightning()
    return lightning.Trainer(
        accelerator="auto",
        devices=plan.devices,
        precision=plan.precision,
        max_steps=progress.total,
        gradient_clip_val=1.0,
        num_sanity_val_steps=0,
        reload_dataloaders_every_n_epochs=1,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[
            EarlyStopping("validation_loss", patience=plan.patience, check_on_train_epoch_end=False),
            *keepers,  # last, so that what they keep knows what the others know
            progress,
        ],
    )


def _quiet_lightning() -> None:
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    warnings.filterwarnings("ignore", message=".*LeafSpec.*")
    warnings.filterwarnings("ignore", message=".*exists and is not empty.*")


def _resume_point(folder: Path) -> Path | None:
    """The newest checkpoint of an interrupted training. Raises InputError on one that must not be read."""
    last = folder / "last.ckpt"
    if not last.is_file():
        return None
    _state(last)
    return last


def _state(path: Path) -> dict[str, Tensor]:
    """Weights in a checkpoint. Anything in it but tensors and plain values is refused, and nothing run."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)["state_dict"]
    except Exception as error:  # whatever torch says of a damaged or a dangerous file
        fix = "remove it, and the training starts anew"
        raise InputError(f"{path}: no checkpoint that may be read ({type(error).__name__}); {fix}") from None


def _peak_memory() -> int:
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
