"""What the selector judged important, and what dense attention would have looked at beside it.

Shape suffixes: B batch, N steps, H heads, P probe steps, Q query blocks, J key blocks.
"""

import torch
from torch import Tensor

from sparse_model.config import Budget
from sparse_model.layers import Attention
from sparse_model.losses import log_block_mass
from sparse_model.model import SparseEncoder


@torch.no_grad()
def selection_recall(
    model: SparseEncoder,
    numeric_BNF: Tensor,
    known_BNF: Tensor,
    categorical_BNC: Tensor,
    budget: Budget,
    probes_P: Tensor,
) -> Tensor:
    """Share of dense attention's mass that falls on the blocks read, [B, layers, heads]; mean over probes.

    Each layer is audited on the input that the sparse model gives it, so the figure speaks of the
    model as it runs. The rest of the mass was read as summaries only.
    """
    x = model.embed(numeric_BNF, known_BNF, categorical_BNC)
    recalls = []
    for layer in model.layers:
        recalls.append(_covered_mass(layer.attention, layer.attention_norm(x), budget, probes_P))  # pyright: ignore
        x, _ = layer(x, budget)
    return torch.stack(recalls, dim=1)


def _covered_mass(attention: Attention, x_BNW: Tensor, budget: Budget, probes_P: Tensor) -> Tensor:
    q, k, _ = attention.heads(x_BNW)
    config = attention.config
    keys = k.repeat_interleave(config.num_heads // config.num_kv_heads, dim=1)
    mass_BHPJ = log_block_mass(q[:, :, probes_P], keys, config.block_size, None).exp()
    read_BSQJ = attention.select(x_BNW, budget).read_mask()
    read_BSPJ = read_BSQJ[:, :, probes_P // config.block_size]
    read_BHPJ = read_BSPJ.repeat_interleave(config.num_heads // config.selector_heads, dim=1)
    return (mass_BHPJ * read_BHPJ).sum(-1).mean(-1)
