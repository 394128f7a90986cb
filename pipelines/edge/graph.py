"""Pieces of the encoder's ONNX graph that dense and sparse reading share.

Shape suffixes: N steps, M steps padded to whole chunks, W width, H heads, D channels, X any columns.
"""

from typing import NamedTuple

import numpy as np
import onnx_ir as ir
import onnxscript
import torch
from onnx_ir import DataType, Value
from torch import Tensor, nn

from sparse_model.config import ModelConfig
from sparse_model.layers import FeedForward, rotary_frequencies
from sparse_model.model import SparseEncoder

Op = onnxscript.OpBuilder


class Rotation(NamedTuple):
    """Rotary angles of every step, each [M, D/2]."""

    cos: Value
    sin: Value


def inputs(builder: onnxscript.GraphBuilder, config: ModelConfig) -> tuple[Value, Value, Value]:
    """The graph's numeric and known float32 [1, N, F], categorical int64 [1, N, C]."""
    numeric = builder.input("numeric", DataType.FLOAT, (1, "steps", config.num_numeric))
    known = builder.input("known", DataType.FLOAT, (1, "steps", config.num_numeric))
    categorical = builder.input("categorical", DataType.INT64, (1, "steps", len(config.cardinalities)))
    return numeric, known, categorical


def answer(builder: onnxscript.GraphBuilder, model: SparseEncoder, x_NW: Value) -> None:
    """The graph's outputs float32 [1, N, O], of what the last layer gave."""
    op = builder.op
    outputs_NO = linear(op, "head", model.head.weight, norm(op, "norm", model.norm, x_NW))
    outputs_NO = op.Add(outputs_NO, constant(op, "head_bias", model.head.bias))
    shape = (1, "steps", model.config.num_outputs)
    output(builder, op.Unsqueeze(outputs_NO, [0]), "outputs", DataType.FLOAT, shape)


def embed(op: Op, model: SparseEncoder, numeric: Value, known: Value, categorical: Value) -> Value:
    columns = op.Squeeze(op.Concat(op.Mul(numeric, known), known, axis=-1), [0])
    layer = model.embed_numeric
    x_NW = op.Add(linear(op, "embed", layer.weight, columns), constant(op, "embed_bias", layer.bias))
    for column, embedding in enumerate(model.embed_categorical):
        assert isinstance(embedding, nn.Embedding)
        table = constant(op, f"embed_categorical.{column}", embedding.weight)
        codes_N = op.Gather(op.Squeeze(categorical, [0]), column, axis=1)
        x_NW = op.Add(x_NW, op.Gather(table, codes_N))
    return x_NW


def feed_forward(op: Op, ffn: FeedForward, h_LW: Value) -> Value:
    gate, value = op.Split(
        linear(op, "to_hidden", ffn.to_hidden.weight, h_LW), axis=-1, num_outputs=2, _outputs=2
    )
    return linear(op, "ffn_out", ffn.to_out.weight, op.Mul(op.Mul(gate, op.Sigmoid(gate)), value))


def split_heads(op: Op, x_MX: Value, num_heads: int) -> Value:
    """[M, heads * D] as [heads, M, D]."""
    return op.Transpose(op.Reshape(x_MX, [0, num_heads, -1]), perm=[1, 0, 2])


def rotation(op: Op, name: str, position_M: Value, channels: int, share: float) -> Rotation:
    position_M1 = op.Unsqueeze(op.Cast(position_M, to=DataType.FLOAT), [1])
    frequency = rotary_frequencies(channels, share, torch.device("cpu"))
    angle = op.Mul(position_M1, constant(op, name, frequency))
    return Rotation(op.Cos(angle), op.Sin(angle))


def rotate(op: Op, x_HMD: Value, rotation: Rotation) -> Value:
    first, second = op.Split(x_HMD, axis=-1, num_outputs=2, _outputs=2)
    cos, sin = rotation
    return op.Concat(
        op.Sub(op.Mul(first, cos), op.Mul(second, sin)),
        op.Add(op.Mul(first, sin), op.Mul(second, cos)),
        axis=-1,
    )


def norm(op: Op, name: str, norm: nn.RMSNorm, x_MW: Value) -> Value:
    eps = torch.finfo(torch.float32).eps if norm.eps is None else norm.eps
    mean_square = op.ReduceMean(op.Mul(x_MW, x_MW), [-1], keepdims=1)
    return op.Mul(op.Div(x_MW, op.Sqrt(op.Add(mean_square, eps))), constant(op, name, norm.weight))


def linear(op: Op, name: str, weight: Tensor, x: Value) -> Value:
    return op.MatMul(x, constant(op, name, weight.T))


def constant(op: Op, name: str, tensor: Tensor) -> Value:
    return op.initializer(ir.tensor(np.ascontiguousarray(tensor.detach().float().numpy())), name)


def output(builder: onnxscript.GraphBuilder, value: Value, name: str, dtype: DataType, shape: tuple) -> None:
    value.name, value.type, value.shape = name, ir.TensorType(dtype), ir.Shape(shape)
    builder.graph.outputs.append(value)
