"""The encoder as an ONNX graph of standard operators, with its weights inside.

Batch size is one; the number of steps and the number of blocks read are inputs of the run. Each layer
is one Scan over chunks of query blocks: everything after its keys and values (ranking, gathering,
attention, feed-forward) holds one chunk at a time, so memory grows linearly with the steps.

The graph is written operator by operator: torch.export (2.13) rejects a Scan whose body selects a
number of blocks that is known only at run time. The parity gate holds it to the model.

Shape suffixes: N steps, M steps padded to whole chunks, Z chunks, L steps of a chunk, C blocks of a
chunk, R steps of a block, J key blocks, K blocks read, Y = K*R + J keys seen by a query block, W width,
H heads, G key/value heads, S selector heads, D channels of a head.
"""

import hashlib
from pathlib import Path
from typing import NamedTuple

import onnx_ir as ir
import onnxscript
from onnx_ir import DataType, Value

from pipelines.edge.graph import (
    Op,
    Rotation,
    answer,
    embed,
    feed_forward,
    inputs,
    linear,
    norm,
    output,
    rotate,
    rotation,
    split_heads,
)
from pipelines.files import replace_file
from sparse_model.config import ModelConfig
from sparse_model.layers import Layer
from sparse_model.model import SparseEncoder
from validation.record import Record

OPSET = 20
_CHUNK_STEPS = 128  # rows ranked and read at once: against long sequences more of them leave the cache
_INF = float("inf")


class OnnxFile(Record):
    """A written graph."""

    path: str
    sha256: str
    size_bytes: int
    num_nodes: int


def export_onnx(model: SparseEncoder, path: Path) -> OnnxFile:
    """Write `model` as ONNX; equal weights give equal bytes.

    Inputs: numeric and known float32 [1, N, F], categorical int64 [1, N, C], num_selected int64 scalar
    (blocks read by each query block; brought into 1..J by the graph), any N from 1 up. Outputs: outputs
    float32 [1, N, O] and selected int64 [layers, S, J, K], the key blocks read, best first; layers that
    read everything are left out of it. Of a causal model's early query blocks the last ones of the K lie
    ahead and are not read. Raises ValueError where all layers read everything.
    """
    if len(model.config.dense_layers) == model.config.num_layers:
        raise ValueError("dense_layers: every layer reads everything, so there is no budget to export")
    graph = _encoder(model)
    proto = ir.to_proto(ir.Model(graph, ir_version=10, producer_name="dankai"))
    content = proto.SerializeToString(deterministic=True)
    replace_file(path, content)
    return OnnxFile(
        path=str(path),
        sha256=hashlib.sha256(content).hexdigest(),
        size_bytes=len(content),
        num_nodes=sum(1 for _ in graph.all_nodes()),
    )


class _Steps(NamedTuple):
    """What the layers need to know about the steps of a run."""

    nearest_M: Value
    """int64: the step itself, or the last one that exists."""
    position_M: Value
    """int64: the step itself."""
    closed_JR: Value
    """0 where a step exists, -inf elsewhere: added to the logits of its key."""
    weight_JR1: Value
    """Share of each step in the mean of its block."""
    log_count_J: Value
    """Log of the number of steps in a block, -inf for a block of padding."""
    rotation: "Rotation"
    selector_rotation: "Rotation"
    num_selected: Value
    """int64 [1], between 1 and the number of blocks."""


class _Keys(NamedTuple):
    """What a layer reads: whole sequence, made before the chunks."""

    k_GJRD: Value
    v_GJRD: Value
    mean_k_GJD: Value
    mean_v_GJD: Value
    selector_SDM: Value


class _Chunk(NamedTuple):
    """What the Scan hands to its body, chunk after chunk."""

    x_LW: Value
    closed_L1: Value
    own_C1: Value
    """int64, the query blocks' own numbers."""
    position_L1: Value
    cos: Value
    sin: Value
    selector_cos: Value
    selector_sin: Value


def _encoder(model: SparseEncoder) -> ir.Graph:
    config = model.config
    graph = ir.Graph([], [], nodes=[], opset_imports={"": OPSET}, name="sparse_encoder")
    builder = onnxscript.GraphBuilder(graph)
    op = builder.op
    numeric, known, categorical = inputs(builder, config)
    budget = builder.input("num_selected", DataType.INT64, ())
    num_steps = op.Shape(numeric, start=1, end=2)
    num_blocks = op.Div(op.Add(num_steps, config.block_size - 1), config.block_size)
    steps, extra = _steps(op, config, num_steps, op.Max(op.Min(op.Reshape(budget, [1]), num_blocks), 1))
    all_blocks = steps._replace(num_selected=num_blocks)
    x_MW = op.Pad(embed(op, model, numeric, known, categorical), op.Concat([0, 0], extra, [0], axis=0))
    selected = []
    for number, layer in enumerate(model.layers):
        assert isinstance(layer, Layer)
        builder.push_module(f"layers.{number}")
        reads_all = layer.attention.reads_all
        x_MW, selected_JSK = _layer(op, layer, x_MW, all_blocks if reads_all else steps)
        builder.pop_module()
        if not reads_all:
            selected.append(op.Unsqueeze(op.Transpose(selected_JSK, perm=[1, 0, 2]), [0]))
    answer(builder, model, op.Slice(x_MW, [0], num_steps, [0]))
    read = op.Slice(op.Concat(*selected, axis=0), [0], num_blocks, [2])
    output(builder, read, "selected", DataType.INT64, (len(selected), config.selector_heads, "J", "K"))
    return graph


def _steps(op: Op, config: ModelConfig, num_steps: Value, num_selected: Value) -> tuple[_Steps, Value]:
    """The steps of this run, padded to whole chunks, and the number of steps of padding, int64 [1]."""
    chunk = _chunk_blocks(config) * config.block_size
    padded = op.Mul(op.Div(op.Add(num_steps, chunk - 1), chunk), chunk)
    position_M = op.Range(0, op.Squeeze(padded, [0]), 1)
    exists_JR = op.Reshape(op.Less(position_M, num_steps), [-1, config.block_size])
    one_JR = op.Cast(exists_JR, to=DataType.FLOAT)
    count_J1 = op.ReduceSum(one_JR, [1], keepdims=1)
    steps = _Steps(
        op.Min(position_M, op.Sub(num_steps, 1)),
        position_M,
        op.Where(exists_JR, 0.0, -_INF),
        op.Unsqueeze(op.Div(one_JR, op.Max(count_J1, 1.0)), [2]),
        op.Log(op.Squeeze(count_J1, [1])),
        rotation(op, "frequency", position_M, config.head_dim, config.rotary_share),
        rotation(op, "selector_frequency", position_M, config.selector_dim, config.rotary_share),
        num_selected,
    )
    return steps, op.Sub(padded, num_steps)


def _layer(op: Op, layer: Layer, x_MW: Value, steps: _Steps) -> tuple[Value, Value]:
    """The layer's output [M, W] and the key blocks read [J, S, K]."""
    config = layer.attention.config
    keys = _keys(op, layer, norm(op, "attention_norm", layer.attention_norm, x_MW), steps)

    def body(op: Op, *inputs: Value) -> tuple[Value, Value]:
        op.builder.push_module("chunk")  # names in a body must differ from those around it
        chunk = _Chunk(*inputs)
        h_LW = norm(op, "attention_norm", layer.attention_norm, chunk.x_LW)
        selected_SCK = _select(op, layer, h_LW, chunk, keys, steps)
        x_LW = op.Add(chunk.x_LW, _attend(op, layer, h_LW, chunk, selected_SCK, keys, steps))
        y_LW = op.Add(x_LW, feed_forward(op, layer.ffn, norm(op, "ffn_norm", layer.ffn_norm, x_LW)))
        return y_LW, op.Transpose(selected_SCK, perm=[1, 0, 2])

    scanned = _chunks(op, config, x_MW, steps)
    inputs = [ir.Value(name=f"chunk_{name}") for name in _Chunk._fields]
    graph = op.builder.subgraph(body, inputs, [ir.Value(name="chunk_y"), ir.Value(name="chunk_selected")])
    y_ZLW, selected_ZCSK = op.Scan(*scanned, body=graph, num_scan_inputs=len(scanned), _outputs=2)
    blocks_first = op.Concat([-1, config.selector_heads], steps.num_selected, axis=0)
    return op.Reshape(y_ZLW, [-1, config.width]), op.Reshape(selected_ZCSK, blocks_first)


def _chunks(op: Op, config: ModelConfig, x_MW: Value, steps: _Steps) -> _Chunk:
    blocks = _chunk_blocks(config)
    rows = blocks * config.block_size
    block_J = op.Range(0, op.Squeeze(op.Shape(steps.log_count_J), [0]), 1)
    return _Chunk(
        op.Reshape(x_MW, [-1, rows, config.width]),
        op.Reshape(steps.closed_JR, [-1, rows, 1]),
        op.Reshape(block_J, [-1, blocks, 1]),
        op.Reshape(steps.position_M, [-1, rows, 1]),
        *(op.Reshape(table, [-1, rows, config.head_dim // 2]) for table in steps.rotation),
        *(op.Reshape(table, [-1, rows, config.selector_dim // 2]) for table in steps.selector_rotation),
    )


def _keys(op: Op, layer: Layer, h_MW: Value, steps: _Steps) -> _Keys:
    config, attention = layer.attention.config, layer.attention
    k_MX, v_MX = op.Split(
        linear(op, "to_kv", attention.to_kv.weight, h_MW), axis=-1, num_outputs=2, _outputs=2
    )
    by_block = [config.num_kv_heads, -1, config.block_size, config.head_dim]
    k_GJRD = op.Reshape(rotate(op, split_heads(op, k_MX, config.num_kv_heads), steps.rotation), by_block)
    v_GJRD = op.Reshape(split_heads(op, v_MX, config.num_kv_heads), by_block)
    mean_k, mean_v = (op.ReduceSum(op.Mul(t, steps.weight_JR1), [2], keepdims=0) for t in (k_GJRD, v_GJRD))
    sk_MX = linear(op, "to_selector_k", attention.selector.to_qk.weight.chunk(2)[1], h_MW)
    sk_SMD = rotate(op, split_heads(op, sk_MX, config.selector_heads), steps.selector_rotation)
    # Padding repeats the last key: block maxima stay what they are, without a mask as large as the logits.
    sk_SMD = op.Gather(sk_SMD, steps.nearest_M, axis=1)
    return _Keys(k_GJRD, v_GJRD, mean_k, mean_v, op.Transpose(sk_SMD, perm=[0, 2, 1]))


def _select(op: Op, layer: Layer, h_LW: Value, chunk: _Chunk, keys: _Keys, steps: _Steps) -> Value:
    """Best key blocks of the chunk's query blocks, int64 [S, C, K] (sparse_model.attention.block_scores)."""
    config = layer.attention.config
    to_sq = layer.attention.selector.to_qk.weight.chunk(2)[0] * config.selector_dim**-0.5
    sq_SLX = split_heads(op, linear(op, "to_selector_q", to_sq, h_LW), config.selector_heads)
    logits_SLM = op.MatMul(
        rotate(op, sq_SLX, Rotation(chunk.selector_cos, chunk.selector_sin)), keys.selector_SDM
    )
    if config.causal:
        logits_SLM = op.Where(op.Less(chunk.position_L1, steps.position_M), -_INF, logits_SLM)
    by_block = [config.selector_heads, _chunk_blocks(config) * config.block_size, -1, config.block_size]
    best_SLJ = op.ReduceMax(op.Reshape(logits_SLM, by_block), [3], keepdims=0)
    best_SLJ = op.Add(best_SLJ, op.ReduceMax(steps.closed_JR, [1], keepdims=0))
    relative_SLJ = op.Sub(best_SLJ, op.ReduceLogSumExp(best_SLJ, [2], keepdims=1))
    rows = op.Concat([config.selector_heads, -1, config.block_size], op.Shape(steps.log_count_J), axis=0)
    score_SCJ = op.ReduceMax(op.Reshape(op.Add(relative_SLJ, chunk.closed_L1), rows), [2], keepdims=0)
    own_SC1 = op.Expand(chunk.own_C1, [config.selector_heads, 1, 1])
    score_SCJ = op.ScatterElements(score_SCJ, own_SC1, op.Expand(_INF, op.Shape(own_SC1)), axis=2)
    return op.TopK(score_SCJ, steps.num_selected, _outputs=2)[1]


def _attend(
    op: Op, layer: Layer, h_LW: Value, chunk: _Chunk, selected_SCK: Value, keys: _Keys, steps: _Steps
) -> Value:
    """Attention of the chunk's rows over the blocks read and the summaries of the others, [L, W]."""
    config, heads = layer.attention.config, layer.attention.config.num_heads
    to_q = layer.attention.to_q.weight * config.head_dim**-0.5
    q_HLD = rotate(op, split_heads(op, linear(op, "to_q", to_q, h_LW), heads), Rotation(chunk.cos, chunk.sin))
    q_HCRD = op.Reshape(q_HLD, [heads, -1, config.block_size, config.head_dim])
    serving_H = op.Constant(value_ints=[head * config.selector_heads // heads for head in range(heads)])
    index_HCK = op.Gather(selected_SCK, serving_H, axis=0)
    k_HCYD = _gather(op, config, keys.k_GJRD, keys.mean_k_GJD, index_HCK)
    v_HCYD = _gather(op, config, keys.v_GJRD, keys.mean_v_GJD, index_HCK)
    bias_HCRY = op.Gather(_bias(op, config, chunk, selected_SCK, steps), serving_H, axis=0)
    logits_HCRY = op.MatMul(q_HCRD, op.Transpose(k_HCYD, perm=[0, 1, 3, 2]))
    weights_HCRY = op.Softmax(op.Add(logits_HCRY, bias_HCRY), axis=-1)
    out_HLD = op.Reshape(op.MatMul(weights_HCRY, v_HCYD), [heads, -1, config.head_dim])
    out_LW = op.Reshape(op.Transpose(out_HLD, perm=[1, 0, 2]), [-1, config.width])
    return linear(op, "to_out", layer.attention.to_out.weight, out_LW)


def _gather(op: Op, config: ModelConfig, t_GJRD: Value, mean_GJD: Value, index_HCK: Value) -> Value:
    """Steps of the blocks read, then the means of all blocks, by head and query block, [H, C, Y, D]."""
    heads, blocks = config.num_heads, _chunk_blocks(config)
    group = [head * config.num_kv_heads // heads for head in range(heads)]
    num_blocks = op.Shape(mean_GJD, start=1, end=2)
    first_H = op.Mul(op.Constant(value_ints=group), num_blocks)
    rows_HCK = op.Add(index_HCK, op.Reshape(first_H, [heads, 1, 1]))
    table = op.Reshape(t_GJRD, [-1, config.block_size, config.head_dim])
    read_HCXD = op.Reshape(op.Gather(table, rows_HCK, axis=0), [heads, blocks, -1, config.head_dim])
    means_HJD = op.Gather(mean_GJD, op.Constant(value_ints=group), axis=0)
    shape = op.Concat([heads, blocks], num_blocks, [config.head_dim], axis=0)
    return op.Concat(read_HCXD, op.Expand(op.Unsqueeze(means_HJD, [1]), shape), axis=2)


def _bias(op: Op, config: ModelConfig, chunk: _Chunk, selected_SCK: Value, steps: _Steps) -> Value:
    """Added to the logits [S, C, R or 1, Y]: -inf for what does not exist, or lies ahead of a causal model's
    rows, and for the summaries of blocks that are read."""
    shape = [config.selector_heads, _chunk_blocks(config)]
    read_SC1X = op.Reshape(op.Gather(steps.closed_JR, selected_SCK, axis=0), [*shape, 1, -1])
    counts_CJ = op.Expand(steps.log_count_J, op.Concat([shape[1]], op.Shape(steps.log_count_J), axis=0))
    if config.causal:
        block_J = op.Range(0, op.Squeeze(op.Shape(steps.log_count_J), [0]), 1)
        counts_CJ = op.Where(op.Less(block_J, chunk.own_C1), counts_CJ, -_INF)
    wide = op.Concat(shape, op.Shape(steps.log_count_J), axis=0)
    never_SCK = op.Expand(-_INF, op.Shape(selected_SCK))
    counts_SCJ = op.ScatterElements(op.Expand(counts_CJ, wide), selected_SCK, never_SCK, axis=2)
    counts_SC1J = op.Unsqueeze(counts_SCJ, [2])
    if not config.causal:
        return op.Concat(read_SC1X, counts_SC1J, axis=3)
    step_JR = op.Reshape(steps.position_M, [-1, config.block_size])
    key_SC1X = op.Reshape(op.Gather(step_JR, selected_SCK, axis=0), [*shape, 1, -1])
    row_1CR1 = op.Reshape(chunk.position_L1, [1, shape[1], config.block_size, 1])
    read_SCRX = op.Where(op.Less(row_1CR1, key_SC1X), -_INF, read_SC1X)
    rows = op.Concat([*shape, config.block_size], op.Shape(steps.log_count_J), axis=0)
    return op.Concat(read_SCRX, op.Expand(counts_SC1J, rows), axis=3)


def _chunk_blocks(config: ModelConfig) -> int:
    return max(1, _CHUNK_STEPS // config.block_size)
