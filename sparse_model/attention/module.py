"""The operation as a module: its settings, without weights.

Shape suffixes: B batch, H heads, G key/value heads, S selector heads, N steps, D channels, E selector
channels.
"""

from torch import Tensor, nn

from sparse_model.attention.api import sparse_attention
from sparse_model.config import Budget


class SparseAttention(nn.Module):
    """`sparse_attention` with fixed settings; all tensors come from outside."""

    def __init__(
        self,
        block_size: int = 128,
        *,
        causal: bool = False,
        summaries: bool = True,
        implementation: str = "auto",
    ) -> None:
        super().__init__()
        self.block_size = block_size
        self.causal = causal
        self.summaries = summaries
        self.implementation = implementation

    def forward(
        self,
        q_BHND: Tensor,
        k_BGND: Tensor,
        v_BGND: Tensor,
        sq_BSNE: Tensor,
        sk_BSNE: Tensor,
        budget: Budget,
        lengths_B: Tensor | None = None,
    ) -> Tensor:
        """Attention output, [B, H, N, D]; arguments and errors as in `sparse_attention`."""
        return sparse_attention(
            q_BHND,
            k_BGND,
            v_BGND,
            sq_BSNE,
            sk_BSNE,
            budget,
            block_size=self.block_size,
            causal=self.causal,
            lengths_B=lengths_B,
            summaries=self.summaries,
            implementation=self.implementation,
        )

    def extra_repr(self) -> str:
        return f"block_size={self.block_size}, causal={self.causal}, implementation={self.implementation!r}"
