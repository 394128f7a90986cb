"""What a training plan asks of this machine's devices, and how Lightning is told."""

import os
from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from pipelines.training_plan import TrainingPlan
from validation.errors import InputError

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from torch.nn import Module

    from sparse_model.model import SparseEncoder

_GATHERED_PARAMETERS = 1 << 24  # of the layers that FSDP gathers in one go: fewer take the host, not the link
_KEPT_PARAMETERS = 1 << 28  # 1 GiB of float32 weights; more are gathered anew for the backward pass


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


def shard(model: "SparseEncoder", plan: TrainingPlan) -> None:
    """Spread weights, gradients and optimiser over the processes, some layers at a time, in place.

    Each group of layers is gathered, and its gradients are summed, in one go; what all weights together leave
    room for stays gathered from the forward to the backward pass. With bf16-mixed they travel as the bf16
    that products take anyway; shares of weights, sums of gradients and the optimiser are float32.
    """
    import torch
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method

    policy = MixedPrecisionPolicy(cast_forward_inputs=False)  # Lightning's autocast knows which
    if plan.precision == "bf16-mixed":
        policy = replace(policy, param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    keeps = sum(parameter.numel() for parameter in model.parameters()) <= _KEPT_PARAMETERS
    for layers in _gathered_together(list(model.layers)):
        fully_shard(layers, reshard_after_forward=not keeps, mp_policy=policy)
        for layer in layers:
            register_fsdp_forward_method(layer, "add_to_")
    fully_shard(model, mp_policy=policy)
    register_fsdp_forward_method(model, "predict")


def _gathered_together(layers: "list[Module]") -> "list[list[Module]]":
    """Consecutive layers in groups of at least `_GATHERED_PARAMETERS`, the last one of what is left."""
    groups: list[list[Module]] = [[]]
    for layer in layers:
        if sum(p.numel() for each in groups[-1] for p in each.parameters()) >= _GATHERED_PARAMETERS:
            groups.append([])
        groups[-1].append(layer)
    return groups


def sent(t: "Tensor", device: "torch.device") -> "Tensor":
    """`t` on `device`, without waiting until the device has done what it was asked before."""
    return t.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else t.to(device)


def clip_gradients(parameters: "Iterable[Tensor]", largest_norm: float) -> None:
    """`torch.nn.utils.clip_grad_norm_`, with one sum over the processes where parameters are in shards."""
    import torch
    from torch.distributed.tensor import DTensor
    from torch.nn.utils import get_total_norm

    found = [parameter.grad for parameter in parameters if parameter.grad is not None]
    grads = [grad.to_local() if isinstance(grad, DTensor) else grad for grad in found]
    norm = get_total_norm(grads)
    if any(isinstance(grad, DTensor) for grad in found):
        squares = norm.square()
        torch.distributed.all_reduce(squares)
        norm = squares.sqrt()
    scale = (largest_norm / (norm + 1e-6)).clamp(max=1.0)
    torch._foreach_mul_(grads, scale)  # pyright: ignore[reportPrivateImportUsage]
