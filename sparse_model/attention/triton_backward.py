"""GPU kernels, backward, for any GPU; triton_hopper_backward.py does the same on Hopper.

Two passes, so that nothing is added atomically and results repeat bit by bit: dq with the query blocks
outside, dk and dv with the key blocks outside, over the transposed lists. Sums are float32.

Shape suffixes in kernels: M query rows of a tile, N keys of a tile, D channels.
"""

# Triton compiles the kernels and knows their types; it is not installed everywhere.
# pyright: reportMissingImports=false, reportAttributeAccessIssue=false, reportIndexIssue=false
# pyright: reportOperatorIssue=false, reportAssignmentType=false
# pyright: reportCallIssue=false, reportArgumentType=false, reportGeneralTypeIssues=false
import triton
import triton.language as tl

from sparse_model.attention.triton_forward import SIZES, summary_bias


@triton.jit
def row_products(
    out_ptr, grad_ptr, product_ptr, out_b, out_h, out_n, grad_b, grad_h, grad_n, heads, num_steps,
    M: tl.constexpr, D: tl.constexpr, D_POW2: tl.constexpr,
):  # fmt: skip
    """sum(out * grad) of every row, float32 [B, H, N]: the term that the softmax gradient subtracts."""
    rows, head = tl.program_id(0) * M + tl.arange(0, M), tl.program_id(1)
    batch, h = (head // heads).to(tl.int64), head % heads
    channels = tl.arange(0, D_POW2)
    mask = (rows < num_steps)[:, None] & (channels < D)[None, :]
    at = rows.to(tl.int64)[:, None]
    out = tl.load(out_ptr + batch * out_b + h * out_h + at * out_n + channels[None, :], mask=mask, other=0.0)
    grad = tl.load(
        grad_ptr + batch * grad_b + h * grad_h + at * grad_n + channels[None, :], mask=mask, other=0.0
    )
    product = tl.sum(out.to(tl.float32) * grad.to(tl.float32), 1)
    tl.store(product_ptr + head.to(tl.int64) * num_steps + rows, product, mask=rows < num_steps)


@triton.jit
def _row_terms(lse_ptr, product_ptr, head, rows, num_steps):
    """Normaliser and row product of a tile; +inf makes the weights of rows beyond the end zero."""
    at = head.to(tl.int64) * num_steps + rows
    lse = tl.load(lse_ptr + at, mask=rows < num_steps, other=float("inf"))
    return lse, tl.load(product_ptr + at, mask=rows < num_steps, other=0.0)


@triton.jit
def _key_tile(
    k, v, q, grad, lse, product, dk, dv, logits_NM, PRECISION: tl.constexpr
):  # fmt: skip
    """Add one tile to dk and dv (both without the softmax scale)."""
    weights = tl.exp2(logits_NM - lse[None, :])
    dv = tl.dot(weights.to(grad.dtype), grad, dv, input_precision=PRECISION)
    dweights = tl.dot(v, grad.T, input_precision=PRECISION)
    dlogits = (weights * (dweights - product[None, :])).to(q.dtype)
    dk = tl.dot(dlogits, q, dk, input_precision=PRECISION)
    return dk, dv


@triton.jit(do_not_specialize=SIZES)
def keys(
    q_desc, grad_desc, k_desc, v_desc, dk_ptr, dv_ptr, summary_dk_ptr, summary_dv_ptr,
    lse_ptr, product_ptr, reader_ptr, offset_ptr, limit_ptr, scale, softmax_scale,
    q_row_b, q_row_h, q_col_h, do_row_b, do_row_h, do_col_h,
    k_row_b, k_row_g, k_col_g, v_row_b, v_row_g, v_col_g, dk_b, dk_g, dk_n, dv_b, dv_g, dv_n,
    heads, groups, rankings, num_steps, num_blocks, chunks, summary_stride,
    BLOCK: tl.constexpr, M: tl.constexpr, N: tl.constexpr, D: tl.constexpr, D_POW2: tl.constexpr,
    CAUSAL: tl.constexpr, SUMMARIES: tl.constexpr, HAS_LIMIT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """dk and dv of N keys of one block, over the query blocks that read the block."""
    first_key, group = tl.program_id(0) * N, tl.program_id(1)
    batch, g = group // groups, group % groups
    limit = tl.load(limit_ptr + batch).to(tl.int32) if HAS_LIMIT else num_steps
    block = first_key // BLOCK
    columns = first_key + tl.arange(0, N)
    exists = columns < limit
    k = k_desc.load([batch * k_row_b + g * k_row_g + first_key, g * k_col_g])
    v = v_desc.load([batch * v_row_b + g * v_row_g + first_key, g * v_col_g])
    dk = tl.zeros([N, D_POW2], tl.float32)
    dv = tl.zeros([N, D_POW2], tl.float32)
    PARTS: tl.constexpr = BLOCK // M

    for h in range(g * (heads // groups), (g + 1) * (heads // groups)):
        head = batch * heads + h
        list_at = (batch * rankings + h // (heads // rankings)) * num_blocks + block
        start, stop = tl.load(offset_ptr + list_at), tl.load(offset_ptr + list_at + 1)
        q_row, q_col = batch * q_row_b + h * q_row_h, h * q_col_h
        do_row, do_col = batch * do_row_b + h * do_row_h, h * do_col_h
        # masks are needed on the block that reads itself (its list is ascending) or on a partial key block
        diagonal = (tl.load(reader_ptr + start, mask=start < stop, other=-1) == block).to(tl.int32)
        num_masked = diagonal if CAUSAL else 0
        num_masked = tl.where(first_key + N > limit, stop - start, num_masked)
        for part in range(0, num_masked * PARTS):
            first = tl.load(reader_ptr + start + part // PARTS) * BLOCK + part % PARTS * M
            rows = first + tl.arange(0, M)
            q, grad = q_desc.load([q_row + first, q_col]), grad_desc.load([do_row + first, do_col])
            lse, product = _row_terms(lse_ptr, product_ptr, head, rows, num_steps)
            is_open = exists[:, None]
            if CAUSAL:
                is_open = is_open & (columns[:, None] <= rows[None, :])
            logits = tl.dot(k, q.T, input_precision=PRECISION) * scale
            logits = tl.where(is_open, logits, float("-inf"))
            dk, dv = _key_tile(k, v, q, grad, lse, product, dk, dv, logits, PRECISION)
        begin = num_masked * PARTS
        following = tl.load(reader_ptr + start + num_masked, mask=start + num_masked < stop, other=0)
        for part in range(begin, (stop - start) * PARTS):
            first = following * BLOCK + part % PARTS * M
            ahead = start + (part + 1) // PARTS
            following = tl.load(reader_ptr + ahead, mask=ahead < stop, other=0)
            rows = first + tl.arange(0, M)
            q = q_desc.load([q_row + first, q_col])
            lse, product = _row_terms(lse_ptr, product_ptr, head, rows, num_steps)
            logits = tl.dot(k, q.T, input_precision=PRECISION) * scale
            grad = grad_desc.load([do_row + first, do_col])
            dk, dv = _key_tile(k, v, q, grad, lse, product, dk, dv, logits, PRECISION)

    channels = tl.arange(0, D_POW2)
    if SUMMARIES:
        # every step of the block carries an equal share of the gradient of the block's mean
        count = tl.maximum(tl.minimum(limit - block * BLOCK, BLOCK), 1)
        for chunk in range(0, chunks):
            at = chunk * summary_stride + (group * num_blocks + block).to(tl.int64) * D + channels
            mean_dk = tl.load(summary_dk_ptr + at, mask=channels < D, other=0.0)
            mean_dv = tl.load(summary_dv_ptr + at, mask=channels < D, other=0.0)
            dk += (mean_dk / count)[None, :]
            dv += (mean_dv / count)[None, :]
    dk = tl.where(exists[:, None], dk * softmax_scale, 0.0)
    dv = tl.where(exists[:, None], dv, 0.0)
    stored = (columns < num_steps)[:, None] & (channels < D)[None, :]
    at = columns.to(tl.int64)[:, None]
    dk_at = dk_ptr + batch.to(tl.int64) * dk_b + g * dk_g + at * dk_n + channels[None, :]
    dv_at = dv_ptr + batch.to(tl.int64) * dv_b + g * dv_g + at * dv_n + channels[None, :]
    tl.store(dk_at, dk.to(dk_ptr.dtype.element_ty), mask=stored)
    tl.store(dv_at, dv.to(dv_ptr.dtype.element_ty), mask=stored)


@triton.jit(do_not_specialize=SIZES)
def summary_keys(
    q_desc, grad_desc, mean_k_desc, mean_v_desc, summary_dk_ptr, summary_dv_ptr,
    lse_ptr, product_ptr, bits_ptr, limit_ptr, scale,
    q_row_b, q_row_h, q_col_h, do_row_b, do_row_h, do_col_h,
    heads, groups, rankings, num_steps, num_blocks, words, blocks_per_chunk, summary_stride,
    BLOCK: tl.constexpr, M: tl.constexpr, N: tl.constexpr, D: tl.constexpr, D_POW2: tl.constexpr,
    CAUSAL: tl.constexpr, HAS_LIMIT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Gradients of N mean keys and mean values over one chunk of query blocks."""
    first_block, chunk, group = tl.program_id(0) * N, tl.program_id(1), tl.program_id(2)
    batch, g = group // groups, group % groups
    limit = tl.load(limit_ptr + batch).to(tl.int32) if HAS_LIMIT else num_steps
    blocks = first_block + tl.arange(0, N)
    k = mean_k_desc.load([group * num_blocks + first_block, 0])
    v = mean_v_desc.load([group * num_blocks + first_block, 0])
    dk = tl.zeros([N, D_POW2], tl.float32)
    dv = tl.zeros([N, D_POW2], tl.float32)
    PARTS: tl.constexpr = BLOCK // M
    stop = tl.minimum((chunk + 1) * blocks_per_chunk, num_blocks)
    for h in range(g * (heads // groups), (g + 1) * (heads // groups)):
        head = batch * heads + h
        list_row = (batch * rankings + h // (heads // rankings)) * num_blocks
        begin = tl.maximum(chunk * blocks_per_chunk, first_block + 1) if CAUSAL else chunk * blocks_per_chunk
        for part in range(begin * PARTS, stop * PARTS):
            own, first = part // PARTS, part * M
            rows = first + tl.arange(0, M)
            q = q_desc.load([batch * q_row_b + h * q_row_h + first, h * q_col_h])
            grad = grad_desc.load([batch * do_row_b + h * do_row_h + first, h * do_col_h])
            lse, product = _row_terms(lse_ptr, product_ptr, head, rows, num_steps)
            bits_row = bits_ptr + (list_row + own).to(tl.int64) * words
            bias = summary_bias(bits_row, blocks, own, limit, num_blocks, BLOCK, CAUSAL)
            logits = tl.dot(k, q.T, input_precision=PRECISION) * scale + bias[:, None]
            dk, dv = _key_tile(k, v, q, grad, lse, product, dk, dv, logits, PRECISION)
    channels = tl.arange(0, D_POW2)
    at = (group * num_blocks + blocks).to(tl.int64)[:, None] * D + channels[None, :] + chunk * summary_stride
    stored = (blocks < num_blocks)[:, None] & (channels < D)[None, :]
    tl.store(summary_dk_ptr + at, dk, mask=stored)
    tl.store(summary_dv_ptr + at, dv, mask=stored)


@triton.jit(do_not_specialize=SIZES)
def queries(
    q_desc, grad_desc, k_desc, v_desc, mean_k_desc, mean_v_desc,
    dq_ptr, lse_ptr, product_ptr, index_ptr, count_ptr, bits_ptr, limit_ptr, scale, softmax_scale,
    q_row_b, q_row_h, q_col_h, do_row_b, do_row_h, do_col_h, k_row_b, k_row_g, k_col_g, v_row_b, v_row_g,
    v_col_g,
    dq_b, dq_h, dq_n, heads, groups, rankings, num_steps, num_blocks, slots, words,
    BLOCK: tl.constexpr, M: tl.constexpr, N: tl.constexpr, N_SUMMARY: tl.constexpr,
    D: tl.constexpr, D_POW2: tl.constexpr, CAUSAL: tl.constexpr, SUMMARIES: tl.constexpr,
    HAS_LIMIT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """dq of M query rows, over their list and the summaries."""
    first_row, head = tl.program_id(0) * M, tl.program_id(1)
    batch, h = head // heads, head % heads
    g, ranking = h // (heads // groups), h // (heads // rankings)
    limit = tl.load(limit_ptr + batch).to(tl.int32) if HAS_LIMIT else num_steps
    own = first_row // BLOCK
    rows = first_row + tl.arange(0, M)
    list_row = ((batch * rankings + ranking) * num_blocks + own).to(tl.int64)
    count = tl.load(count_ptr + list_row).to(tl.int32)
    q = q_desc.load([batch * q_row_b + h * q_row_h + first_row, h * q_col_h])
    grad = grad_desc.load([batch * do_row_b + h * do_row_h + first_row, h * do_col_h])
    lse, product = _row_terms(lse_ptr, product_ptr, head, rows, num_steps)
    dq = tl.zeros([M, D_POW2], tl.float32)
    PARTS: tl.constexpr = BLOCK // N
    if SUMMARIES:
        mean_row = (batch * groups + g) * num_blocks
        seen = own if CAUSAL else num_blocks
        for first in range(0, seen, N_SUMMARY):
            k, v = mean_k_desc.load([mean_row + first, 0]), mean_v_desc.load([mean_row + first, 0])
            blocks = first + tl.arange(0, N_SUMMARY)
            bias = summary_bias(bits_ptr + list_row * words, blocks, own, limit, num_blocks, BLOCK, CAUSAL)
            weights = tl.exp2(
                tl.dot(q, k.T, input_precision=PRECISION) * scale + bias[None, :] - lse[:, None]
            )
            dlogits = weights * (tl.dot(grad, v.T, input_precision=PRECISION) - product[:, None])
            dq = tl.dot(dlogits.to(k.dtype), k, dq, input_precision=PRECISION)
    for part in range(0, count * PARTS):
        first = tl.load(index_ptr + list_row * slots + part // PARTS).to(tl.int32) * BLOCK + part % PARTS * N
        k = k_desc.load([batch * k_row_b + g * k_row_g + first, g * k_col_g])
        v = v_desc.load([batch * v_row_b + g * v_row_g + first, g * v_col_g])
        columns = first + tl.arange(0, N)
        is_open = (columns < limit)[None, :]
        if CAUSAL:
            is_open = is_open & (columns[None, :] <= rows[:, None])
        logits = tl.dot(q, k.T, input_precision=PRECISION) * scale
        weights = tl.exp2(tl.where(is_open, logits, float("-inf")) - lse[:, None])
        dlogits = weights * (tl.dot(grad, v.T, input_precision=PRECISION) - product[:, None])
        dq = tl.dot(dlogits.to(k.dtype), k, dq, input_precision=PRECISION)
    channels = tl.arange(0, D_POW2)
    at = dq_ptr + batch.to(tl.int64) * dq_b + h * dq_h + rows.to(tl.int64)[:, None] * dq_n + channels[None, :]
    stored = (rows < num_steps)[:, None] & (channels < D)[None, :]
    tl.store(at, (dq * softmax_scale).to(dq_ptr.dtype.element_ty), mask=stored)
