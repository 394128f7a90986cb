"""Encoder layers: normalisation, rotary positions, attention with a selector, gated feed-forward.

A layer has two forms with the same weights. `forward` is the plain one, which training differentiates.
`add_to_` is inference in place: a few attention heads at a time, then a few rows of the feed-forward at a
time, each adding to the residual stream, so that beside the stream only its normalised copy is ever whole.

Shape suffixes: B batch, N steps, M = B * N rows, W width, H heads, G key/value heads, S selector heads,
D head channels, E selector channels, F hidden channels.
"""

from functools import lru_cache
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, rms_norm, silu

from sparse_model.attention import BlockSelection, attend, dense, select
from sparse_model.attention.selection import num_blocks_of
from sparse_model.config import Budget, ModelConfig
from sparse_model.losses import Probes, SelectorTerms, selector_terms

if TYPE_CHECKING:
    from sparse_model.attention.sharded import Shards

_ROTARY_BASE = 10_000.0
# What inference holds at once. On a GPU large enough to fill it, on a CPU small enough for its cache.
_HEAD_ROWS = 1 << 18  # rows of a head's queries, keys and values
_FFN_ROWS = {"cuda": 8192, "cpu": 1024}  # rows of the feed-forward


@lru_cache
def rotary_frequencies(channels: int, share: float, device: torch.device) -> Tensor:
    """Radians per step of each channel pair; all but the fastest `share` of them stand still.

    Worked out on the CPU, so that all devices turn alike.
    """
    half = channels // 2
    with torch.inference_mode(False):  # it is kept, and the next one to ask may be a training
        pair = torch.arange(half, dtype=torch.float32)
        return (_ROTARY_BASE ** (-pair / half) * (pair < round(share * half))).to(device)


def rotary(x_BHND: Tensor, share: float = 1.0, first_step: int = 0) -> Tensor:
    """Rotate channel pairs by step number (RoPE, Su et al. 2021); computed, not tabled, so any N works.

    `first_step` is the number of the first step, where `x` is a shard of a longer sequence.
    """
    if x_BHND.is_cuda:
        from sparse_model.fused import Rotate  # needs Triton, which comes with PyTorch for GPUs

        return Rotate.apply(x_BHND, rotary_frequencies(x_BHND.shape[-1], share, x_BHND.device), first_step)
    return torch.cat(_turned(x_BHND, share, first_step), dim=-1)


def rotary_(x_BHND: Tensor, share: float = 1.0, first_step: int = 0) -> None:
    """`rotary` in place."""
    if x_BHND.is_cuda:
        from sparse_model.fused import rotate_

        return rotate_(x_BHND, rotary_frequencies(x_BHND.shape[-1], share, x_BHND.device), first_step)
    for half, turned in zip(x_BHND.chunk(2, dim=-1), _turned(x_BHND, share, first_step), strict=True):
        half.copy_(turned)


def _turned(x_BHND: Tensor, share: float, first_step: int = 0) -> tuple[Tensor, Tensor]:
    first, second = x_BHND.chunk(2, dim=-1)
    steps = torch.arange(x_BHND.shape[-2], device=x_BHND.device, dtype=torch.float32) + first_step
    angle_ND = steps[:, None] * rotary_frequencies(x_BHND.shape[-1], share, x_BHND.device)
    cos, sin = angle_ND.cos().to(x_BHND.dtype), angle_ND.sin().to(x_BHND.dtype)
    return first * cos - second * sin, first * sin + second * cos


class Norm(nn.RMSNorm):
    """RMS norm in one kernel under autocast, too: PyTorch's needs the weight in the input's dtype."""

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.normalized_shape, self.weight.to(x.dtype), self.eps)


class Selector(nn.Module):
    """Two small linear maps of the layer's input; their products rank pairs of steps."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.to_qk = nn.Linear(config.width, 2 * config.selector_heads * config.selector_dim, bias=False)

    def forward(self, x_BNW: Tensor, first_step: int = 0) -> tuple[Tensor, Tensor]:
        """Selector queries and keys, each [B, S, N, E], rotated by position like the attention's own."""
        qk = self.to_qk(x_BNW).unflatten(-1, (2 * self.config.selector_heads, -1)).transpose(1, 2)
        queries, keys = rotary(qk, self.config.rotary_share, first_step).chunk(2, dim=1)
        return queries, keys


class Attention(nn.Module):
    """Self-attention that is dense without a budget and block-sparse with one; the weights are shared.

    With `reads_all` it is dense with a budget too.
    """

    def __init__(self, config: ModelConfig, reads_all: bool = False) -> None:
        super().__init__()
        self.config, self.reads_all = config, reads_all
        self.shards: Shards | None = None
        """Set where the steps are one shard of longer sequences (SparseEncoder.spread)."""
        kv_width = config.num_kv_heads * config.head_dim
        self.to_q = nn.Linear(config.width, config.width, bias=False)
        self.to_kv = nn.Linear(config.width, 2 * kv_width, bias=False)
        self.to_out = nn.Linear(config.width, config.width, bias=False)
        self.selector = Selector(config)

    def heads(self, x_BNW: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Rotated queries [B, H, N, D], rotated keys and plain values [B, G, N, D]."""
        q = self.to_q(x_BNW).unflatten(-1, (self.config.num_heads, -1)).transpose(1, 2)
        kv = self.to_kv(x_BNW).unflatten(-1, (2 * self.config.num_kv_heads, -1)).transpose(1, 2)
        k, v = kv.chunk(2, dim=1)  # not indexed: the gradient of an index is a tensor of zeros, and a sum
        first, share = self._first_step(x_BNW), self.config.rotary_share
        return rotary(q, share, first), rotary(k, share, first), v

    def _first_step(self, x_BNW: Tensor) -> int:
        return 0 if self.shards is None else self.shards.first_step(x_BNW.shape[1])

    def select(
        self, x_BNW: Tensor, budget: Budget, lengths_B: Tensor | None = None, ranking_noise: float = 0.0
    ) -> BlockSelection:
        """The blocks that are read for this input."""
        size = self.config.block_size
        with torch.no_grad():
            sq, sk = self.selector(x_BNW, self._first_step(x_BNW))
        if self.shards is not None:
            return self.shards.select(sq, sk, budget, size)
        num_blocks = num_blocks_of(x_BNW.shape[1], size)
        num_selected = num_blocks if self.reads_all else budget.num_selected(num_blocks)
        how = {"causal": self.config.causal, "lengths_B": lengths_B, "ranking_noise": ranking_noise}
        return select(sq, sk, num_selected, size, **how)

    def forward(
        self,
        x_BNW: Tensor,
        budget: Budget | None,
        lengths_B: Tensor | None = None,
        ranking_noise: float = 0.0,
        probes: Probes | None = None,
    ) -> tuple[Tensor, SelectorTerms | None]:
        """Attention output [B, N, W] and, when `probes` names steps, the selector's loss terms there."""
        q, k, v = self.heads(x_BNW)
        out_BNW = self._read(q, k, v, self._chosen(x_BNW, budget, lengths_B, ranking_noise), lengths_B)
        terms = None
        if probes is not None:
            sq, sk = self.selector(x_BNW)
            size, causal = self.config.block_size, self.config.causal
            terms = selector_terms(q, k, sq, sk, probes, size, lengths_B, causal)
        return self.to_out(out_BNW), terms

    @torch.no_grad()
    def add_to_(
        self, x_BNW: Tensor, input_BNW: Tensor, budget: Budget | None, lengths_B: Tensor | None = None
    ) -> None:
        """Add the attention output for `input_BNW` to `x_BNW` in place, some heads at a time."""
        chosen = self._chosen(input_BNW, budget, lengths_B)
        together = self._heads_at_once(x_BNW.shape[0] * x_BNW.shape[1])
        for first in range(0, self.config.num_heads, together):
            heads = slice(first, first + together)
            part = None if chosen is None else self._part_of(chosen, heads)
            out_BNX = self._read(*self._some_heads(input_BNW, heads), part, lengths_B)
            columns = slice(first * self.config.head_dim, heads.stop * self.config.head_dim)
            _add_product_(x_BNW, out_BNX, self.to_out.weight[:, columns])
            del out_BNX  # or it would outlive the making of the next heads

    def _chosen(
        self, x_BNW: Tensor, budget: Budget | None, lengths_B: Tensor | None, ranking_noise: float = 0.0
    ) -> BlockSelection | None:
        """The blocks to read, or None to read everything by the dense kernel."""
        if budget is None or self.reads_all:
            return None
        return self.select(x_BNW, budget, lengths_B, ranking_noise)

    def _read(
        self,
        q_BHND: Tensor,
        k_BGND: Tensor,
        v_BGND: Tensor,
        chosen: BlockSelection | None,
        lengths_B: Tensor | None,
    ) -> Tensor:
        """Attention output [B, N, H * D], dense where no blocks are chosen."""
        if self.shards is not None:
            out = self.shards.attend(q_BHND, k_BGND, v_BGND, chosen)
        elif chosen is None:
            out = dense(q_BHND, k_BGND, v_BGND, causal=self.config.causal, lengths_B=lengths_B)
        else:
            out = attend(q_BHND, k_BGND, v_BGND, chosen, causal=self.config.causal, lengths_B=lengths_B)
        return out.transpose(1, 2).flatten(2)

    def _heads_at_once(self, num_rows: int) -> int:
        """Most heads within `_HEAD_ROWS` that cut neither key/value heads nor rankings across."""
        whole = self.config.num_heads
        shares = whole // self.config.num_kv_heads, whole // self.config.selector_heads
        fits = [
            count
            for count in range(1, whole + 1)
            if whole % count == 0
            and count * num_rows <= _HEAD_ROWS
            and all(count % share == 0 or share % count == 0 for share in shares)
        ]
        return max(fits, default=1)

    def _some_heads(self, x_BNW: Tensor, heads: slice) -> tuple[Tensor, Tensor, Tensor]:
        """`heads` of a few heads and the key/value heads they read: views of the product of one matmul."""
        groups, channels = self._serving(heads, self.config.num_kv_heads), self.config.head_dim
        num_queries, num_keys = heads.stop - heads.start, groups.stop - groups.start
        to_k, to_v = self.to_kv.weight.unflatten(0, (2, -1, channels))[:, groups].flatten(1, 2)
        to_q = self.to_q.weight.unflatten(0, (-1, channels))[heads].flatten(0, 1)
        qkv_BHND = linear(x_BNW, torch.cat([to_q, to_k, to_v])).unflatten(-1, (-1, channels)).transpose(1, 2)
        turned = qkv_BHND[:, : num_queries + num_keys]
        rotary_(turned, self.config.rotary_share, self._first_step(x_BNW))
        q, k, v = qkv_BHND.split([num_queries, num_keys, num_keys], dim=1)
        return q, k, v

    def _part_of(self, chosen: BlockSelection, heads: slice) -> BlockSelection:
        """The rankings that serve some heads."""
        rankings = self._serving(heads, chosen.indices_BSQK.shape[1])
        return BlockSelection(
            chosen.indices_BSQK[:, rankings], chosen.counts_BSQ[:, rankings], chosen.block_size
        )

    def _serving(self, heads: slice, count: int) -> slice:
        """Which of `count` key/value heads or rankings, each of several heads in order, serve `heads`."""
        share = self.config.num_heads // count
        return slice(heads.start // share, (heads.stop - 1) // share + 1)


class FeedForward(nn.Module):
    """SwiGLU (Shazeer 2020)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.to_hidden = nn.Linear(config.width, 2 * config.ffn_width, bias=False)
        self.to_out = nn.Linear(config.ffn_width, config.width, bias=False)

    def forward(self, x_BNW: Tensor) -> Tensor:
        return self.to_out(_gated(self.to_hidden(x_BNW)))

    @torch.no_grad()
    def add_to_(self, x_BNW: Tensor, norm: nn.Module) -> None:
        """Add the feed-forward of `norm(x_BNW)` to `x_BNW` in place, some rows at a time."""
        for rows_MW in x_BNW.view(-1, x_BNW.shape[-1]).split(_FFN_ROWS[x_BNW.device.type]):
            _add_product_(rows_MW, _gated_(self.to_hidden(norm(rows_MW))), self.to_out.weight)


def _gated(hidden: Tensor) -> Tensor:
    """silu of the left half of the last dimension, times the right half."""
    if hidden.is_cuda:
        from sparse_model.fused import Gate

        return Gate.apply(hidden)
    gate, value = hidden.chunk(2, dim=-1)
    return silu(gate) * value


def _gated_(hidden_MF: Tensor) -> Tensor:
    """`_gated`, in place of the left half."""
    if hidden_MF.is_cuda:
        from sparse_model.fused import gate_

        return gate_(hidden_MF)
    gate, value = hidden_MF.chunk(2, dim=-1)
    return silu(gate, inplace=True).mul_(value)


def _add_product_(x: Tensor, part: Tensor, weight: Tensor) -> None:
    """x += part @ weight.T in one kernel, summed in float32; dtypes differ under autocast only."""
    rows = x.view(-1, x.shape[-1])
    rows.addmm_(part.reshape(-1, part.shape[-1]).to(x.dtype), weight.T.to(x.dtype))


class Layer(nn.Module):
    """Pre-norm residual layer: attention, then feed-forward."""

    def __init__(self, config: ModelConfig, reads_all: bool = False) -> None:
        super().__init__()
        self.attention_norm = Norm(config.width)
        self.attention = Attention(config, reads_all)
        self.ffn_norm = Norm(config.width)
        self.ffn = FeedForward(config)

    def forward(
        self,
        x_BNW: Tensor,
        budget: Budget | None,
        lengths_B: Tensor | None = None,
        ranking_noise: float = 0.0,
        probes: Probes | None = None,
    ) -> tuple[Tensor, SelectorTerms | None]:
        mixed, terms = self.attention(self.attention_norm(x_BNW), budget, lengths_B, ranking_noise, probes)
        x_BNW = x_BNW + mixed
        return x_BNW + self.ffn(self.ffn_norm(x_BNW)), terms

    @torch.no_grad()
    def add_to_(self, x_BNW: Tensor, budget: Budget | None, lengths_B: Tensor | None = None) -> None:
        """Turn `x_BNW` into the layer's output in place, in bounded memory beside it; for inference."""
        self.attention.add_to_(x_BNW, self.attention_norm(x_BNW), budget, lengths_B)
        self.ffn.add_to_(x_BNW, self.ffn_norm)
