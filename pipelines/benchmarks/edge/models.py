"""The encoder that is timed: random weights, whose values decide no time."""

from pathlib import Path

import torch
from torch import Tensor, nn

from pipelines.benchmarks.edge.dense_graph import export_dense
from pipelines.checkpoint import save_weights
from pipelines.edge.export import export_onnx
from sparse_model.config import ModelConfig
from sparse_model.model import SparseEncoder

CONFIG = ModelConfig(
    num_numeric=8,
    cardinalities=(16, 4),
    num_outputs=1,
    width=256,
    num_layers=4,
    num_heads=4,
    num_kv_heads=4,
    ffn_width=768,
    block_size=64,
)


def write(folder: Path, config: ModelConfig = CONFIG) -> None:
    """Weights, shape, the sparse graph and the dense one."""
    torch.manual_seed(0)
    model = SparseEncoder(config).eval()
    nn.init.normal_(model.head.weight, std=config.width**-0.5)
    save_weights(model, folder)
    export_onnx(model, folder / "model.onnx")
    export_dense(model, folder / "dense.onnx")


def load(folder: Path, config: ModelConfig = CONFIG) -> SparseEncoder:
    from safetensors.torch import load_file

    model = SparseEncoder(config).eval()
    model.load_state_dict(load_file(folder / "model.safetensors"))
    return model


def rough_dense(model: SparseEncoder) -> nn.Module:
    """The dense model as plain modules, one after another: what compilers and converters can follow."""

    class Dense(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, numeric_BNF: Tensor, known_BNF: Tensor, categorical_BNC: Tensor) -> Tensor:
            x = self.model.embed(numeric_BNF, known_BNF, categorical_BNC)
            for layer in self.model.layers:
                x, _ = layer(x, None)
            return self.model.head(self.model.norm(x))

    return Dense().eval()
