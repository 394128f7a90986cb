"""How a model is trained: everything that, with data and code, decides the weights. No heavy imports."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from validation.record import Record

Mode = Literal["dense", "sparse", "selector", "adapt"]
"""Everything, read densely or sparsely; the selector alone (pilot); selector and head (a new site)."""
Positive = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(gt=0, le=1)]


class TrainingPlan(Record):
    """Schedule and weights of the losses. The defaults suit a small CPU job."""

    num_steps: Positive = 240
    """Optimiser steps of a full training."""
    selector_steps: Positive = 60
    """Optimiser steps of the pilot, which fits the selector alone."""
    tuning_steps: Positive = 60
    """Optimiser steps of a retraining or an adaptation, which start from trained weights at full length."""
    tuning_rate: Annotated[float, Field(gt=0, le=1)] = 0.3
    """Peak learning rate of a retraining, as a share of a full training's."""
    tokens_per_step: Positive = 12_288
    """Steps of all windows in one batch: long windows come in small batches."""
    curriculum: Annotated[tuple[tuple[Share, Share], ...], Field(min_length=1)] = ((0.25, 0.8), (1.0, 0.2))
    """(share of the lookback, share of the training) in order: from short windows to full length."""
    densities: Annotated[tuple[Share, ...], Field(min_length=1)] = (0.0625, 0.125, 0.25, 0.5)
    """Budgets drawn at random, one a step, so that one set of weights serves them all."""
    target_density: Share = 0.125
    """Budget on which the model is selected and judged."""
    peak_learning_rate: Annotated[float, Field(gt=0)] = 3e-3
    weight_decay: Annotated[float, Field(ge=0)] = 0.05
    warmup_steps: Positive = 30
    selector_weight: Annotated[float, Field(ge=0)] = 0.3
    """Weight of the divergence between selector and attention."""
    sparsity_weight: Annotated[float, Field(ge=0)] = 0.01
    """Weight of the entropy of the selector's block masses: pressure towards few blocks."""
    ranking_noise: Annotated[float, Field(ge=0)] = 0.5
    """Noise on block scores during the first third of the training."""
    num_probes: Positive = 64
    """Steps of a window on which selector and attention are compared."""
    max_disagreement: Share = 0.05
    """Share of the variance of a frozen model's outputs that a pilot may fail to reproduce; beyond, it keeps
    layers dense (pipelines.pilot)."""
    steps_per_epoch: Positive = 30
    """Steps between validations; a checkpoint to resume from is kept after each."""
    patience: Positive = 4
    """Validations without a better loss before the training stops early."""
    validation_windows: Positive = 32
    devices: Positive = 1
    """Processes of a node: one a GPU where there are GPUs, else one a share of the cores."""
    nodes: Positive = 1
    """Machines that train together over one home folder; all but the first run `dankai join`."""
    strategy: Literal["ddp", "fsdp"] = "ddp"
    """With several processes: every one holds the whole model, or a share of its weights and optimiser."""
    accumulate: Positive = 1
    """Parts, one after another, that a process makes of its share of a batch: less memory, the same step."""
    precision: Literal["32-true", "bf16-mixed"] = "32-true"
    recompute: bool = False
    """Keep little more than each layer's input for the gradient and make the rest again: long windows fit
    into a quarter of the memory, a step takes up to a third longer, the gradients are the same."""

    @model_validator(mode="after")
    def _curriculum_adds_up(self) -> "TrainingPlan":
        if abs(sum(share for _, share in self.curriculum) - 1.0) > 1e-6:
            raise ValueError("curriculum: the shares of the training must add up to 1")
        return self

    @property
    def num_ranks(self) -> int:
        """Processes that train together."""
        return self.devices * self.nodes

    @property
    def num_parts(self) -> int:
        """Equal parts that every batch is cut into."""
        return self.num_ranks * self.accumulate

    def part_of(self, rank: int, turn: int) -> int:
        """Which part of a batch process number `rank` works on in its turn number `turn`."""
        return rank * self.accumulate + turn

    def steps_of(self, mode: Mode) -> int:
        """Optimiser steps planned for a mode."""
        steps = {"selector": self.selector_steps, "adapt": self.tuning_steps}
        return steps.get(mode, self.num_steps)

    def for_tuning(self) -> "TrainingPlan":
        """The plan of a retraining: short, gentle, at full length from the first step."""
        return self.model_copy(
            update={
                "num_steps": self.tuning_steps,
                "curriculum": ((1.0, 1.0),),
                "peak_learning_rate": self.peak_learning_rate * self.tuning_rate,
                "warmup_steps": min(self.warmup_steps, max(1, self.tuning_steps // 4)),
                "ranking_noise": 0.0,
            }
        )

    def batch_shape(self, length_share: float, lookback: int, horizon: int) -> tuple[int, int]:
        """Steps of lookback, and windows, of a batch at one length of the curriculum."""
        past = max(1, round(lookback * length_share))
        return past, max(1, self.tokens_per_step // (past + horizon))

    def undivided(self, lookback: int, horizon: int) -> str:
        """What is wrong with a batch that its processes cannot share alike; "" when nothing is."""
        for share in {*(share for share, _ in self.curriculum), 1.0}:
            past, count = self.batch_shape(share, lookback, horizon)
            if count % self.num_parts:
                steps, wanted = past + horizon, -(-count // self.num_parts) * self.num_parts
                parts = f"{self.devices} devices x {self.nodes} nodes x {self.accumulate} accumulated"
                return (
                    f"{self.tokens_per_step} steps make {count} windows of {steps}, which {parts} "
                    f"cannot share alike; give {wanted * steps}, or other devices"
                )
        return ""

    def length_share(self, step: int, mode: Mode) -> float:
        """Share of the lookback that step number `step` trains on; what starts from weights has all of it."""
        if mode in ("selector", "adapt"):
            return 1.0
        done, progress = 0.0, step / self.num_steps
        for length, share in self.curriculum:
            done += share
            if progress < done - 1e-9:
                return length
        return self.curriculum[-1][0]
