"""Encoder layers: normalisation, rotary positions, attention with a selector, gated feed-forward.

Shape suffixes: B batch, N steps, W width, H heads, G key/value heads, S selector heads, D head
channels, E selector channels.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from sparse_model.attention import BlockSelection, attend, dense, select
from sparse_model.attention.selection import num_blocks_of
from sparse_model.config import Budget, ModelConfig
from sparse_model.losses import Probes, SelectorTerms, selector_terms

_FFN_ROWS = 1024  # steps of the feed-forward held at once in inference: bounds its memory


def rotary(x_BHND: Tensor, share: float = 1.0) -> Tensor:
    """Rotate channel pairs by step number (RoPE, Su et al. 2021); computed, not tabled, so any N works."""
    num_steps, channels = x_BHND.shape[-2:]
    frequency = rotary_frequencies(channels, share, x_BHND.device)
    angle_ND = torch.arange(num_steps, device=x_BHND.device, dtype=torch.float32)[:, None] * frequency
    cos, sin = angle_ND.cos().to(x_BHND.dtype), angle_ND.sin().to(x_BHND.dtype)
    first, second = x_BHND.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, first * sin + second * cos], dim=-1)


def rotary_frequencies(channels: int, share: float, device: torch.device | None = None) -> Tensor:
    """Radians per step of every channel pair; all but the fastest `share` of them stand still."""
    half = channels // 2
    pair = torch.arange(half, device=device, dtype=torch.float32)
    return 10_000.0 ** (-pair / half) * (pair < round(share * half))


class Selector(nn.Module):
    """Two small linear maps of the layer's input; their products rank pairs of steps."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.to_qk = nn.Linear(config.width, 2 * config.selector_heads * config.selector_dim, bias=False)

    def forward(self, x_BNW: Tensor) -> tuple[Tensor, Tensor]:
        """Selector queries and keys, each [B, S, N, E], rotated by position like the attention's own."""
        qk = self.to_qk(x_BNW).unflatten(-1, (2, self.config.selector_heads, -1)).permute(2, 0, 3, 1, 4)
        return rotary(qk[0], self.config.rotary_share), rotary(qk[1], self.config.rotary_share)


class Attention(nn.Module):
    """Self-attention that is dense without a budget and block-sparse with one; the weights are shared."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        kv_width = config.num_kv_heads * config.head_dim
        self.to_q = nn.Linear(config.width, config.width, bias=False)
        self.to_kv = nn.Linear(config.width, 2 * kv_width, bias=False)
        self.to_out = nn.Linear(config.width, config.width, bias=False)
        self.selector = Selector(config)

    def heads(self, x_BNW: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Rotated queries [B, H, N, D], rotated keys and plain values [B, G, N, D]."""
        q = self.to_q(x_BNW).unflatten(-1, (self.config.num_heads, -1)).transpose(1, 2)
        kv = self.to_kv(x_BNW).unflatten(-1, (2, self.config.num_kv_heads, -1)).permute(2, 0, 3, 1, 4)
        return rotary(q, self.config.rotary_share), rotary(kv[0], self.config.rotary_share), kv[1]

    def select(
        self, x_BNW: Tensor, budget: Budget, lengths_B: Tensor | None = None, ranking_noise: float = 0.0
    ) -> BlockSelection:
        """The blocks that the selector would read for this input."""
        size = self.config.block_size
        with torch.no_grad():
            sq, sk = self.selector(x_BNW)
        num_selected = budget.num_selected(num_blocks_of(x_BNW.shape[1], size))
        return select(sq, sk, num_selected, size, lengths_B=lengths_B, ranking_noise=ranking_noise)

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
        if budget is None:
            out = dense(q, k, v, causal=False, lengths_B=lengths_B)
        else:
            out = attend(q, k, v, self.select(x_BNW, budget, lengths_B, ranking_noise), lengths_B=lengths_B)
        terms = None
        if probes is not None:
            sq, sk = self.selector(x_BNW)
            terms = selector_terms(q, k, sq, sk, probes, self.config.block_size, lengths_B)
        del q, k, v  # before the output is copied: dense and sparse both peak lower
        return self.to_out(out.transpose(1, 2).flatten(2)), terms


class FeedForward(nn.Module):
    """SwiGLU (Shazeer 2020); in inference long sequences go through it in pieces."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.to_hidden = nn.Linear(config.width, 2 * config.ffn_width, bias=False)
        self.to_out = nn.Linear(config.ffn_width, config.width, bias=False)

    def forward(self, x_BNW: Tensor) -> Tensor:
        if torch.is_grad_enabled() or x_BNW.shape[1] <= _FFN_ROWS:
            return self._gated(x_BNW)
        return torch.cat([self._gated(part) for part in x_BNW.split(_FFN_ROWS, dim=1)], dim=1)

    def _gated(self, x_BNW: Tensor) -> Tensor:
        gate, value = self.to_hidden(x_BNW).chunk(2, dim=-1)
        return self.to_out(silu(gate) * value)


class Layer(nn.Module):
    """Pre-norm residual layer: attention, then feed-forward."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.attention_norm = nn.RMSNorm(config.width)
        self.attention = Attention(config)
        self.ffn_norm = nn.RMSNorm(config.width)
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
