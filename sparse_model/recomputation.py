"""Training in less memory: a layer keeps its input and what attention returned; the rest is made again.

Attention is what takes long to make again, and what it keeps (its output and one number per row and head) is
small; the feed-forward is the other way round. Dense attention is kept on every device. The sparse kernels
are seen as operators under a compiler only: run eagerly they go past PyTorch's dispatcher, and are run again.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

_KEPT = {
    "dankai::block_sparse_attention",
    "dankai::block_scores",
    "aten::_scaled_dot_product_cudnn_attention",
    "aten::_scaled_dot_product_flash_attention",
    "aten::_scaled_dot_product_flash_attention_for_cpu",
    "aten::_scaled_dot_product_efficient_attention",
}


def recomputed(layer: Callable[..., Any], *inputs: Any) -> Any:
    """`layer(*inputs)`, keeping for its gradient only the inputs and the results of attention operators."""
    contexts = partial(create_selective_checkpoint_contexts, _policy)
    return checkpoint(layer, *inputs, use_reentrant=False, context_fn=contexts)


def _policy(_context: Any, operator: Any, *_: Any, **__: Any) -> CheckpointPolicy:
    kept = isinstance(operator, torch._ops.OpOverload) and operator._schema.name in _KEPT
    return CheckpointPolicy.MUST_SAVE if kept else CheckpointPolicy.PREFER_RECOMPUTE
