"""What a model is (ModelConfig) and how much of a sequence it may read (Budget)."""

from dataclasses import asdict, dataclass
from math import ceil
from typing import Any, Literal

Task = Literal["event", "forecast", "detect"]


@dataclass(frozen=True)
class Budget:
    """Share of key blocks that each query block reads exactly; the rest is read as summaries.

    Chosen at inference: one set of weights serves every budget. `Budget(1.0)` reads everything.
    """

    density: float = 0.125
    """Share of key blocks, in (0, 1]."""

    def __post_init__(self) -> None:
        if not 0.0 < self.density <= 1.0:
            raise ValueError(f"budget: density must lie in (0, 1], got {self.density!r}")

    def num_selected(self, num_blocks: int) -> int:
        """Key blocks read by each query block of a sequence of `num_blocks` blocks; at least one."""
        return min(num_blocks, max(1, ceil(self.density * num_blocks - 1e-9)))


@dataclass(frozen=True)
class ModelConfig:
    """Shape of the encoder. Everything that is needed to rebuild it around saved weights."""

    num_numeric: int
    """Numeric input columns."""
    cardinalities: tuple[int, ...]
    """Vocabulary size of each categorical input column, the 'unknown' entry 0 included."""
    num_outputs: int
    """Values predicted for every step."""
    task: Task = "event"
    width: int = 64
    """Channels of the residual stream."""
    num_layers: int = 2
    num_heads: int = 4
    """Attention (query) heads."""
    num_kv_heads: int = 4
    """Key/value heads; fewer than num_heads is grouped-query attention."""
    ffn_width: int = 192
    """Hidden channels of the gated feed-forward network."""
    block_size: int = 32
    """Steps handled together as one block."""
    selector_heads: int = 1
    """Rankings learned per layer; each serves num_heads / selector_heads attention heads. One with enough
    channels was as accurate as several (pipelines/benchmarks/results/QUALITY_LOG.md); each costs the same."""
    selector_dim: int = 16
    """Channels of one selector head."""
    rotary_share: float = 1.0
    """Share of the rotary frequencies that turn, the fastest first; channels of the others compare content
    at any distance, which turning ones cannot beyond their wavelength (p-RoPE, Barbero et al. 2024)."""
    dense_layers: tuple[int, ...] = ()
    """Layers that read everything whatever the budget: no list was found that serves their attention."""
    causal: bool = False
    """A step reads itself and earlier ones only, so that a stream can be answered as it comes. Which blocks a
    step's block reads is decided by all of the block's steps so far."""

    def __post_init__(self) -> None:
        if self.width % self.num_heads or (self.width // self.num_heads) % 2:
            raise ValueError(f"width: {self.width} must be an even multiple of num_heads ({self.num_heads})")
        for name in ("num_kv_heads", "selector_heads"):
            if self.num_heads % getattr(self, name):
                raise ValueError(f"{name}: {getattr(self, name)} must divide num_heads ({self.num_heads})")
        if any(not 0 <= layer < self.num_layers for layer in self.dense_layers):
            raise ValueError(f"dense_layers: {self.dense_layers} do not lie in 0..{self.num_layers - 1}")
        if not 0.0 <= self.rotary_share <= 1.0:
            raise ValueError(f"rotary_share: must lie in [0, 1], got {self.rotary_share!r}")
        if self.block_size < 1:
            raise ValueError(f"block_size: must be at least 1, got {self.block_size}")

    @property
    def head_dim(self) -> int:
        return self.width // self.num_heads

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "ModelConfig":
        """Inverse of `to_dict`, also after a trip through JSON (lists become tuples)."""
        tuples = {name: tuple(values.get(name, ())) for name in ("cardinalities", "dense_layers")}
        return cls(**{**values, **tuples})
