"""The encoder reading everything, as an ONNX graph with ONNX Runtime's own flash attention.

com.microsoft.MultiHeadAttention is what ONNX Runtime has of its own for a CPU; the Attention operator of
opset 23 builds the N-by-N matrix there. Everything else is as in the exported sparse graph.

Shape suffixes: N steps, W width, H heads, D channels of a head.
"""

from pathlib import Path

import onnx_ir as ir
import onnxscript
from onnx_ir import Value

from pipelines.edge.export import OPSET
from pipelines.edge.graph import (
    Op,
    Rotation,
    answer,
    embed,
    feed_forward,
    inputs,
    linear,
    norm,
    rotate,
    rotation,
)
from pipelines.files import replace_file
from sparse_model.layers import Attention, Layer
from sparse_model.model import SparseEncoder


def export_dense(model: SparseEncoder, path: Path) -> None:
    """Write the dense encoder; inputs and output as those of pipelines.edge.export, without the budget."""
    config = model.config
    opsets = {"": OPSET, "com.microsoft": 1}
    graph = ir.Graph([], [], nodes=[], opset_imports=opsets, name="dense_encoder")
    builder = onnxscript.GraphBuilder(graph)
    op = builder.op
    numeric, known, categorical = inputs(builder, config)
    position_N = op.Range(0, op.Squeeze(op.Shape(numeric, start=1, end=2), [0]), 1)
    cos, sin = rotation(op, "frequency", position_N, config.head_dim, config.rotary_share)
    angles = Rotation(op.Unsqueeze(cos, [1]), op.Unsqueeze(sin, [1]))
    x_NW = embed(op, model, numeric, known, categorical)
    for number, layer in enumerate(model.layers):
        assert isinstance(layer, Layer)
        builder.push_module(f"layers.{number}")
        h_NW = norm(op, "attention_norm", layer.attention_norm, x_NW)
        x_NW = op.Add(x_NW, _attend(op, layer.attention, h_NW, angles))
        x_NW = op.Add(x_NW, feed_forward(op, layer.ffn, norm(op, "ffn_norm", layer.ffn_norm, x_NW)))
        builder.pop_module()
    answer(builder, model, x_NW)
    replace_file(path, ir.to_proto(ir.Model(graph, ir_version=10)).SerializeToString(deterministic=True))


def _attend(op: Op, attention: Attention, h_NW: Value, angles: Rotation) -> Value:
    config = attention.config
    if config.num_kv_heads != config.num_heads:
        raise ValueError("num_kv_heads: MultiHeadAttention takes as many as num_heads")
    k_NW, v_NW = op.Split(
        linear(op, "to_kv", attention.to_kv.weight, h_NW), axis=-1, num_outputs=2, _outputs=2
    )
    q_NW = linear(op, "to_q", attention.to_q.weight, h_NW)
    turned = [_turned(op, t, angles, config.num_heads, config.width) for t in (q_NW, k_NW)]
    out_1NW = op.MultiHeadAttention(
        *turned, op.Unsqueeze(v_NW, [0]), num_heads=config.num_heads, _domain="com.microsoft"
    )
    return linear(op, "to_out", attention.to_out.weight, op.Squeeze(out_1NW, [0]))


def _turned(op: Op, t_NW: Value, angles: Rotation, num_heads: int, width: int) -> Value:
    turned_NHD = rotate(op, op.Reshape(t_NW, [0, num_heads, -1]), angles)
    return op.Reshape(turned_NHD, [1, -1, width])
