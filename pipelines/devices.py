"""What a training plan asks of this machine's devices, and how Lightning is told."""

import os
from typing import TYPE_CHECKING, Any

from pipelines.training_plan import TrainingPlan
from validation.errors import InputError

if TYPE_CHECKING:
    from sparse_model.model import SparseEncoder


def refuse_unfit(plan: TrainingPlan) -> None:
    """Raise InputError, before any work, for devices that are not there or cannot work together."""
    if plan.num_ranks == 1 and plan.precision == "32-true":
        return  # any machine does
    import torch

    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    present, kind = (gpus, "GPU") if gpus else (os.cpu_count() or 1, "core")
    if plan.devices > present:
        fix = f"give at most {present}, or more `nodes`"
        asked = f"{plan.devices} are asked, this machine has {present} {kind}s"
        raise InputError(f"training.devices: {asked}; {fix}")
    if plan.nodes > 1 and not {"MASTER_ADDR", "MASTER_PORT"} <= os.environ.keys():
        fix = "set MASTER_ADDR and MASTER_PORT to the first machine's address and a free port, on all of them"
        raise InputError(f"training.nodes: {plan.nodes} machines have to find each other; {fix}")
    if gpus:
        _refuse_mixed(plan)


def _refuse_mixed(plan: TrainingPlan) -> None:
    """GPUs that would each compute another way make no one model."""
    import torch

    used = range(plan.devices)
    kinds = sorted({torch.cuda.get_device_name(device) for device in used})
    if len({torch.cuda.get_device_capability(device) for device in used}) > 1:
        fix = "choose one kind by CUDA_VISIBLE_DEVICES"
        raise InputError(f"training.devices: {', '.join(kinds)} round differently in one training; {fix}")
    if plan.precision == "bf16-mixed" and torch.cuda.get_device_capability(0) < (8, 0):
        raise InputError(f"training.precision: {kinds[0]} has no bf16; give 32-true")


def strategy_of(plan: TrainingPlan) -> Any:
    """Lightning's strategy: FSDP is that of `torch.distributed.fsdp.fully_shard`."""
    if plan.num_ranks == 1:
        return "auto"
    if plan.strategy == "ddp":
        return "ddp"
    from lightning.pytorch.strategies import ModelParallelStrategy

    return ModelParallelStrategy(plan.num_ranks, 1, save_distributed_checkpoint=False)


def shard(model: "SparseEncoder") -> None:
    """Spread weights, gradients and optimiser over the processes, layer by layer, in place."""
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

    for layer in model.layers:
        fully_shard(layer)
        register_fsdp_forward_method(layer, "add_to_")
    fully_shard(model)
    register_fsdp_forward_method(model, "predict")
