"""Launches of the GPU kernels: which tile, which memory layout, which arguments.

Shape suffixes: B batch, H heads, G key/value heads, S selector heads, N steps, D channels, Q query
blocks, J key blocks, K list slots, W words of 32 bits.
"""

# Triton compiles the kernels and knows their types; it is not installed everywhere.
# pyright: reportMissingImports=false, reportAttributeAccessIssue=false, reportIndexIssue=false
# pyright: reportCallIssue=false, reportArgumentType=false, reportGeneralTypeIssues=false
from typing import NamedTuple

import torch
import triton
from torch import Tensor

from sparse_model.attention import triton_backward, triton_forward, triton_selection
from sparse_model.attention.selection import num_blocks_of
from sparse_model.attention.triton_problem import Lists, Problem, Rows, rows_of

import os
TRY_FORWARD = int(os.environ.get("TRY_FORWARD", "0"))
TRY_BACKWARD = [0, 0, 0]
_LOG2_E = 1.4426950408889634
_SCRATCH_ELEMENTS = 1 << 26  # float16 block maxima held at once while scoring: 128 MiB


class Tile(NamedTuple):
    """Query rows and keys of a kernel's tile, its warps, and how many loads ahead it runs."""

    rows: int
    keys: int
    warps: int
    stages: int


def forward_tile(block_size: int) -> Tile:
    """Tile of the portable forward kernel, from the sweep in pipelines/benchmarks/tiles.py."""
    return Tile(rows=min(block_size, 64), keys=min(block_size, 64), warps=4, stages=3)


def backward_tile(block_size: int, channels: int) -> Tile:
    """Tile of the portable backward kernels, from the same sweep."""
    if block_size == 128 and channels == 128:
        return Tile(rows=64, keys=128, warps=8, stages=2)
    return Tile(
        rows=min(block_size, 64 if channels <= 128 else 32), keys=min(block_size, 64), warps=4, stages=2
    )


def lists_of(p: Problem, indices_BSQK: Tensor, counts_BSQ: Tensor) -> Lists:
    """Add the bits and the number of unmasked blocks to a selection."""
    indices, counts = indices_BSQK.contiguous(), counts_BSQ.contiguous()
    bits = torch.zeros(p.batch, p.rankings, p.num_blocks, p.words, dtype=torch.int32, device=indices.device)
    full = torch.empty_like(counts, dtype=torch.int32)
    triton_selection.read_bits[(p.num_blocks, p.batch * p.rankings)](
        indices, counts, bits, full, p.lengths_B, p.rankings, p.num_steps, p.num_blocks, p.slots, p.words,
        **p.flags("BLOCK", "SLOTS_POW2", "CAUSAL", "HAS_LIMIT"), num_warps=1,
    )  # fmt: skip
    return Lists(indices, counts, full, bits)


def summaries_of(p: Problem, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Mean key and mean value of every block, [B, G, J, D]; empty without summaries."""
    shape = (p.batch, p.groups, p.num_blocks if p.summaries else 0, p.channels)
    mean_k, mean_v = k.new_empty(shape), v.new_empty(shape)
    if p.summaries:
        k, v = (t if t.stride(3) == 1 else t.contiguous() for t in (k, v))
        triton_forward.summaries[(p.num_blocks, p.batch * p.groups)](
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
    triton_forward.forward[(triton.cdiv(p.num_steps, tile.rows), p.batch * p.heads)](
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
    items = p.batch * p.heads * p.num_blocks
    programs = min(items, torch.cuda.get_device_properties(q.device).multi_processor_count)
    triton_hopper.forward[(programs,)](
        triton_hopper.tile_of(q_rows, 64), *(triton_hopper.tile_of(t, 128) for t in (k_rows, v_rows,
        mean_k, mean_v)),
        out, lse, lists.indices_BSQK, lists.counts_BSQ, lists.full_BSQ, lists.bits_BSQW, p.lengths_B,
        p.scale * _LOG2_E, *q_rows.steps_apart, *k_rows.steps_apart, *v_rows.steps_apart, *out.stride()[:3],
        *p.sizes, p.slots, p.words, items, STAGES=stages, TRY=TRY_FORWARD, **p.flags("D", "CAUSAL", "SUMMARIES", "HAS_LIMIT"),
        num_warps=4,
    )  # fmt: skip


def row_products(p: Problem, out: Tensor, grad: Tensor) -> Tensor:
    """sum(out * grad) of every row, float32 [B, H, N]."""
    product = out.new_empty(out.shape[:3], dtype=torch.float32)
    triton_backward.row_products[(triton.cdiv(p.num_steps, 128), p.batch * p.heads)](
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
) -> tuple[Tensor, Tensor, Tensor]:
    """dq, dk, dv, by the kernels that suit the GPU and the sizes; always summed in the same order."""
    dq, dk, dv = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
    transposed = transposed_lists(p, lists.bits_BSQW)
    mean_tiles = p.batch * p.groups * triton.cdiv(p.num_blocks, 128)
    chunks = min(p.num_blocks, triton.cdiv(512, mean_tiles)) if p.summaries else 0
    mean_grads = q.new_empty(2, max(chunks, 1), *means[0].shape, dtype=torch.float32)
    terms = lse, product
    operands = rows_of(q), rows_of(grad), rows_of(k), rows_of(v)
    if tile is None and fits_hopper(p, q):
        launch_hopper_backward(p, operands, terms, lists, transposed, means, mean_grads, chunks, (dq, dk, dv))
    else:
        tile = tile or backward_tile(p.block_size, p.channels)
        _launch_keys(p, operands, terms, lists, transposed, means, mean_grads, chunks, (dk, dv), tile)
        _launch_queries(p, operands, terms, lists, means, dq)
    return dq, dk, dv


def _launch_keys(
    p: Problem,
    operands: tuple[Rows, Rows, Rows, Rows],
    terms: tuple[Tensor, Tensor],
    lists: Lists,
    transposed: tuple[Tensor, Tensor],
    means: tuple[Tensor, Tensor],
    mean_grads: Tensor,
    chunks: int,
    outputs: tuple[Tensor, Tensor],
    tile: Tile,
) -> None:
    q, grad, k, v = operands
    (lse, product), (offsets, readers), (dk, dv) = terms, transposed, outputs
    options = p.flags("BLOCK", "D", "D_POW2", "CAUSAL", "HAS_LIMIT", "PRECISION")
    options |= {"M": tile.rows, "N": tile.keys, "num_warps": tile.warps, "num_stages": tile.stages}
    if p.summaries:
        mean_k, mean_v = rows_of(means[0]), rows_of(means[1])
        triton_backward.summary_keys[(triton.cdiv(p.num_blocks, tile.keys), chunks, p.batch * p.groups)](
            q.tile(tile.rows), grad.tile(tile.rows), mean_k.tile(tile.keys), mean_v.tile(tile.keys),
            mean_grads[0], mean_grads[1], lse, product, lists.bits_BSQW, p.lengths_B, p.scale * _LOG2_E,
            *q.steps_apart, *grad.steps_apart, *p.sizes, p.words, triton.cdiv(p.num_blocks, chunks),
            means[0].numel(), **options,
        )  # fmt: skip
    triton_backward.keys[(triton.cdiv(p.num_steps, tile.keys), p.batch * p.groups)](
        q.tile(tile.rows), grad.tile(tile.rows), k.tile(tile.keys), v.tile(tile.keys), dk, dv,
        mean_grads[0], mean_grads[1], lse, product, readers, offsets, p.lengths_B, p.scale * _LOG2_E, p.scale,
        *q.steps_apart, *grad.steps_apart, *k.steps_apart, *v.steps_apart, *dk.stride()[:3], *dv.stride()[:3],
        *p.sizes, chunks, means[0].numel(), SUMMARIES=p.summaries, **options,
    )  # fmt: skip


def launch_hopper_backward(
    p: Problem,
    operands: tuple[Rows, Rows, Rows, Rows],
    terms: tuple[Tensor, Tensor],
    lists: Lists,
    transposed: tuple[Tensor, Tensor],
    means: tuple[Tensor, Tensor],
    mean_grads: Tensor,
    chunks: int,
    outputs: tuple[Tensor, Tensor, Tensor],
    ahead: tuple[bool, bool, bool] | None = None,
) -> None:
    """Three passes; `ahead` says for each (dq, keys, summaries) whether it multiplies a tile ahead."""
    from sparse_model.attention import triton_hopper, triton_hopper_backward  # need a Triton that has Gluon

    dq, dk, dv = outputs
    offsets, readers = transposed
    ahead = ahead or (True, p.channels == 64, p.channels == 64)  # measured; at 128 channels registers run out
    mean_rows = tuple(rows_of(m) if p.summaries else t for m, t in zip(means, operands[2:], strict=True))
    tiles = [triton_hopper.tile_of(rows, 64) for rows in (*operands, *mean_rows)]
    processors = torch.cuda.get_device_properties(dq.device).multi_processor_count
    flags = p.flags("D", "CAUSAL", "SUMMARIES", "HAS_LIMIT")

    def run(which: int, near: int, far: int, out0: Tensor, out1: Tensor, items: int) -> None:
        rows = (*operands, *mean_rows)
        triton_hopper_backward.backward[(min(items, processors),)](
            *tiles[near : near + 2], *tiles[far : far + 2], *tiles[4:], out0, out1, mean_grads[0],
            mean_grads[1],
            *terms, lists.indices_BSQK, lists.counts_BSQ, lists.full_BSQ, lists.bits_BSQW, readers, offsets,
            p.lengths_B, p.scale * _LOG2_E, p.scale, *rows[near].steps_apart, *rows[near + 1].steps_apart,
            *rows[far].steps_apart, *rows[far + 1].steps_apart, *out0.stride()[:3], *out1.stride()[:3],
            *p.sizes, p.slots, p.words, items, chunks, triton.cdiv(p.num_blocks, max(chunks, 1)),
            means[0].numel(),
            STAGES=4 if p.channels == 64 else 3, AHEAD=ahead[which], PASS=which, TRY=TRY_BACKWARD[which], **flags, num_warps=4,
        )  # fmt: skip

    groups = p.batch * p.groups
    run(0, 0, 2, dq, dq, p.batch * p.heads * p.num_blocks)
    if p.summaries:
        run(2, 4, 0, dk, dv, groups * triton.cdiv(p.num_blocks, 128) * chunks)
    run(1, 2, 0, dk, dv, groups * p.num_blocks)


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
    triton_backward.queries[(triton.cdiv(p.num_steps, rows), p.batch * p.heads)](
        q.tile(rows), grad.tile(rows), k.tile(keys), v.tile(keys), mean_k.tile(keys), mean_v.tile(keys),
        dq, *terms, lists.indices_BSQK, lists.counts_BSQ, lists.bits_BSQW, p.lengths_B, p.scale * _LOG2_E,
        p.scale,
        *q.steps_apart, *grad.steps_apart, *k.steps_apart, *v.steps_apart, *dq.stride()[:3],
        *p.sizes, p.slots, p.words, M=rows, N=keys, N_SUMMARY=keys,
        **p.flags("BLOCK", "D", "D_POW2", "CAUSAL", "SUMMARIES", "HAS_LIMIT", "PRECISION"),
        num_warps=warps, num_stages=2,
    )  # fmt: skip


def transposed_lists(p: Problem, bits_BSQW: Tensor) -> tuple[Tensor, Tensor]:
    """Query blocks that read each key block: int32 offsets [B*S*J + 1] into int32 readers [B*S*Q*K]."""
    readers = bits_BSQW.new_empty(p.batch * p.rankings * p.num_blocks * max(p.slots, 1))
    counts = bits_BSQW.new_empty(p.batch * p.rankings * p.num_blocks)
    grid = (p.words, p.batch * p.rankings)
    triton_selection.count_readers[grid](bits_BSQW, counts, p.num_blocks, p.words, ROWS=64)
    offsets = torch.nn.functional.pad(counts.cumsum(0, dtype=torch.int32), (1, 0))
    triton_selection.list_readers[grid](bits_BSQW, offsets, readers, p.num_blocks, p.words, ROWS=64)
    return offsets, readers


def launch_scores(
    sq_BSNE: Tensor,
    sk_BSNE: Tensor,
    block_size: int,
    causal: bool,
    lengths_B: Tensor | None,
    blocks_at_once: int = 4,
    warps: int = 4,
    stages: int = 3,
) -> Tensor:
    """Block scores [B, S, Q, J] from float16 products."""
    batch, rankings, num_steps, channels = sq_BSNE.shape
    num_blocks = num_blocks_of(num_steps, block_size)
    sq = (sq_BSNE * channels**-0.5).to(torch.float16).contiguous()
    sk = sk_BSNE.to(torch.float16).contiguous()
    scores = sq.new_empty((batch, rankings, num_blocks, num_blocks), dtype=torch.float32)
    row_blocks = max(1, min(num_blocks, _SCRATCH_ELEMENTS // (batch * rankings * num_blocks * block_size)))
    scratch = sq.new_empty(batch * rankings * row_blocks * num_blocks * block_size)
    for first in range(0, num_blocks, row_blocks):
        triton_selection.score[(min(row_blocks, num_blocks - first), batch * rankings)](
            sq, sk, scratch, scores, lengths_B, rankings, num_steps, num_blocks, first, row_blocks,
            BLOCK=block_size, E=channels, AT_ONCE=blocks_at_once, SWEEP=32, CAUSAL=causal,
            HAS_LIMIT=lengths_B is not None, PACKED=sq.is_cuda, num_warps=warps, num_stages=stages,
        )  # fmt: skip
    return scores
