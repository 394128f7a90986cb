"""Planted long-range recall: 32 events far back in noise, 32 later queries that name one event each.

Every step carries 16 numbers and a kind. A noise step's are random signs, an event's are its key (its kind
tells its class, one of 8), a query's the key of the event whose class it asks for. Keys of a sequence differ.
Events lie in the first quarter, queries in the other three.

Shape suffixes: B batch, N steps, A events or queries.
"""

import torch
from torch import Tensor

from pipelines.benchmarks.quality.fitting import Batch
from sparse_model.config import ModelConfig

NUM_EVENTS, KEY_BITS, NUM_CLASSES = 32, 16, 8
NOISE, QUERY, FIRST_CLASS = 1, 2, 3  # codes of the kind; 0 is "unknown"


def config(**changes: object) -> ModelConfig:
    """Two layers, width 128, 4 heads, blocks of 64 steps."""
    values: dict[str, object] = {
        "num_numeric": KEY_BITS, "cardinalities": (FIRST_CLASS + NUM_CLASSES,), "num_outputs": NUM_CLASSES,
        "width": 128, "num_layers": 2, "num_heads": 4, "num_kv_heads": 4, "ffn_width": 256, "block_size": 64,
        "selector_heads": 1, "rotary_share": 0.25,
    }  # fmt: skip
    return ModelConfig(**{**values, **changes})  # pyright: ignore[reportArgumentType]


def batch(num_sequences: int, num_steps: int, random: torch.Generator) -> Batch:
    """Sequences of `num_steps` steps with their 32 questions."""
    return planted(num_sequences, num_steps, random)[0]


def planted(num_sequences: int, num_steps: int, random: torch.Generator) -> tuple[Batch, Tensor]:
    """A batch, and for every question the step of the event that answers it, [B, A]."""
    device = random.device
    signs = torch.randint(0, 2, (num_sequences, num_steps, KEY_BITS), generator=random, device=device)
    numeric = signs * 2.0 - 1.0
    kind = torch.full((num_sequences, num_steps, 1), NOISE, device=device)
    quarter = num_steps // 4
    events_BA = _distinct(num_sequences, quarter, random)
    queries_BA = _distinct(num_sequences, num_steps - quarter, random) + quarter
    keys_BA = _distinct(num_sequences, 2**KEY_BITS, random)
    bits = torch.arange(KEY_BITS, device=device)
    keys = ((keys_BA[..., None] >> bits) & 1) * 2.0 - 1.0
    classes_BA = torch.randint(0, NUM_CLASSES, keys_BA.shape, generator=random, device=device)
    for steps_BA, codes_BA in (
        (events_BA, classes_BA + FIRST_CLASS),
        (queries_BA, torch.full_like(keys_BA, QUERY)),
    ):
        numeric.scatter_(1, steps_BA[..., None].expand(-1, -1, KEY_BITS), keys)
        kind.scatter_(1, steps_BA[..., None], codes_BA[..., None])
    return Batch(numeric, kind, queries_BA, classes_BA), events_BA


def _distinct(num_sequences: int, limit: int, random: torch.Generator) -> Tensor:
    """NUM_EVENTS different numbers below `limit` for every sequence, in random order."""
    draw = torch.rand(num_sequences, limit, generator=random, device=random.device)
    return draw.topk(NUM_EVENTS, dim=1).indices
