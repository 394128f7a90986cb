"""Multi-query associative recall (Arora et al. 2023): key-value pairs, then keys whose values are asked.

After Zoology's generator: a vocabulary larger than the sequence, keys from its lower half, values from its
upper half, N/32 pairs, gaps between a pair's place and its query by a power law, token 0 everywhere else.

Shape suffixes: B batch, N steps, A asked steps (one per pair), V values.
"""

import torch
from torch import Tensor
from torch.nn.functional import normalize

from pipelines.benchmarks.quality.fitting import Batch
from sparse_model.config import ModelConfig
from sparse_model.model import SparseEncoder

STEPS_PER_PAIR = 32
_POWER = 0.01  # of the law of the gaps; 1 would spread the queries evenly


def vocabulary_for(lengths: tuple[int, ...]) -> int:
    """Tokens, keys and values together: twice as many as the longest sequence has steps."""
    return 2 * max(lengths)


def config(vocabulary: int, **changes: object) -> ModelConfig:
    """Two layers, width 128, 4 heads, blocks of 64 steps; outputs are compared with embeddings of values."""
    values: dict[str, object] = {
        "num_numeric": 1, "cardinalities": (vocabulary,), "num_outputs": 128, "width": 128, "num_layers": 2,
        "num_heads": 4, "num_kv_heads": 4, "ffn_width": 256, "block_size": 64, "selector_heads": 1,
        "rotary_share": 0.25,
    }  # fmt: skip
    return ModelConfig(**{**values, **changes})  # pyright: ignore[reportArgumentType]


def batch(num_sequences: int, num_steps: int, random: torch.Generator, vocabulary: int) -> Batch:
    """Sequences with one question per pair; the label is the value's place among the values."""
    device, half, pairs = random.device, vocabulary // 2, num_steps // STEPS_PER_PAIR
    keys_BA = _distinct(num_sequences, half - 1, pairs, random) + 1
    labels_BA = _distinct(num_sequences, half, pairs, random)
    tokens_BN = torch.zeros(num_sequences, num_steps, dtype=torch.int64, device=device)
    tokens_BN[:, : 2 * pairs : 2], tokens_BN[:, 1 : 2 * pairs : 2] = keys_BA, labels_BA + half
    asked_BA = 2 * pairs + 2 * _gaps(num_sequences, (num_steps - 2 * pairs) // 2, pairs, random)
    tokens_BN.scatter_(1, asked_BA, keys_BA)
    numeric = torch.zeros(num_sequences, num_steps, 1, device=device)
    return Batch(numeric, tokens_BN.unsqueeze(-1), asked_BA, labels_BA)


def _distinct(num_sequences: int, limit: int, count: int, random: torch.Generator) -> Tensor:
    draw = torch.rand(num_sequences, limit, generator=random, device=random.device)
    return draw.topk(count, dim=1).indices


def _gaps(num_sequences: int, space: int, count: int, random: torch.Generator) -> Tensor:
    """`count` different gaps below `space`, short ones likelier."""
    weight = torch.arange(1, space + 1, device=random.device, dtype=torch.float32) ** (_POWER - 1)
    return torch.multinomial(weight.expand(num_sequences, -1), count, generator=random)


def new_model(shape: ModelConfig) -> SparseEncoder:
    """Random weights, but token embeddings as large as what layers add: they are all the input there is."""
    model = SparseEncoder(shape)
    for embedding in model.embed_categorical:
        assert isinstance(embedding, torch.nn.Embedding)
        torch.nn.init.normal_(embedding.weight)
    return model


def readout(model: SparseEncoder, outputs_BAO: Tensor) -> Tensor:
    """Logits over the values, [B, A, V]: outputs against the directions of the value tokens' embeddings."""
    embedding = model.embed_categorical[0].weight
    assert isinstance(embedding, Tensor)
    directions = normalize(embedding[len(embedding) // 2 :], dim=-1)
    return outputs_BAO @ directions.to(outputs_BAO.dtype).T
