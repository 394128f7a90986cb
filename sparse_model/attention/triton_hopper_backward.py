"""The backward kernels written for Hopper GPUs: one warp loads, two warp groups compute, nothing is atomic.

Three passes share one loop. QUERIES keeps q and the output's gradient of a query block and streams the keys
and values on its list, for dq. KEYS keeps the keys and values of a block and streams the queries and
gradients on the transposed list, for dk and dv. MEANS is the same for mean keys and values, over chunks of
all query blocks. Every sum has a fixed order, so results repeat bit by bit.

`near` names the two operands that stay (128 rows, 64 per warp group), `far` the two that stream by in tiles
of 64 rows; in QUERIES near = (q, grad) and far = (k, v), else near = (k, v) and far = (q, grad). Logits are
near0 . far0 and the products with the output's gradient near1 . far1. `t` counts tiles: buffer t % STAGES.
"""

# Triton compiles the kernels and knows their types; it is not installed everywhere.
# pyright: reportMissingImports=false, reportAttributeAccessIssue=false, reportIndexIssue=false
# pyright: reportOperatorIssue=false, reportAssignmentType=false
# pyright: reportCallIssue=false, reportArgumentType=false, reportGeneralTypeIssues=false
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    warpgroup_mma,
    warpgroup_mma_wait,
)

from sparse_model.attention.triton_forward import SIZES
from sparse_model.attention.triton_hopper import summary_bias
from sparse_model.attention.triton_hopper_loads import KEYS, MEANS, QUERIES, entry, loader, span_of, work_item


@gluon.jit
def _multiply(near0, near1, buffers, bars, t, STAGES: gl.constexpr, S: gl.constexpr):
    """Start the two products of tile t with the near rows: logits, and values with the output's gradient."""
    zero = gl.zeros([64, 64], gl.float32, S)
    far0, far1 = buffers[2].index(t % STAGES), buffers[3].index(t % STAGES)
    mbarrier.wait(bars[2].index(t % STAGES), (t // STAGES) & 1)
    logits = warpgroup_mma(near0, far0.permute((1, 0)), zero, use_acc=False, is_async=True)
    dweights = warpgroup_mma(near1, far1.permute((1, 0)), zero, use_acc=False, is_async=True)
    return logits, dweights


@gluon.jit
def _far(i, head, lists, sizes, terms, row_terms, PASS: gl.constexpr, MEANS_FAR: gl.constexpr):
    """First far step (or summary) of tile i; log-sum-exp and row products of its queries: of the near rows,
    or of the far ones, one column per thread. Fetched a tile ahead, so that nobody waits for them."""
    lse, product = row_terms
    step = i * 64
    if not MEANS_FAR:
        step = entry(i // 2, lists, PASS) * 128 + i % 2 * 64
    if PASS != QUERIES:
        column = step + gl.arange(0, 64, gl.BlockedLayout([1], [32], [4], [0]))
        at = head.to(gl.int64) * sizes[3] + column
        lse = gl.load(terms[0] + at, mask=column < sizes[3], other=float("inf"))
        product = gl.load(terms[1] + at, mask=column < sizes[3], other=0.0)
    return step, lse, product


@gluon.jit
def _weigh(
    logits, dweights, step, lse, product, i, masked_from, place, lists, sizes, scale, row,
    PASS: gl.constexpr, MEANS_FAR: gl.constexpr, CAUSAL: gl.constexpr, HAS_LIMIT: gl.constexpr,
    S: gl.constexpr, P: gl.constexpr, DTYPE: gl.constexpr,
):  # fmt: skip
    """Softmax weights of a tile and the gradient of its logits, as operands of the next products."""
    batch, list_row, block, limit = place
    if MEANS_FAR or PASS == MEANS:
        logits = _masked(
            logits, (batch, list_row, step), lists, sizes, scale, row, PASS, MEANS_FAR, CAUSAL, HAS_LIMIT, S
        )
    else:
        special = i >= masked_from
        if PASS == KEYS:
            special = (block + 1) * 128 > limit
            if CAUSAL:
                special = special | (step // 128 == block)
        if special:
            logits = _masked(
                logits,
                (batch, list_row, step),
                lists,
                sizes,
                scale,
                row,
                PASS,
                MEANS_FAR,
                CAUSAL,
                HAS_LIMIT,
                S,
            )
    if PASS != QUERIES:
        lse = gl.convert_layout(lse, gl.SliceLayout(0, S))[None, :]
        product = gl.convert_layout(product, gl.SliceLayout(0, S))[None, :]
    weights = gl.exp2(logits * scale - lse)
    dlogits16 = gl.convert_layout((weights * (dweights - product)).to(DTYPE), P)
    return gl.convert_layout(weights.to(DTYPE), P), dlogits16


@gluon.jit
def _add(weights16, dlogits16, acc0, acc1, buffers, t, PASS: gl.constexpr, STAGES: gl.constexpr):
    """Start adding tile t to the sums."""
    if PASS != QUERIES:
        acc1 = warpgroup_mma(weights16, buffers[3].index(t % STAGES), acc1, is_async=True)
    acc0 = warpgroup_mma(dlogits16, buffers[2].index(t % STAGES), acc0, is_async=True)
    return acc0, acc1


@gluon.jit
def _take_turn(turns, group, turn, PASS: gl.constexpr):
    """In QUERIES, start products only after the other warp group has started its last ones: one computes
    weights while the other multiplies. In the other passes it made no difference."""
    if PASS == QUERIES:
        mbarrier.wait(turns.index(group), (turn & 1) ^ (1 - group))


@gluon.jit
def _give_turn(turns, group, PASS: gl.constexpr):
    if PASS == QUERIES:
        mbarrier.arrive(turns.index(1 - group), count=1)


@gluon.jit
def _sum_span(
    acc0, acc1, t, turn, first, last, head, masked_from, near0, near1, buffers, bars, place, lists, sizes,
    terms, row_terms, group, scale, row, PASS: gl.constexpr, MEANS_FAR: gl.constexpr, STAGES: gl.constexpr,
    ROOM: gl.constexpr, CAUSAL: gl.constexpr, HAS_LIMIT: gl.constexpr, S: gl.constexpr, P: gl.constexpr,
):  # fmt: skip
    """Sums over tiles first..last. With ROOM, the next tile's products queue behind this one's sums: a
    warp group hands the tensor cores four products at a time, and computes while the other group's run."""
    DTYPE: gl.constexpr = buffers[2].dtype
    if first < last:
        far, lse, product = _far(first, head, lists, sizes, terms, row_terms, PASS, MEANS_FAR)
        _take_turn(bars[4], group, turn, PASS)
        logits, dweights = _multiply(near0, near1, buffers, bars, t, STAGES, S)
        _give_turn(bars[4], group, PASS)
        turn += 1
        logits, dweights = warpgroup_mma_wait(0, deps=(logits, dweights))
        for i in range(first, last - 1):
            next_far, next_lse, next_product = _far(
                i + 1, head, lists, sizes, terms, row_terms, PASS, MEANS_FAR
            )
            weights16, dlogits16 = _weigh(
                logits, dweights, far, lse, product, i, masked_from, place, lists, sizes, scale, row,
                PASS, MEANS_FAR, CAUSAL, HAS_LIMIT, S, P, DTYPE,
            )  # fmt: skip
            _take_turn(bars[4], group, turn, PASS)
            pending0, pending1 = _add(weights16, dlogits16, acc0, acc1, buffers, t, PASS, STAGES)
            if ROOM:
                logits, dweights = _multiply(near0, near1, buffers, bars, t + 1, STAGES, S)
                _give_turn(bars[4], group, PASS)
            ALLOWED: gl.constexpr = 2 if ROOM else 0
            if PASS == QUERIES:
                acc0, weights16, dlogits16 = warpgroup_mma_wait(
                    ALLOWED, deps=(pending0, weights16, dlogits16)
                )
            else:
                acc0, acc1, weights16, dlogits16 = warpgroup_mma_wait(
                    ALLOWED, deps=(pending0, pending1, weights16, dlogits16)
                )
            mbarrier.arrive(bars[3].index(t % STAGES), count=1)
            if not ROOM:
                logits, dweights = _multiply(near0, near1, buffers, bars, t + 1, STAGES, S)
                _give_turn(bars[4], group, PASS)
            turn += 1
            far, lse, product = next_far, next_lse, next_product
            logits, dweights = warpgroup_mma_wait(0, deps=(logits, dweights))
            t += 1
        weights16, dlogits16 = _weigh(
            logits, dweights, far, lse, product, last - 1, masked_from, place, lists, sizes, scale, row,
            PASS, MEANS_FAR, CAUSAL, HAS_LIMIT, S, P, DTYPE,
        )  # fmt: skip
        _take_turn(bars[4], group, turn, PASS)
        pending0, pending1 = _add(weights16, dlogits16, acc0, acc1, buffers, t, PASS, STAGES)
        _give_turn(bars[4], group, PASS)
        turn += 1
        if PASS == QUERIES:
            acc0, weights16, dlogits16 = warpgroup_mma_wait(0, deps=(pending0, weights16, dlogits16))
        else:
            acc0, acc1, weights16, dlogits16 = warpgroup_mma_wait(
                0, deps=(pending0, pending1, weights16, dlogits16)
            )
        mbarrier.arrive(bars[3].index(t % STAGES), count=1)
        t += 1
    return acc0, acc1, t, turn


@gluon.jit
def _masked(
    logits, place, lists, sizes, scale, row,
    PASS: gl.constexpr, MEANS_FAR: gl.constexpr, CAUSAL: gl.constexpr, HAS_LIMIT: gl.constexpr,
    S: gl.constexpr,
):  # fmt: skip
    """Logits: closed where nothing may be read, those of summaries raised by log(count)."""
    _index_ptr, _count_ptr, _full_ptr, bits_ptr, _reader_ptr, _offset_ptr, _order_ptr, limit_ptr = lists
    _heads, _groups, _rankings, num_steps, num_blocks, _slots, words, _items, _chunks, _per_chunk = sizes
    batch, list_row, far_first = place  # far_first: first far step (or, for summaries, block) of this tile
    limit = num_steps
    if HAS_LIMIT:
        limit = gl.load(limit_ptr + batch).to(gl.int32)
    if PASS == MEANS:
        # row numbers mean keys, and all 64 queries of the tile belong to one block
        own = far_first // 128
        bias = summary_bias(bits_ptr, list_row + own, row, own, limit, num_blocks, words, CAUSAL) / scale
        logits = logits + bias[:, None]
    else:
        column = far_first + gl.arange(0, 64, gl.SliceLayout(0, S))
        if PASS == KEYS:
            logits = gl.where((row < limit)[:, None], logits, float("-inf"))
            if CAUSAL:
                logits = gl.where(row[:, None] <= column[None, :], logits, float("-inf"))
        elif MEANS_FAR:
            block = far_first + gl.arange(0, 64, gl.BlockedLayout([1], [32], [4], [0]))
            own = gl.max(row, 0) // 128
            bias = (
                summary_bias(bits_ptr, list_row + own, block, own, limit, num_blocks, words, CAUSAL) / scale
            )
            logits = logits + gl.convert_layout(bias, gl.SliceLayout(0, S))[None, :]
        else:
            logits = gl.where((column < limit)[None, :], logits, float("-inf"))
            if CAUSAL:
                logits = gl.where(column[None, :] <= row[:, None], logits, float("-inf"))
    return logits


@gluon.jit
def _compute(
    buffers, bars, lists, sizes, terms, outputs, scale, softmax_scale, group, D: gl.constexpr,
    PASS: gl.constexpr, STAGES: gl.constexpr, ROOM: gl.constexpr, CAUSAL: gl.constexpr,
    SUMMARIES: gl.constexpr,
    HAS_LIMIT: gl.constexpr,
):  # fmt: skip
    """One warp group: 64 near rows of every work item."""
    near_full, near_free, _far_full, _far_free, _turns = bars
    heads, groups, _rankings, num_steps, _num_blocks, _slots, _words, items, _chunks, _per_chunk = sizes
    lse_ptr, product_ptr = terms
    S: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, 64, 16])
    OUT: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, D, 16])
    P: gl.constexpr = gl.DotOperandLayout(operand_index=0, parent=OUT, k_width=2)
    NEAR: gl.constexpr = gl.DotOperandLayout(operand_index=0, parent=S, k_width=2)
    t = 0
    turn = 0
    number = 0
    for item in range(gl.program_id(0), items, gl.num_programs(0)):
        batch, h, block, chunk, before = work_item(item, lists, sizes, PASS, CAUSAL, SUMMARIES)
        limit = num_steps
        if HAS_LIMIT:
            limit = gl.load(lists[7] + batch).to(gl.int32)
        row = block * 128 + group * 64 + gl.arange(0, 64, gl.SliceLayout(1, S))
        acc0 = gl.zeros([64, D], gl.float32, OUT)
        acc1 = gl.zeros([64, D], gl.float32, OUT)
        mbarrier.wait(near_full, number & 1)
        number += 1  # noqa: SIM113  kernels have no enumerate
        if ROOM:  # products with both operands in shared memory would wait for it
            near0, near1 = buffers[0].index(group).load(NEAR), buffers[1].index(group).load(NEAR)
            mbarrier.arrive(near_free, count=1)
        else:
            near0, near1 = buffers[0].index(group), buffers[1].index(group)
        if PASS == QUERIES:
            list_row, start, stop = span_of(batch, h, block, chunk, lists, sizes, PASS, CAUSAL)
            head = batch * heads + h
            at = head.to(gl.int64) * num_steps + row
            lse = gl.load(lse_ptr + at, mask=row < num_steps, other=float("inf"))[:, None]
            product = gl.load(product_ptr + at, mask=row < num_steps, other=0.0)[:, None]
            masked_from = (start + gl.load(lists[2] + list_row + block)) * 2
            place = (batch, list_row, block, limit)
            if SUMMARIES:
                acc0, acc1, t, turn = _sum_span(
                    acc0, acc1, t, turn, 0, before, head, masked_from, near0, near1, buffers, bars, place,
                    lists, sizes, terms, (lse, product), group, scale, row, PASS, True, STAGES, ROOM, CAUSAL,
                    HAS_LIMIT, S, P,
                )  # fmt: skip
            acc0, acc1, t, turn = _sum_span(
                acc0, acc1, t, turn, start * 2, stop * 2, head, masked_from, near0, near1, buffers, bars,
                place, lists, sizes, terms, (lse, product), group, scale, row, PASS, False, STAGES, ROOM,
                CAUSAL, HAS_LIMIT, S, P,
            )  # fmt: skip
        else:
            for q_head in range(h * (heads // groups), (h + 1) * (heads // groups)):
                list_row, start, stop = span_of(batch, q_head, block, chunk, lists, sizes, PASS, CAUSAL)
                place = (batch, list_row, block, limit)
                acc0, acc1, t, turn = _sum_span(
                    acc0, acc1, t, turn, start * 2, stop * 2, batch * heads + q_head, 0, near0, near1,
                    buffers, bars, place, lists, sizes, terms, (0.0, 0.0), group, scale, row, PASS, False,
                    STAGES, ROOM, CAUSAL, HAS_LIMIT, S, P,
                )  # fmt: skip
        if not ROOM:
            mbarrier.arrive(near_free, count=1)
        _store(
            acc0,
            acc1,
            batch,
            h,
            block,
            chunk,
            group,
            limit,
            sizes,
            outputs,
            softmax_scale,
            D,
            PASS,
            SUMMARIES,
            OUT,
        )


@gluon.jit
def _sum_of_chunks(ptr, chunks, mean_stride, D: gl.constexpr, OUT: gl.constexpr):
    """Sum over the chunks of one mean's gradient, [D]; many at once, or each would wait for its load."""
    C: gl.constexpr = gl.BlockedLayout([1, 4], [128 // D, D // 4], [4, 1], [1, 0])
    channel = gl.arange(0, D, gl.SliceLayout(0, C))[None, :]
    total = gl.zeros([16, D], gl.float32, C)
    for first in range(0, chunks, 16):
        chunk = (first + gl.arange(0, 16, gl.SliceLayout(1, C)))[:, None]
        total += gl.load(ptr + chunk.to(gl.int64) * mean_stride + channel, mask=chunk < chunks, other=0.0)
    return gl.convert_layout(gl.sum(total, 0), gl.SliceLayout(0, OUT))


@gluon.jit
def _store(
    acc0, acc1, batch, h, block, chunk, group, limit, sizes, outputs, softmax_scale,
    D: gl.constexpr, PASS: gl.constexpr, SUMMARIES: gl.constexpr, OUT: gl.constexpr,
):  # fmt: skip
    """Write the gradients of 64 near rows; keys take their share of their summary's gradient."""
    _heads, groups, _rankings, num_steps, num_blocks, _slots, _words, _items, chunks, _per_chunk = sizes
    out0_ptr, out1_ptr, out0_b, out0_h, out0_n, out1_b, out1_h, out1_n, mean0_ptr, mean1_ptr, mean_stride = (
        outputs
    )
    row = block * 128 + group * 64 + gl.arange(0, 64, gl.SliceLayout(1, OUT))
    channel = gl.arange(0, D, gl.SliceLayout(0, OUT))
    if PASS == MEANS:
        mean_row = (batch * groups + h) * num_blocks + row
        at = chunk.to(gl.int64) * mean_stride + mean_row.to(gl.int64)[:, None] * D + channel[None, :]
        gl.store(mean0_ptr + at, acc0, mask=(row < num_blocks)[:, None])
        gl.store(mean1_ptr + at, acc1, mask=(row < num_blocks)[:, None])
    else:
        at = batch.to(gl.int64) * out0_b + h * out0_h + row.to(gl.int64)[:, None] * out0_n + channel[None, :]
        if PASS == KEYS:
            if SUMMARIES:
                share = 1.0 / gl.maximum(gl.minimum(limit - block * 128, 128), 1).to(gl.float32)
                mean_at = ((batch * groups + h) * num_blocks + block).to(gl.int64) * D
                acc0 += (_sum_of_chunks(mean0_ptr + mean_at, chunks, mean_stride, D, OUT) * share)[None, :]
                acc1 += (_sum_of_chunks(mean1_ptr + mean_at, chunks, mean_stride, D, OUT) * share)[None, :]
            acc0 = gl.where((row < limit)[:, None], acc0, 0.0)
            acc1 = gl.where((row < limit)[:, None], acc1, 0.0)
            at1 = (
                batch.to(gl.int64) * out1_b
                + h * out1_h
                + row.to(gl.int64)[:, None] * out1_n
                + channel[None, :]
            )
            gl.store(out1_ptr + at1, acc1.to(out1_ptr.dtype.element_ty), mask=(row < num_steps)[:, None])
        out0 = (acc0 * softmax_scale).to(out0_ptr.dtype.element_ty)
        gl.store(out0_ptr + at, out0, mask=(row < num_steps)[:, None])


@gluon.jit(do_not_specialize=SIZES)
def backward(
    near0_desc, near1_desc, far0_desc, far1_desc, mean0_desc, mean1_desc, out0_ptr, out1_ptr, mean0_ptr,
    mean1_ptr,
    lse_ptr, product_ptr, index_ptr, count_ptr, full_ptr, bits_ptr, reader_ptr, offset_ptr, order_ptr,
    limit_ptr, scale, softmax_scale, near0_b, near0_h, near0_c, near1_b, near1_h, near1_c,
    far0_b, far0_h, far0_c, far1_b, far1_h, far1_c, out0_b, out0_h, out0_n, out1_b, out1_h, out1_n,
    heads, groups, rankings, num_steps, num_blocks, slots, words, items, chunks, per_chunk, mean_stride,
    D: gl.constexpr, STAGES: gl.constexpr, ROOM: gl.constexpr, PASS: gl.constexpr,
    CAUSAL: gl.constexpr, SUMMARIES: gl.constexpr, HAS_LIMIT: gl.constexpr,
):  # fmt: skip
    """One pass over all work items; see the head of the file."""
    near0 = gl.allocate_shared_memory(near0_desc.dtype, [2, 64, D], near0_desc.layout)
    near1 = gl.allocate_shared_memory(near1_desc.dtype, [2, 64, D], near1_desc.layout)
    far0 = gl.allocate_shared_memory(far0_desc.dtype, [STAGES, 64, D], far0_desc.layout)
    far1 = gl.allocate_shared_memory(far1_desc.dtype, [STAGES, 64, D], far1_desc.layout)
    near_full = gl.allocate_shared_memory(gl.int64, [1], mbarrier.MBarrierLayout())
    near_free = gl.allocate_shared_memory(gl.int64, [1], mbarrier.MBarrierLayout())
    far_full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    far_free = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    mbarrier.init(near_full, count=1)
    mbarrier.init(near_free, count=2)  # one arrival per warp group
    for i in gl.static_range(STAGES):
        mbarrier.init(far_full.index(i), count=1)
        mbarrier.init(far_free.index(i), count=2)
    turns = gl.allocate_shared_memory(gl.int64, [2, 1], mbarrier.MBarrierLayout())
    mbarrier.init(turns.index(0), count=1)
    mbarrier.init(turns.index(1), count=1)
    fence_async_shared()
    descs = (near0_desc, near1_desc, far0_desc, far1_desc, mean0_desc, mean1_desc)
    buffers = (near0, near1, far0, far1)
    bars = (near_full, near_free, far_full, far_free, turns)
    lists = (index_ptr, count_ptr, full_ptr, bits_ptr, reader_ptr, offset_ptr, order_ptr, limit_ptr)
    sizes = (heads, groups, rankings, num_steps, num_blocks, slots, words, items, chunks, per_chunk)
    terms = (lse_ptr, product_ptr)
    outputs = (
        out0_ptr, out1_ptr, out0_b, out0_h, out0_n, out1_b, out1_h, out1_n, mean0_ptr, mean1_ptr, mean_stride
    )  # fmt: skip
    rows0, rows1 = (near0_b, near0_h, near0_c), (near1_b, near1_h, near1_c)
    rows2, rows3 = (far0_b, far0_h, far0_c), (far1_b, far1_h, far1_c)
    gl.warp_specialize(
        [
            (
                _compute,
                (
                    buffers, bars, lists, sizes, terms, outputs, scale, softmax_scale, gl.to_tensor(0),
                    D, PASS, STAGES, ROOM, CAUSAL, SUMMARIES, HAS_LIMIT,
                ),
            ),
            (
                _compute,
                (
                    buffers, bars, lists, sizes, terms, outputs, scale, softmax_scale, gl.to_tensor(1),
                    D, PASS, STAGES, ROOM, CAUSAL, SUMMARIES, HAS_LIMIT,
                ),
            ),
            (
                loader,
                (descs, buffers, bars, lists, sizes, rows0, rows1, rows2, rows3, PASS, STAGES, CAUSAL,
                SUMMARIES),
            ),
        ],
        [4, 1],
        [240, 24],
    )  # fmt: skip
