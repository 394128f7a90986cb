"""Training under Lightning: dense, sparse end to end, or parts alone. Runs without MLflow or Prefect.

Every batch is a pure function of (seed, step), so a training that was killed goes on from its last
checkpoint with exactly the batches it would have seen. `train` is the door; a plan for several processes
sends each of them through `fit` (pipelines.ranks), which is what one process runs too.
"""

import gc
import logging
import math
import resource
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback, EarlyStopping, ModelCheckpoint
from torch import Tensor
from torch.utils.data import DataLoader

from pipelines.checkpoint import Checkpoint, load_model, save_weights
from pipelines.data.windows import Windows
from pipelines.devices import clip_gradients, refuse_unfit, sent, shard, strategy_of
from pipelines.files import sha256_of
from pipelines.fingerprint import environment
from pipelines.pilot import disagreement, kept_dense_where_needed
from pipelines.training_batches import Batches, ValidationBatches
from pipelines.training_checkpoints import resume_point, weights_in
from pipelines.training_job import TrainingJob
from pipelines.training_plan import Mode, TrainingPlan
from sparse_model.config import Budget, ModelConfig
from sparse_model.detection import drawn_spans
from sparse_model.losses import Probes, task_loss
from sparse_model.memory import keep_freed_memory
from sparse_model.model import SparseEncoder, Training

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
"""Modes that start from given weights and train some modules of the model, by name; "sparse" trains all."""
_FAR_APART = 1_000_000_007  # random numbers of one part of a batch from those of the next


class Fit(lightning.LightningModule):
    """One training: the loss of a batch, the optimiser, and what is logged."""

    def __init__(self, model: SparseEncoder, windows: Windows, plan: TrainingPlan, mode: Mode, seed: int):
        super().__init__()
        self.model, self.windows, self.plan, self.seed = model, windows, plan, seed
        self.mode: Mode = mode
        self.curve: Curve = {}
        self._noted: list[dict[str, Tensor]] = []
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(_is_trained(mode, frozenset(name.split("."))))

    def configure_model(self) -> None:
        if self.plan.strategy == "fsdp" and self.plan.num_ranks > 1:
            shard(self.model, self.plan)

    def train_dataloader(self) -> DataLoader[list[Tensor]]:
        """The batches of the current epoch; the dataloader is made anew for each (see Trainer)."""
        first = self.current_epoch * self.plan.steps_per_epoch
        count = max(0, min(self.plan.steps_per_epoch, self.plan.steps_of(self.mode) - first))
        batches = Batches(self.windows, self.plan, self.mode, self.seed, first, count, self.global_rank)
        return DataLoader(batches, batch_size=None, pin_memory=torch.cuda.is_available())

    def val_dataloader(self) -> DataLoader[list[Tensor]]:
        return DataLoader(ValidationBatches(self.windows, self.plan.validation_windows), batch_size=None)

    def training_step(self, batch: list[Tensor], index: int) -> Tensor:
        number = self.seed * 1_000_003 + self.global_step
        part = self.plan.part_of(self.global_rank, index % self.plan.accumulate)
        # the noise on the ranking: a part's own, and a resumed training has to draw it again
        torch.manual_seed(number + part * _FAR_APART)
        loss, terms = self._loss(batch, torch.Generator().manual_seed(number))
        self._noted.append({"train_loss": loss.detach(), **terms})
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
        self.log("validation_loss", loss, batch_size=batch[0].shape[0], sync_dist=True)
        return loss

    def on_validation_epoch_end(self) -> None:
        self._gather()
        value = float(self.trainer.callback_metrics["validation_loss"])
        self.curve.setdefault("validation_loss", []).append((self.global_step, value))

    def _loss(
        self, batch: list[Tensor], random: torch.Generator, budget: Budget | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        numeric, known, categorical, target, mask, *whole = batch
        scored = whole[0] / self.plan.num_parts if whole else mask.sum(0)
        if self.model.config.task == "detect":
            hidden = sent(drawn_spans(known.shape[1], random), known.device)[:, None]
            known, mask, scored = known * ~hidden, mask * hidden, scored * hidden
        request = (
            None if self.mode == "dense" else Training(self._probes(numeric, random), self._noise(budget))
        )
        is_sparse = self.mode in ("sparse", "adapt")
        budget = (budget or self._random_budget(random)) if is_sparse else None
        outputs, selector = self.model.predict(
            numeric, known, categorical, budget, training=request, recompute=self.plan.recompute
        )
        least = 1.0 / self.plan.num_parts if whole else 1.0
        loss = task_loss(outputs, target, mask, self.model.config.task, scored.sum().clamp_min(least))
        if not selector:
            return loss, {"task_loss": loss.detach()}
        divergence = torch.stack([term.divergence for term in selector]).mean()
        entropy = torch.stack([term.entropy for term in selector]).mean()
        terms = {
            "task_loss": loss.detach(),
            "selector_divergence": divergence.detach(),
            "selector_entropy": entropy.detach(),
        }
        if self.mode == "selector":
            return divergence, terms
        return loss + self.plan.selector_weight * divergence + self.plan.sparsity_weight * entropy, terms

    def _probes(self, numeric: Tensor, random: torch.Generator) -> Probes:
        """Steps drawn evenly; for a frozen model half of them where its attention has most to lose."""
        peaked = self.plan.num_probes // 2 if self.mode == "selector" else 0
        steps = torch.randint(numeric.shape[1], (1, self.plan.num_probes - peaked), generator=random)
        return Probes(sent(steps, numeric.device), peaked)

    def _random_budget(self, random: torch.Generator) -> Budget:
        choice = int(torch.randint(len(self.plan.densities), (1,), generator=random))
        return Budget(self.plan.densities[choice])

    def _noise(self, budget: Budget | None) -> float:
        """Exploration early in the training; none where a budget was asked for (validation)."""
        early = self.global_step < self.plan.steps_of(self.mode) / 3
        return self.plan.ranking_noise if early and budget is None and self.mode == "sparse" else 0.0

    def _gather(self) -> None:
        """Move what was noted since the last time into the curve: the mean over the parts of each batch.

        Once a validation, because it waits for the device and for the other processes.
        """
        if not self._noted:
            return
        names = tuple(self._noted[0])
        parts = torch.stack([torch.stack([noted[name] for name in names]) for noted in self._noted])
        steps = self.trainer.strategy.reduce(parts.unflatten(0, (-1, self.plan.accumulate)).mean(1)).cpu()
        first = self.global_step - len(steps)
        for name, values in zip(names, steps.T.tolist(), strict=True):
            self.curve.setdefault(name, []).extend(enumerate(values, first))
        self._noted.clear()

    def configure_optimizers(self) -> Any:
        """AdamW with warm-up and cosine decay."""
        parameters = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(
            parameters,
            lr=self.plan.peak_learning_rate,
            weight_decay=self.plan.weight_decay,
            betas=(0.9, 0.98),
            fused=True if parameters[0].is_cuda else None,
        )
        total, warmup = self.plan.steps_of(self.mode), self.plan.warmup_steps

        def factor(step: int) -> float:
            return min(1.0, (step + 1) / warmup) * (
                0.03 + 0.97 * 0.5 * (1 + math.cos(math.pi * step / total))
            )

        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def configure_gradient_clipping(self, *_: Any, gradient_clip_val: float, **__: Any) -> None:
        clip_gradients(self.model.parameters(), gradient_clip_val)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["curve"] = self.curve
        checkpoint["plan"] = self.plan.model_dump(mode="json")

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.curve = checkpoint["curve"]


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

    A checkpoint is kept in `folder` after every `plan.steps_per_epoch` steps; called again with the same
    arguments after a crash, the training goes on from there. `warm_start` gives the first weights ("selector"
    needs the dense model whose attention it learns, "adapt" the model of another site). `follow` is told the
    curve as it grows; after a resume that begins with what was noted before the crash. Raises InputError for
    devices that are not there, a checkpoint that must not be gone on from, and a process of several that
    ended before its time.
    """
    if mode in TRAINED_PARTS and warm_start is None:
        raise ValueError(f"warm_start: {mode} trains a part of a model and needs the model")
    refuse_unfit(plan)
    resume_point(folder, plan)
    job = TrainingJob(
        snapshot=windows.snapshot,
        spec=windows.spec,
        preprocessing=windows.preprocessing,
        config=config.to_dict(),
        plan=plan,
        mode=mode,
        seed=seed,
        folder=str(folder),
        warm_start=warm_start,
        made_with=environment(),
    )
    job.save()
    if plan.num_ranks == 1:
        return fit(windows, job, report, follow)
    if len(windows.time_us) != windows.snapshot.num_rows:
        raise ValueError("windows: of a part of a snapshot, which other processes would not know")
    from pipelines.ranks import train_on_ranks

    return train_on_ranks(job, report, follow)


def fit(windows: Windows, job: TrainingJob, report: Report, follow: Follow) -> tuple[Checkpoint, Curve]:
    """What every process of a training does; the first one keeps the weights and says what came of it."""
    folder = Path(job.folder)
    lightning.seed_everything(job.seed, verbose=False)
    keep_freed_memory()
    model = (
        load_model(job.warm_start).train()
        if job.warm_start
        else SparseEncoder(ModelConfig.from_dict(job.config))
    )
    module = Fit(model, windows, job.plan, job.mode, job.seed)
    best, last = _keep(folder, "best", monitor="validation_loss"), _keep(folder, "last")
    started = time.monotonic()
    trainer = _trainer(module, [best, last], _Progress(report, follow, module))
    _run(trainer, module, resume_point(folder, job.plan))
    if trainer.is_global_zero:
        model = _best(module, folder / "best.ckpt")
        save_weights(model, folder)
    trainer.strategy.barrier()
    checkpoint = Checkpoint(
        folder=str(folder),
        sha256=sha256_of(folder / "model.safetensors"),
        config=model.config.to_dict(),
        snapshot=windows.snapshot.content_hash,
        plan=job.plan.digest(),
        mode=job.mode,
        seed=job.seed,
        num_steps=int(module.curve["train_loss"][-1][0]) + 1,
        validation_loss=float(best.best_model_score) if best.best_model_score is not None else math.nan,
        train_seconds=time.monotonic() - started,
        peak_memory_bytes=_peak_memory(),
    )
    return checkpoint, module.curve


def _is_trained(mode: Mode, parts: frozenset[str]) -> bool:
    """Whether a parameter with these parts in its name is; a dense model reads no selector."""
    if mode == "dense":
        return "selector" not in parts
    return mode not in TRAINED_PARTS or not TRAINED_PARTS[mode].isdisjoint(parts)


def _best(module: Fit, path: Path) -> SparseEncoder:
    """The best weights, in a model of this process alone: the trained one may be spread over several."""
    model = SparseEncoder(module.model.config)
    model.load_state_dict({name.removeprefix("model."): value for name, value in weights_in(path).items()})
    if module.mode != "selector":
        return model
    return _agreeing(module, model.train())


def _agreeing(module: Fit, fitted: SparseEncoder) -> SparseEncoder:
    """The fitted model, with layers kept dense where its answers to the validation windows would differ."""
    held_out, budget = list(module.val_dataloader()), Budget(module.plan.target_density)
    kept = kept_dense_where_needed(fitted, held_out, budget, module.plan.max_disagreement)
    last_step = module.curve["train_loss"][-1][0]
    for name, model in (("disagreement_all_sparse", fitted), ("disagreement", kept)):
        module.curve[name] = [(last_step, disagreement(model, held_out, budget))]
    return kept


def _keep(folder: Path, name: str, monitor: str | None = None) -> ModelCheckpoint:
    """Keeps the newest checkpoint after every validation or, with `monitor`, the one with the lowest."""
    return ModelCheckpoint(
        folder, name, monitor=monitor, save_on_train_epoch_end=False, enable_version_counter=False
    )


def _run(trainer: lightning.Trainer, module: Fit, resume_point: Path | None) -> None:
    gc.freeze()  # what was there before is not searched for garbage while a device waits for its next step
    try:
        trainer.fit(module, ckpt_path=resume_point, weights_only=True)
    except SystemExit as end:  # how Lightning ends on Ctrl-C
        raise KeyboardInterrupt from end
    finally:
        gc.unfreeze()


def _trainer(module: Fit, keepers: list[ModelCheckpoint], progress: _Progress) -> lightning.Trainer:
    plan = module.plan
    _quiet_lightning()
    trainer = lightning.Trainer(
        accelerator="auto",
        devices=plan.devices,
        num_nodes=plan.nodes,
        strategy=strategy_of(plan),
        precision=plan.precision,
        accumulate_grad_batches=plan.accumulate,
        max_steps=progress.total,
        gradient_clip_val=1.0,
        num_sanity_val_steps=0,
        reload_dataloaders_every_n_epochs=1,
        use_distributed_sampler=False,  # Batches knows the process's part
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[
            EarlyStopping("validation_loss", patience=plan.patience, check_on_train_epoch_end=False),
            *keepers,  # last, so that what they keep knows what the others know
            progress,
        ],
    )
    # Before every batch Lightning asks all ranks whether one was told to end, and waits for the GPU to hear
    # it. Here a rank that ends is noticed by the process that started it (pipelines.ranks).
    trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None
    return trainer


def _quiet_lightning() -> None:
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    warnings.filterwarnings("ignore", message=".*LeafSpec.*")
    warnings.filterwarnings("ignore", message=".*exists and is not empty.*")


def _peak_memory() -> int:
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
