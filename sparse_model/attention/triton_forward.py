"""GPU kernels, forward: block summaries and the attention over blocks read plus summaries.

Shape suffixes in kernels: M query rows of a tile, N keys of a tile, D channels. Logits are kept in
base 2 (`scale` holds log2(e)), because the hardware exponential is exp2.

Tensor descriptors are two-dimensional: a [B, H, N, D] tensor is rows of steps and columns of
channels, and head h of sequence b starts at row b * row_b + h * row_h, column h * col_h. This fits
both [B, H, N, D] and [B, N, H, D] memory, so nothing is copied into another order. Channels beyond D (a tile
has a power of two of them) are read as zero.
"""

# Triton compiles the kernels and knows their types; it is not installed everywhere.
# pyright: reportMissingImports=false, reportAttributeAccessIssue=false, reportIndexIssue=false
# pyright: reportOperatorIssue=false, reportAssignmentType=false
# pyright: reportCallIssue=false, reportArgumentType=false, reportGeneralTypeIssues=false
import triton
import triton.language as tl

SIZES = ["groups", "rankings", "num_blocks", "slots", "words", "items", "chunks", "per_chunk", "list_heads"]
"""Arguments that vary with the length of a sequence: no kernel is compiled again for their values."""


@triton.jit(do_not_specialize=SIZES)
def summaries(
    k_ptr, v_ptr, mean_k_ptr, mean_v_ptr, limit_ptr,
    k_b, k_g, k_n, v_b, v_g, v_n, groups, num_steps, num_blocks,
    BLOCK: tl.constexpr, D: tl.constexpr, D_POW2: tl.constexpr, HAS_LIMIT: tl.constexpr,
):  # fmt: skip
    """Mean key and mean value of one block over its valid steps, [B, G, J, D]."""
    block, head = tl.program_id(0), tl.program_id(1)
    batch, group = head // groups, head % groups
    limit = tl.load(limit_ptr + batch).to(tl.int32) if HAS_LIMIT else num_steps
    steps, channels = block * BLOCK + tl.arange(0, BLOCK), tl.arange(0, D_POW2)
    valid = (steps < limit)[:, None] & (channels < D)[None, :]
    count = tl.maximum(tl.minimum(limit - block * BLOCK, BLOCK), 1)
    at = steps.to(tl.int64)[:, None]
    k = tl.load(
        k_ptr + batch.to(tl.int64) * k_b + group * k_g + at * k_n + channels[None, :], mask=valid, other=0.0
    )
    v = tl.load(
        v_ptr + batch.to(tl.int64) * v_b + group * v_g + at * v_n + channels[None, :], mask=valid, other=0.0
    )
    out = (head.to(tl.int64) * num_blocks + block) * D + channels
    mean_k, mean_v = tl.sum(k.to(tl.float32), 0) / count, tl.sum(v.to(tl.float32), 0) / count
    tl.store(mean_k_ptr + out, mean_k.to(mean_k_ptr.dtype.element_ty), mask=channels < D)
    tl.store(mean_v_ptr + out, mean_v.to(mean_v_ptr.dtype.element_ty), mask=channels < D)


@triton.jit
def summary_bias(bits_row_ptr, blocks, own, limit, num_blocks, BLOCK: tl.constexpr, CAUSAL: tl.constexpr):
    """log2(number of steps) of blocks that a query block reads as a summary, -inf for all others."""
    word = tl.load(bits_row_ptr + blocks // 32, mask=blocks < num_blocks, other=-1)
    count = tl.minimum(limit - blocks * BLOCK, BLOCK)
    is_open = (((word >> (blocks % 32)) & 1) == 0) & (count > 0) & (blocks < num_blocks)
    if CAUSAL:
        is_open = is_open & (blocks < own)
    return tl.where(is_open, tl.log2(tl.maximum(count, 1).to(tl.float32)), float("-inf"))


@triton.jit
def _absorb(acc, top, total, logits, v, SAFE: tl.constexpr, PRECISION: tl.constexpr):
    """One step of the online softmax; SAFE where a whole row of logits may be -inf."""
    new_top = tl.maximum(top, tl.max(logits, 1))
    shift = tl.where(new_top == float("-inf"), 0.0, new_top) if SAFE else new_top
    weights = tl.exp2(logits - shift[:, None])
    decay = tl.exp2(top - shift)
    total = total * decay + tl.sum(weights, 1)
    acc = tl.dot(weights.to(v.dtype), v, acc * decay[:, None], input_precision=PRECISION)
    return acc, new_top, total


@triton.jit(do_not_specialize=SIZES)
def forward(
    q_desc, k_desc, v_desc, mean_k_desc, mean_v_desc,
    out_ptr, lse_ptr, index_ptr, count_ptr, full_ptr, bits_ptr, limit_ptr, scale,
    q_row_b, q_row_h, q_col_h, k_row_b, k_row_g, k_col_g, v_row_b, v_row_g, v_col_g, out_b, out_h, out_n,
    heads, groups, rankings, num_steps, num_blocks, slots, words,
    BLOCK: tl.constexpr, M: tl.constexpr, N: tl.constexpr, N_SUMMARY: tl.constexpr,
    D: tl.constexpr, D_POW2: tl.constexpr, CAUSAL: tl.constexpr, SUMMARIES: tl.constexpr,
    HAS_LIMIT: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Attention of M query rows over the blocks on their list and the summaries of all others."""
    first_row, head = tl.program_id(0) * M, tl.program_id(1)
    batch, h = head // heads, head % heads
    g, ranking = h // (heads // groups), h // (heads // rankings)
    limit = tl.load(limit_ptr + batch).to(tl.int32) if HAS_LIMIT else num_steps
    own = first_row // BLOCK
    rows = first_row + tl.arange(0, M)
    list_row = ((batch * rankings + ranking) * num_blocks + own).to(tl.int64)
    list_ptr = index_ptr + list_row * slots
    count = tl.load(count_ptr + list_row).to(tl.int32)
    num_full = tl.load(full_ptr + list_row)

    q = q_desc.load([batch * q_row_b + h * q_row_h + first_row, h * q_col_h])
    k_row, k_col = batch * k_row_b + g * k_row_g, g * k_col_g
    v_row, v_col = batch * v_row_b + g * v_row_g, g * v_col_g
    acc = tl.zeros([M, D_POW2], tl.float32)
    top = tl.full([M], float("-inf"), tl.float32)
    total = tl.zeros([M], tl.float32)
    PARTS: tl.constexpr = BLOCK // N

    if SUMMARIES:
        mean_row = (batch * groups + g) * num_blocks
        seen = tl.minimum(own, num_blocks) if CAUSAL else num_blocks
        for first in range(0, seen, N_SUMMARY):
            mean_k = mean_k_desc.load([mean_row + first, 0])
            mean_v = mean_v_desc.load([mean_row + first, 0])
            blocks = first + tl.arange(0, N_SUMMARY)
            bias = summary_bias(bits_ptr + list_row * words, blocks, own, limit, num_blocks, BLOCK, CAUSAL)
            logits = tl.dot(q, mean_k.T, input_precision=PRECISION) * scale + bias[None, :]
            acc, top, total = _absorb(acc, top, total, logits, mean_v, True, PRECISION)

    for part in range(num_full * PARTS, count * PARTS):
        first = tl.load(list_ptr + part // PARTS).to(tl.int32) * BLOCK + part % PARTS * N
        k, v = k_desc.load([k_row + first, k_col]), v_desc.load([v_row + first, v_col])
        columns = first + tl.arange(0, N)
        is_open = (columns < limit)[None, :]
        if CAUSAL:
            is_open = is_open & (columns[None, :] <= rows[:, None])
        logits = tl.dot(q, k.T, input_precision=PRECISION) * scale
        acc, top, total = _absorb(
            acc, top, total, tl.where(is_open, logits, float("-inf")), v, True, PRECISION
        )

    following = tl.load(list_ptr, mask=num_full > 0, other=0).to(tl.int32)
    for part in range(0, num_full * PARTS):
        first = following * BLOCK + part % PARTS * N
        # the next list entry is read one turn early, so that the copy engine never waits for it
        following = tl.load(list_ptr + (part + 1) // PARTS, mask=part + 1 < num_full * PARTS, other=0).to(
            tl.int32
        )
        k = k_desc.load([k_row + first, k_col])
        logits = tl.dot(q, k.T, input_precision=PRECISION)
        new_top = tl.maximum(top, tl.max(logits, 1) * scale)
        weights = tl.exp2(logits * scale - new_top[:, None])
        decay = tl.exp2(top - new_top)
        total = total * decay + tl.sum(weights, 1)
        acc = acc * decay[:, None]
        v = v_desc.load([v_row + first, v_col])
        acc = tl.dot(weights.to(v.dtype), v, acc, input_precision=PRECISION)
        top = new_top

    # a row that reads nothing (padding, or an empty list) is zero, and +inf makes its gradient vanish
    exists = (rows < limit) & (total > 0.0)
    safe_total = tl.where(exists, total, 1.0)
    out = tl.where(exists[:, None], acc / safe_total[:, None], 0.0)
    lse = tl.where(exists, top + tl.log2(safe_total), float("inf"))
    tl.store(lse_ptr + head.to(tl.int64) * num_steps + rows, lse, mask=rows < num_steps)
    out_at = out_ptr + batch.to(tl.int64) * out_b + h * out_h + rows.to(tl.int64)[:, None] * out_n
    channels = tl.arange(0, D_POW2)
    stored = (rows < num_steps)[:, None] & (channels < D)[None, :]
    tl.store(out_at + channels[None, :], out.to(out_ptr.dtype.element_ty), mask=stored)
