"""The encoder: columns in, one prediction per step out; dense or sparse with the same weights.

Shape suffixes: B batch, N steps, F numeric columns, C categorical columns, W width, O outputs.
"""

from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from sparse_model.config import Budget, ModelConfig
from sparse_model.layers import Layer, Norm
from sparse_model.losses import Probes, SelectorTerms
from sparse_model.recomputation import recomputed

if TYPE_CHECKING:
    from sparse_model.attention.sharded import Shards


class Training(NamedTuple):
    """What a training step asks for beyond the prediction."""

    probes: Probes
    """Where the selector is compared with the attention."""
    ranking_noise: float = 0.0
    """Standard deviation of the noise on block scores: early exploration."""


class Prediction(NamedTuple):
    """Outputs [B, N, O] and, in training, the selector terms of every layer."""

    outputs_BNO: Tensor
    selector: list[SelectorTerms]


class SparseEncoder(nn.Module):
    """Encoder for long logs and sensor series.

    `budget=None` is the dense model (scaled_dot_product_attention); a `Budget` reads blocks.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.embed_numeric = nn.Linear(2 * config.num_numeric, config.width)
        self.embed_categorical = nn.ModuleList(
            nn.Embedding(size, config.width) for size in config.cardinalities
        )
        self.layers = nn.ModuleList(
            Layer(config, number in config.dense_layers) for number in range(config.num_layers)
        )
        self.norm = Norm(config.width)
        self.head = nn.Linear(config.width, config.num_outputs)
        for embedding in self.embed_categorical:
            nn.init.normal_(embedding.weight, std=0.02)  # pyright: ignore[reportArgumentType]
        nn.init.zeros_(self.head.weight)

    def embed(self, numeric_BNF: Tensor, known_BNF: Tensor, categorical_BNC: Tensor) -> Tensor:
        """Sum of the column embeddings, [B, N, W]; an unknown value and a zero are told apart by `known`."""
        x = self.embed_numeric(torch.cat([numeric_BNF * known_BNF, known_BNF], dim=-1))
        for column, embedding in enumerate(self.embed_categorical):
            x = x + embedding(categorical_BNC[..., column])
        return x

    def spread(self, shards: "Shards | None") -> None:
        """From now on every process of a group gives its own shard of the steps, and gets its outputs.

        For inference with a budget: sequences longer than one device holds. None ends it. Raises ValueError
        for a causal model, whose shards nobody has needed yet.
        """
        if shards is not None and self.config.causal:
            raise ValueError("causal: sequences spread over processes are read both ways only")
        for layer in self.layers:
            layer.attention.shards = shards  # pyright: ignore

    def predict(
        self,
        numeric_BNF: Tensor,
        known_BNF: Tensor,
        categorical_BNC: Tensor,
        budget: Budget | None,
        lengths_B: Tensor | None = None,
        training: Training | None = None,
        recompute: bool = False,
    ) -> Prediction:
        """Outputs and, when `training` is given, every layer's selector terms.

        `recompute` keeps little more than each layer's input for the gradient, and makes the rest again
        when it is asked for (sparse_model.recomputation): far less memory, more time, the same gradients.
        """
        x = self.embed(numeric_BNF, known_BNF, categorical_BNC)
        if training is None and not torch.is_grad_enabled():
            for layer in self.layers:
                layer.add_to_(x, budget, lengths_B)  # pyright: ignore[reportCallIssue]
            return Prediction(self.head(self.norm(x)), [])
        noise, probes = (training.ranking_noise, training.probes) if training else (0.0, None)
        selector: list[SelectorTerms] = []
        for layer in self.layers:
            run = partial(recomputed, layer) if recompute and torch.is_grad_enabled() else layer
            x, terms = run(x, budget, lengths_B, noise, probes)
            if terms is not None:
                selector.append(terms)
        return Prediction(self.head(self.norm(x)), selector)

    def forward(
        self,
        numeric_BNF: Tensor,
        known_BNF: Tensor,
        categorical_BNC: Tensor,
        budget: Budget | None = None,
        lengths_B: Tensor | None = None,
    ) -> Tensor:
        """Predictions [B, N, O]: logits for events, values otherwise.

        Args:
            numeric_BNF: standardised numeric columns, zero where unknown.
            known_BNF: 1 where the numeric value is known, else 0.
            categorical_BNC: int64 codes; 0 is unknown.
            budget: share of key blocks to read, or None for the dense model.
            lengths_B: steps that exist in each sequence, or None when all do.
        """
        return self.predict(numeric_BNF, known_BNF, categorical_BNC, budget, lengths_B).outputs_BNO
