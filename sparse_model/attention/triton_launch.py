"""Launches of the GPU kernels: which tile, which memory layout, which arguments.

Shape suffixes: B batch, H heads, G key/value heads, S selector heads, N steps, D channels, Q query
blocks, J key blocks, K list slots, W words of 32 bits.
"""

# Triton compiles the kernels and knows their types; it is not installed everywhere.
# pyright: reportMissingImports=false, reportAttributeAccessIssue=false, reportIndexIssue=false
# pyright: reportCallIssue=false, reportArgumentType=false, reportGeneralTypeIssues=false
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from sparse_model.attention import triton_backward, triton_forward, triton_selection
from sparse_model.attention.selection import num_blocks_of
from sparse_model.attention.triton_problem import Lists, Problem, Rows, Transposed, key_of, launch, rows_of

_LOG2_E = 1.4426950408889634
_SCRATCH_ELEMENTS = 1 << 26  # float16 block maxima held at once while scoring: 128 MiB at most
_RANKED_AT_ONCE = 256  # query blocks; more would gain 1% of the forward at most, and hold more maxima


class Tile(NamedTuple):
    """Query rows and keys of a kernel's tile, its warps, and how many loads ahead it runs."""

    rows: int
    keys: int
    warps: int
    stages: int


class ScoreTile(NamedTuple):
    """What the ranking multiplies at once, in blocks, its warps, loads ahead and programs; and its sweeps."""

    row_blocks: int = 4
    key_blocks: int = 2
    warps: int = 8
    stages: int = 3
    programs: int = 1056
    sweep: int = 64
    sweep_warps: int = 8


def forward_tile(block_size: int) -> Tile:
    """Tile of the portable forward kernel, from the sweep in pipelines/benchmarks/tiles.py."""
    return Tile(rows=min(block_size, 64), keys=min(block_size, 64), warps=4, stages=3)


def backward_tile(block_size: int, channels: int, float32: bool = False) -> Tile:
    """Tile of the portable backward kernels, from the same sweep; in wide float32 what fits in memory."""
    if float32 and channels > 64:
        return Tile(rows=min(block_size, 32), keys=min(block_size, 32), warps=4, stages=1)
    if block_size == 128 and channels == 128:
        return Tile(rows=64, keys=128, warps=8, stages=2)
    return Tile(
        rows=min(block_size, 64 if channels <= 128 else 32), keys=min(block_size, 64), warps=4, stages=2
    )


def lists_of(p: Problem, indices_BSQK: Tensor, counts_BSQ: Tensor) -> Lists:
    """Add the bits and the number of unmasked blocks to a selection."""
    indices, counts = indices_BSQK.contiguous(), counts_BSQ.contiguous()
    bits = indices.new_empty((p.batch, p.rankings, p.num_blocks, p.words), dtype=torch.int32)
    full = torch.empty_like(counts, dtype=torch.int32)
    launch(
        triton_selection.read_bits, (p.num_blocks, p.batch * p.rankings), p.key,
        indices, counts, bits, full, p.lengths_B, p.rankings, p.num_steps, p.num_blocks, p.slots, p.words,
        **p.flags("BLOCK", "SLOTS_POW2", "WORDS_POW2", "CAUSAL", "HAS_LIMIT"), num_warps=1,
    )  # fmt: skip
    return Lists(indices, counts, full, bits)


def summaries_of(p: Problem, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Mean key and mean value of every block, [B, G, J, D]; empty without summaries."""
    shape = (p.batch, p.groups, p.num_blocks if p.summaries else 0, p.channels)
    mean_k, mean_v = k.new_empty(shape), v.new_empty(shape)
    if p.summaries:
        k, v = (t if t.stride(3) == 1 else t.contiguous() for t in (k, v))
        launch(
            triton_forward.summaries, (p.num_blocks, p.batch * p.groups), p.key,
            k, v, mean_k, mean_v, p.lengths_B, *k.stride()[:3], *v.stride()[:3], p.groups, p.num_steps,
            p.num_blocks,
            **p.flags("BLOCK", "D", "D_POW2", "HAS_LIMIT"), num_warps=4,
        )  # fmt: skip
    return mean_k, mean_v


def launch_forward(
    p: Problem,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    lists: Lists,
    means: tuple[Tensor, Tensor],
    tile: Tile | None = None,
) -> tuple[Tensor, Tensor]:
    """Output and base-2 log-sum-exp of the rows, by the kernel that suits the GPU and the sizes."""
    out, lse = torch.empty_like(q), q.new_empty(q.shape[:3], dtype=torch.float32)
    if tile is None and fits_hopper(p, q):
        _launch_hopper(p, q, k, v, lists, means, out, lse)
        return out, lse
    tile = tile or forward_tile(p.block_size)
    q_rows, k_rows, v_rows = rows_of(q), rows_of(k), rows_of(v)
    mean_k, mean_v = (rows_of(m if p.summaries else t) for m, t in zip(means, (k, v), strict=True))
    launch(
        triton_forward.forward, (triton.cdiv(p.num_steps, tile.rows), p.batch * p.heads), p.key,
        q_rows.tile(tile.rows), k_rows.tile(tile.keys), v_rows.tile(tile.keys),
        mean_k.tile(tile.keys), mean_v.tile(tile.keys), out, lse,
        lists.indices_BSQK, lists.counts_BSQ, lists.full_BSQ, lists.bits_BSQW, p.lengths_B, p.scale * _LOG2_E,
        *q_rows.steps_apart, *k_rows.steps_apart, *v_rows.steps_apart, *out.stride()[:3],
        *p.sizes, p.slots, p.words, M=tile.rows, N=tile.keys, N_SUMMARY=tile.keys,
        **p.flags("BLOCK", "D", "D_POW2", "CAUSAL", "SUMMARIES", "HAS_LIMIT", "PRECISION"),
        num_warps=tile.warps, num_stages=tile.stages,
    )  # fmt: skip
    return out, lse


def fits_hopper(p: Problem, q: Tensor) -> bool:
    """Whether the kernel written for Hopper GPUs can run this."""
    if not q.is_cuda or torch.cuda.get_device_capability(q.device)[0] != 9:
        return False
    return p.block_size == 128 and p.channels in (64, 128) and q.element_size() == 2


def _launch_hopper(
    p: Problem, q: Tensor, k: Tensor, v: Tensor, lists: Lists, means: tuple[Tensor, Tensor], out: Tensor,
    lse: Tensor,
    stages: int = 2,
) -> None:  # fmt: skip
    from sparse_model.attention import triton_hopper  # needs a Triton that has Gluon

    q_rows, k_rows, v_rows = rows_of(q), rows_of(k), rows_of(v)
    mean_k, mean_v = (rows_of(m if p.summaries else t) for m, t in zip(means, (k, v), strict=True))
    items = p.batch * p.heads * triton.cdiv(p.num_steps, 128)
    programs = min(items, torch.cuda.get_device_properties(q.device).multi_processor_count)
    launch(
        triton_hopper.forward, (programs,), p.key,
        q_rows.tile(64), *(t.tile(128) for t in (k_rows, v_rows, mean_k, mean_v)),
        out, lse, lists.indices_BSQK, lists.counts_BSQ, lists.full_BSQ, lists.bits_BSQW, p.lengths_B,
        p.scale * _LOG2_E, *q_rows.steps_apart, *k_rows.steps_apart, *v_rows.steps_apart, *out.stride()[:3],
        *p.sizes, p.slots, p.words, items, STAGES=stages, **p.flags("D", "CAUSAL", "SUMMARIES", "HAS_LIMIT"),
        num_warps=4,
    )  # fmt: skip


def row_products(p: Problem, out: Tensor, grad: Tensor) -> Tensor:
    """sum(out * grad) of every row, float32 [B, H, N]."""
    product = out.new_empty(out.shape[:3], dtype=torch.float32)
    launch(
        triton_backward.row_products, (triton.cdiv(p.num_steps, 128), p.batch * p.heads), p.key,
        out, grad, product, *out.stride()[:3], *grad.stride()[:3], p.heads, p.num_steps,
        M=128, **p.flags("D", "D_POW2"), num_warps=8,
    )  # fmt: skip
    return product


def launch_backward(
    p: Problem,
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    lse: Tensor,
    product: Tensor,
    lists: Lists,
    means: tuple[Tensor, Tensor],
    tile: Tile | None = None,
    of_keys: Problem | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """dq, dk, dv, by the kernels that suit the GPU and the sizes; always summed in the same order. Last, the
    gradients of means in parts to be added up [2, parts, B, G, J, D], that of keys without the scale.

    `of_keys` is the problem of the pass over the keys where it is another one: of more steps than there are
    queries (the bits then have a row for each of its blocks), or without summaries, whose gradients are then
    not spread over the steps they average.
    """
    dq, dk, dv = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
    of_keys = of_keys or p
    transposed = transposed_lists(of_keys, lists.bits_BSQW)
    mean_tiles = p.batch * p.groups * triton.cdiv(p.num_blocks, 128)
    chunks = min(p.query_blocks, triton.cdiv(512, mean_tiles)) if p.summaries else 0
    mean_grads = q.new_empty(2, max(chunks, 1), *means[0].shape, dtype=torch.float32)
    terms = lse, product
    operands = rows_of(q), rows_of(grad), rows_of(k), rows_of(v)
    if tile is None and fits_hopper(p, q):
        launch_hopper_backward(
            p, of_keys, operands, terms, lists, transposed, means, mean_grads, chunks, (dq, dk, dv)
        )
    else:
        tile = tile or backward_tile(p.block_size, p.channels, p.float32)
        if p.summaries:
            _launch_summary_keys(p, operands, terms, lists, means, mean_grads, chunks, tile)
        _launch_keys(of_keys, operands, terms, transposed, mean_grads, chunks, (dk, dv), tile)
        _launch_queries(p, operands, terms, lists, means, dq)
    return dq, dk, dv, mean_grads


def _launch_summary_keys(
    p: Problem,
    operands: tuple[Rows, Rows, Rows, Rows],
    terms: tuple[Tensor, Tensor],
    lists: Lists,
    means: tuple[Tensor, Tensor],
    mean_grads: Tensor,
    chunks: int,
    tile: Tile,
) -> None:
    q, grad = operands[:2]
    mean_k, mean_v = rows_of(means[0]), rows_of(means[1])
    launch(
        triton_backward.summary_keys,
        (triton.cdiv(p.num_blocks, tile.keys), chunks, p.batch * p.groups), p.key,
        q.tile(tile.rows), grad.tile(tile.rows), mean_k.tile(tile.keys), mean_v.tile(tile.keys),
        mean_grads[0], mean_grads[1], *terms, lists.bits_BSQW, p.lengths_B, p.scale * _LOG2_E,
        *q.steps_apart, *grad.steps_apart, *p.sizes, p.words, triton.cdiv(p.query_blocks, chunks),
        means[0].numel(), **_key_options(p, tile),
    )  # fmt: skip


def _launch_keys(
    p: Problem,
    operands: tuple[Rows, Rows, Rows, Rows],
    terms: tuple[Tensor, Tensor],
    transposed: Transposed,
    mean_grads: Tensor,
    chunks: int,
    outputs: tuple[Tensor, Tensor],
    tile: Tile,
) -> None:
    (q, grad, k, v), (dk, dv) = operands, outputs
    launch(
        triton_backward.keys, (triton.cdiv(p.num_steps, tile.keys), p.batch * p.groups), p.key,
        q.tile(tile.rows), grad.tile(tile.rows), k.tile(tile.keys), v.tile(tile.keys), dk, dv,
        mean_grads[0], mean_grads[1], *terms, transposed.readers, transposed.offsets, p.lengths_B,
        p.scale * _LOG2_E, p.scale,
        *q.steps_apart, *grad.steps_apart, *k.steps_apart, *v.steps_apart, *dk.stride()[:3], *dv.stride()[:3],
        *p.sizes, chunks, mean_grads[0, 0].numel(), SUMMARIES=p.summaries, **_key_options(p, tile),
    )  # fmt: skip


def _key_options(p: Problem, tile: Tile) -> dict[str, Any]:
    options = p.flags("BLOCK", "D", "D_POW2", "CAUSAL", "HAS_LIMIT", "PRECISION")
    return options | {"M": tile.rows, "N": tile.keys, "num_warps": tile.warps, "num_stages": tile.stages}


def launch_hopper_backward(
    p: Problem,
    of_keys: Problem,
    operands: tuple[Rows, Rows, Rows, Rows],
    terms: tuple[Tensor, Tensor],
    lists: Lists,
    transposed: Transposed,
    means: tuple[Tensor, Tensor],
    mean_grads: Tensor,
    chunks: int,
    outputs: tuple[Tensor, Tensor, Tensor],
) -> None:
    """Three passes over one kernel: 0 for dq, 2 for the summaries, then 1 for dk and dv."""
    from sparse_model.attention import triton_hopper_backward  # needs a Triton that has Gluon

    dq, dk, dv = outputs
    mean_rows = tuple(rows_of(m) if p.summaries else t for m, t in zip(means, operands[2:], strict=True))
    tiles = [rows.tile(64) for rows in (*operands, *mean_rows)]
    processors = torch.cuda.get_device_properties(dq.device).multi_processor_count

    def run(
        p: Problem, which: int, near: int, far: int, outs: tuple[Tensor, Tensor], items: int, programs: int
    ) -> None:
        rows, (out0, out1) = (*operands, *mean_rows), outs
        launch(
            triton_hopper_backward.backward, (min(items, programs),), p.key,
            *tiles[near : near + 2], *tiles[far : far + 2], *tiles[4:], out0, out1, mean_grads[0],
            mean_grads[1],
            *terms, lists.indices_BSQK, lists.counts_BSQ, lists.full_BSQ, lists.bits_BSQW, *transposed,
            p.lengths_B, p.scale * _LOG2_E, p.scale, *rows[near].steps_apart, *rows[near + 1].steps_apart,
            *rows[far].steps_apart, *rows[far + 1].steps_apart, *out0.stride()[:3], *out1.stride()[:3],
            *p.sizes, p.slots, p.words, items, chunks, triton.cdiv(p.query_blocks, max(chunks, 1)),
            means[0].numel(),
            STAGES=4 if p.channels == 64 else 3, ROOM=which == 0 or p.channels == 64, PASS=which,
            **p.flags("D", "CAUSAL", "SUMMARIES", "HAS_LIMIT"), num_warps=4,
        )  # fmt: skip

    groups = p.batch * p.groups
    run(p, 0, 0, 2, (dq, dq), p.batch * p.heads * p.query_blocks, processors)
    if p.summaries:
        run(p, 2, 4, 0, (dk, dv), groups * triton.cdiv(p.num_blocks, 128) * chunks, processors)
    # a program per block, the most read blocks first: lists differ in length, and the hardware balances them
    run(of_keys, 1, 2, 0, (dk, dv), groups * p.num_blocks, groups * p.num_blocks)


def _launch_queries(
    p: Problem,
    operands: tuple[Rows, Rows, Rows, Rows],
    terms: tuple[Tensor, Tensor],
    lists: Lists,
    means: tuple[Tensor, Tensor],
    dq: Tensor,
) -> None:
    q, grad, k, v = operands
    mean_k, mean_v = (rows_of(m) if p.summaries else t for m, t in zip(means, (k, v), strict=True))
    rows, keys, warps = p.block_size, min(p.block_size, 64), 8 if p.block_size == 128 else 4
    if p.float32 and p.channels > 64:
        rows, keys, warps = min(rows, 64), min(keys, 32), 4
    launch(
        triton_backward.queries, (triton.cdiv(p.num_steps, rows), p.batch * p.heads), p.key,
        q.tile(rows), grad.tile(rows), k.tile(keys), v.tile(keys), mean_k.tile(keys), mean_v.tile(keys),
        dq, *terms, lists.indices_BSQK, lists.counts_BSQ, lists.bits_BSQW, p.lengths_B, p.scale * _LOG2_E,
        p.scale,
        *q.steps_apart, *grad.steps_apart, *k.steps_apart, *v.steps_apart, *dq.stride()[:3],
        *p.sizes, p.slots, p.words, M=rows, N=keys, N_SUMMARY=keys,
        **p.flags("BLOCK", "D", "D_POW2", "CAUSAL", "SUMMARIES", "HAS_LIMIT", "PRECISION"),
        num_warps=warps, num_stages=2,
    )  # fmt: skip


def transposed_lists(p: Problem, bits_BSQW: Tensor) -> Transposed:
    """Query blocks that read each key block, and the key blocks by how many those are."""
    lists = p.batch * p.rankings
    readers = bits_BSQW.new_empty(lists * p.num_blocks * max(p.slots, 1))
    offsets, order = bits_BSQW.new_empty(lists * p.num_blocks + 1), bits_BSQW.new_empty(lists * p.num_blocks)
    counts = torch.empty_like(order)
    grid = (p.words, lists)
    launch(triton_selection.count_readers, grid, p.key, bits_BSQW, counts, p.num_blocks, p.words, ROWS=64)
    launch(
        triton_selection.place_readers, (triton.cdiv(p.num_blocks, 32), lists), p.key,
        counts, offsets, order, p.num_blocks, lists, ROWS=32, COLUMNS=64,
    )  # fmt: skip
    launch(
        triton_selection.list_readers, grid, p.key, bits_BSQW, offsets, readers, p.num_blocks, p.words,
        ROWS=64,
    )  # fmt: skip
    return Transposed(readers, offsets, order)


def launch_scores(
    sq_BSNE: Tensor,
    sk_BSNE: Tensor,
    block_size: int,
    causal: bool,
    lengths_B: Tensor | None,
    tile: ScoreTile | None = None,
    num_rows: int | None = None,
) -> Tensor:
    """Block scores [B, S, Q, J] from float16 products; of one list, those of the first `num_rows` query
    blocks."""
    batch, rankings, num_steps, _ = sq_BSNE.shape
    num_blocks, lists = num_blocks_of(num_steps, block_size), batch * rankings
    tile = tile or ScoreTile()
    key = key_of(block_size, causal, sq_BSNE, sk_BSNE, lengths_B)
    sq, sk = _as_half(sq_BSNE, sk_BSNE, key)
    num_rows = num_rows or num_blocks
    scores = sq.new_empty((batch, rankings, num_rows, num_blocks), dtype=torch.float32)
    fitting = max(1, _SCRATCH_ELEMENTS // (lists * num_blocks * block_size))
    row_blocks = min(num_blocks, fitting, _RANKED_AT_ONCE)
    scratch = sq.new_empty(lists * row_blocks * num_blocks * block_size)
    together = min(tile.row_blocks, triton.next_power_of_2(row_blocks))
    programs = triton.cdiv(row_blocks, together) * lists
    chunks = max(1, min(triton.cdiv(num_blocks, 16), tile.programs // programs))
    flags = {"BLOCK": block_size, "CAUSAL": causal, "HAS_LIMIT": lengths_B is not None}
    for first in range(0, num_rows, row_blocks):
        rows = min(row_blocks, num_rows - first)
        launch(
            triton_selection.maxima, (triton.cdiv(rows, together), chunks, lists), (first, key),
            sq, sk, scratch, lengths_B, rankings, num_steps, num_blocks, first, row_blocks,
            triton.cdiv(num_blocks, chunks), E=sq.shape[-1], TOGETHER=together, AT_ONCE=tile.key_blocks,
            PACKED=sq.is_cuda and block_size >= 64, **flags, num_warps=tile.warps, num_stages=tile.stages,
        )  # fmt: skip
        launch(
            triton_selection.score, (rows, lists), (first, key),
            scratch, scores, lengths_B, rankings, num_steps, num_blocks, first, row_blocks,
            SWEEP=tile.sweep, **flags, num_warps=tile.sweep_warps,
        )  # fmt: skip
    return scores


def _as_half(sq_BSNE: Tensor, sk_BSNE: Tensor, key: int) -> tuple[Tensor, Tensor]:
    """Scaled selector queries and selector keys as float16, packed, filled up with channels of zeros to the
    16, 32, ... that a product takes."""
    batch, rankings, num_steps, channels = sq_BSNE.shape
    shape = batch, rankings, num_steps, max(16, triton.next_power_of_2(channels))
    sq, sk = (torch.empty(shape, dtype=torch.float16, device=sq_BSNE.device) for _ in range(2))
    launch(
        triton_selection.halve, (triton.cdiv(num_steps, 256), batch * rankings), key,
        sq_BSNE, sk_BSNE, sq, sk, *sq_BSNE.stride(), *sk_BSNE.stride(), rankings, num_steps, channels,
        channels**-0.5, ROWS=256, E=shape[-1], num_warps=4,
    )  # fmt: skip
    return sq, sk


def launch_best_blocks(
    scores_BSQJ: Tensor,
    num_selected: int,
    block_size: int,
    num_steps: int,
    causal: bool,
    lengths_B: Tensor | None,
    top_p: float | None,
) -> tuple[Tensor, Tensor]:
    """Indices and counts of the best blocks."""
    batch, rankings, num_blocks, _ = scores_BSQJ.shape
    scores = scores_BSQJ.contiguous()
    indices = scores.new_empty((batch, rankings, num_blocks, num_selected), dtype=torch.int32)
    counts = scores.new_empty((batch, rankings, num_blocks), dtype=torch.int32)
    wide = triton.next_power_of_2(num_blocks)
    key = key_of(num_selected, block_size, num_steps, causal, scores, lengths_B)
    launch(
        triton_selection.best_blocks, (num_blocks, batch * rankings), key,
        scores, indices, counts, lengths_B, rankings, num_steps, num_blocks, num_selected, top_p or 1.0,
        BLOCK=block_size, J_POW2=wide, CAUSAL=causal, HAS_LIMIT=lengths_B is not None,
        HAS_TOP_P=top_p is not None, num_warps=4 if wide < 2048 else 8,
    )  # fmt: skip
    return indices, counts
