"""Block-sparse attention with learned selection: one door (`sparse_attention`), several makers behind it."""

from sparse_model.attention.api import attend, dense, select, sparse_attention
from sparse_model.attention.module import SparseAttention
from sparse_model.attention.selection import BlockSelection, block_scores, select_blocks

__all__ = [
    "BlockSelection",
    "SparseAttention",
    "attend",
    "block_scores",
    "dense",
    "select",
    "select_blocks",
    "sparse_attention",
]
