"""Block-sparse attention with learned selection: one door (`attend`), several makers behind it."""

from sparse_model.attention.api import attend
from sparse_model.attention.selection import BlockSelection, block_scores, select_blocks

__all__ = ["BlockSelection", "attend", "block_scores", "select_blocks"]
