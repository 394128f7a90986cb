"""The forward kernel written for Hopper GPUs: one warp loads, two warp groups compute.

Plain Triton waits for a product before its softmax, so the tensor cores idle during exponentials. Here each
warp group issues the next product before the softmax of the current one, the two groups drift apart and fill
each other's gaps, and programs are persistent, so that the next query block loads while this one ends.

A tile is 128 query rows (64 per warp group) by 128 keys, so blocks are of 128 steps. Suffixes as in
triton_forward.py. `t` counts tiles over all work of a program: buffer t % STAGES, phase t // STAGES.
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
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)

from sparse_model.attention.triton_forward import SIZES


@gluon.jit
def _work(item, lists, sizes, CAUSAL: gl.constexpr, SUMMARIES: gl.constexpr):
    """Place and list of one work item (a query block of a head), and its number of tiles of each kind."""
    _index_ptr, count_ptr, full_ptr, _bits_ptr, _limit_ptr = lists
    heads, _groups, rankings, _num_steps, num_blocks, _slots, _words, _items = sizes
    own, head = item % num_blocks, item // num_blocks
    batch, h = head // heads, head % heads
    list_row = (batch * rankings + h // (heads // rankings)) * num_blocks + own
    count, num_full = gl.load(count_ptr + list_row).to(gl.int32), gl.load(full_ptr + list_row)
    num_summary = count * 0
    if SUMMARIES:
        num_summary = (num_blocks + 127) // 128
        if CAUSAL:
            num_summary = (own + 127) // 128
    return own, batch, h, list_row, count, num_full, num_summary


@gluon.jit
def _load(desc, row, column, bufs, full, free, t, STAGES: gl.constexpr):
    """Fetch one tile into buffer t % STAGES once both warp groups have left it."""
    mbarrier.wait(free.index(t % STAGES), ((t // STAGES) & 1) ^ 1)
    mbarrier.expect(full.index(t % STAGES), desc.block_type.nbytes)
    tma.async_copy_global_to_shared(desc, [row, column], full.index(t % STAGES), bufs.index(t % STAGES))


@gluon.jit
def _loader(
    descs,
    buffers,
    bars,
    lists,
    sizes,
    rows,
    STAGES: gl.constexpr,
    CAUSAL: gl.constexpr,
    SUMMARIES: gl.constexpr,
):
    """The loading warp: q once per work item, then keys and values tile by tile."""
    q_desc, k_desc, v_desc, mean_k_desc, mean_v_desc = descs
    q_bufs, k_bufs, v_bufs = buffers
    q_full, q_free, k_full, k_free, v_full, v_free = bars
    heads, groups, _rankings, _num_steps, num_blocks, slots, _words, items = sizes
    q_row_b, q_row_h, q_col_h, k_row_b, k_row_g, k_col_g, v_row_b, v_row_g, v_col_g = rows
    t = 0
    turn = 0
    for item in range(gl.program_id(0), items, gl.num_programs(0)):
        own, batch, h, list_row, count, num_full, num_summary = _work(item, lists, sizes, CAUSAL, SUMMARIES)
        g = h // (heads // groups)
        mbarrier.wait(q_free, (turn & 1) ^ 1)
        mbarrier.expect(q_full, 2 * q_desc.block_type.nbytes)
        q_row = batch * q_row_b + h * q_row_h + own * 128
        tma.async_copy_global_to_shared(q_desc, [q_row, h * q_col_h], q_full, q_bufs.index(0))
        tma.async_copy_global_to_shared(q_desc, [q_row + 64, h * q_col_h], q_full, q_bufs.index(1))
        turn += 1  # noqa: SIM113  kernels have no enumerate
        mean_row = (batch * groups + g) * num_blocks
        for i in range(0, num_summary):
            _load(mean_k_desc, mean_row + i * 128, 0, k_bufs, k_full, k_free, t, STAGES)
            _load(mean_v_desc, mean_row + i * 128, 0, v_bufs, v_full, v_free, t, STAGES)
            t += 1
        list_ptr = lists[0] + list_row.to(gl.int64) * slots
        # blocks that need a mask stand at the end of the list and are computed first
        for i in range(0, count):
            slot = num_full + i
            slot = gl.where(slot >= count, slot - count, slot)
            first = gl.load(list_ptr + slot).to(gl.int32) * 128
            _load(
                k_desc, batch * k_row_b + g * k_row_g + first, g * k_col_g, k_bufs, k_full, k_free, t, STAGES
            )
            _load(
                v_desc, batch * v_row_b + g * v_row_g + first, g * v_col_g, v_bufs, v_full, v_free, t, STAGES
            )
            t += 1


@gluon.jit
def _release(free, t, STAGES: gl.constexpr):
    """Tell the loader that this warp group has left buffer t % STAGES."""
    mbarrier.arrive(free.index(t % STAGES), count=1)


@gluon.jit
def _masked(
    logits, i, place, lists, sizes, scale, row,
    CAUSAL: gl.constexpr, SUMMARIES: gl.constexpr, HAS_LIMIT: gl.constexpr, S: gl.constexpr,
):  # fmt: skip
    """Logits of tile i: closed where nothing may be read, raised by log(count) where it holds summaries."""
    own, batch, _h, list_row, _count, num_full, num_summary = place
    limit = sizes[3]
    if HAS_LIMIT:
        limit = gl.load(lists[4] + batch).to(gl.int32)
    if SUMMARIES:
        if i < num_summary:
            # computed with one block per thread, then spread to all columns
            block = i * 128 + gl.arange(0, 128, gl.BlockedLayout([1], [32], [4], [0]))
            bias = summary_bias(lists[3], list_row, block, own, limit, sizes[4], sizes[6], CAUSAL) / scale
            logits = logits + gl.convert_layout(bias, gl.SliceLayout(0, S))[None, :]
        else:
            slot = list_row.to(gl.int64) * sizes[5] + num_full + i - num_summary
            logits = _masked_steps(logits, gl.load(lists[0] + slot), limit, row, CAUSAL, S)
    else:
        slot = list_row.to(gl.int64) * sizes[5] + num_full + i
        logits = _masked_steps(logits, gl.load(lists[0] + slot), limit, row, CAUSAL, S)
    return logits


@gluon.jit
def _masked_steps(logits, block, limit, row, CAUSAL: gl.constexpr, S: gl.constexpr):
    """Logits of a block's steps, closed beyond the end and, if causal, beyond the row."""
    key = block.to(gl.int32) * 128 + gl.arange(0, 128, gl.SliceLayout(0, S))
    logits = gl.where((key < limit)[None, :], logits, float("-inf"))
    if CAUSAL:
        logits = gl.where(key[None, :] <= row[:, None], logits, float("-inf"))
    return logits


@gluon.jit
def summary_bias(bits_ptr, bits_row, block, own, limit, num_blocks, words, CAUSAL: gl.constexpr):
    """log2(number of steps) of blocks that query block `own` reads as a summary, -inf for all others."""
    inside = block < num_blocks
    word = gl.load(bits_ptr + bits_row.to(gl.int64) * words + block // 32, mask=inside, other=-1)
    size = gl.minimum(limit - block * 128, 128)
    is_open = (((word >> (block % 32)) & 1) == 0) & (size > 0) & inside
    if CAUSAL:
        is_open = is_open & (block < own)
    return gl.where(is_open, gl.log2(gl.maximum(size, 1).to(gl.float32)), float("-inf"))


@gluon.jit
def _row_max(x, S: gl.constexpr, SIDE_BY_SIDE: gl.constexpr):
    """Maximum of every row; with SIDE_BY_SIDE of eight parts first, for one chain of maxima can stall."""
    if SIDE_BY_SIDE:
        x = gl.max(gl.reshape(x, [64, 8, 16]), 1)
    return gl.convert_layout(gl.max(x, 1), gl.SliceLayout(1, S))


@gluon.jit
def _soften(logits, top, total, scale, S: gl.constexpr, SIDE_BY_SIDE: gl.constexpr):
    """Online softmax: unnormalised weights, new maximum and sum, and by how much older sums shrink."""
    new_top = gl.maximum(top, _row_max(logits, S, SIDE_BY_SIDE) * scale)
    shift = gl.where(new_top == float("-inf"), 0.0, new_top)  # a row may have read nothing yet
    weights = gl.exp2(logits * scale - shift[:, None])
    decay = gl.exp2(top - shift)
    return weights, new_top, total * decay + gl.sum(weights, 1), decay


@gluon.jit
def _compute(
    buffers, bars, lists, sizes, outputs, scale, group,
    D: gl.constexpr, STAGES: gl.constexpr, CAUSAL: gl.constexpr, SUMMARIES: gl.constexpr,
    HAS_LIMIT: gl.constexpr,
):  # fmt: skip
    """One warp group: 64 query rows of every work item."""
    q_bufs, k_bufs, v_bufs = buffers
    q_full, q_free, k_full, k_free, v_full, v_free = bars
    heads, _groups, _rankings, num_steps, _num_blocks, _slots, _words, items = sizes
    out_ptr, lse_ptr, out_b, out_h, out_n = outputs
    S: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, 128, 16])
    OUT: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, D, 16])
    P: gl.constexpr = gl.DotOperandLayout(operand_index=0, parent=OUT, k_width=2)
    # at 64 channels the products wait for shared memory, and registers are free
    Q_IN_REGISTERS: gl.constexpr = D == 64
    Q: gl.constexpr = gl.DotOperandLayout(operand_index=0, parent=S, k_width=2)
    q_shared = q_bufs.index(group)
    zero = gl.zeros([64, 128], gl.float32, S)
    t = 0
    turn = 0
    for item in range(gl.program_id(0), items, gl.num_programs(0)):
        place = _work(item, lists, sizes, CAUSAL, SUMMARIES)
        own, batch, h, _list_row, count, num_full, num_summary = place
        num_tiles = num_summary + count
        num_masked = num_tiles - num_full
        limit = num_steps
        if HAS_LIMIT:
            limit = gl.load(lists[4] + batch).to(gl.int32)
        row = own * 128 + group * 64 + gl.arange(0, 64, gl.SliceLayout(1, S))
        acc = gl.zeros([64, D], gl.float32, OUT)
        top = gl.full([64], float("-inf"), gl.float32, gl.SliceLayout(1, S))
        total = gl.zeros([64], gl.float32, gl.SliceLayout(1, S))
        mbarrier.wait(q_full, turn & 1)
        turn += 1  # noqa: SIM113  kernels have no enumerate
        if Q_IN_REGISTERS:
            q = q_shared.load(Q)
            mbarrier.arrive(q_free, count=1)
        else:
            q = q_shared
        if num_tiles > 0:
            mbarrier.wait(k_full.index(t % STAGES), (t // STAGES) & 1)
            logits = warpgroup_mma(
                q, k_bufs.index(t % STAGES).permute((1, 0)), zero, use_acc=False, is_async=True
            )
            logits = warpgroup_mma_wait(0, deps=(logits,))
            _release(k_free, t, STAGES)
            if num_masked > 0:
                logits = _masked(logits, 0, place, lists, sizes, scale, row, CAUSAL, SUMMARIES, HAS_LIMIT, S)
            weights, top, total, decay = _soften(logits, top, total, scale, S, D == 64)
            weights16 = gl.convert_layout(weights.to(v_bufs.dtype), P)
            for i in range(1, num_tiles):
                # the next product is issued before this tile's; its softmax runs while this one is in flight
                following = t + 1
                mbarrier.wait(k_full.index(following % STAGES), (following // STAGES) & 1)
                k = k_bufs.index(following % STAGES).permute((1, 0))
                logits = warpgroup_mma(q, k, zero, use_acc=False, is_async=True)
                mbarrier.wait(v_full.index(t % STAGES), (t // STAGES) & 1)
                pending = warpgroup_mma(weights16, v_bufs.index(t % STAGES), acc, is_async=True)
                logits = warpgroup_mma_wait(1, deps=(logits,))
                _release(k_free, following, STAGES)
                if i < num_masked:
                    logits = _masked(
                        logits, i, place, lists, sizes, scale, row, CAUSAL, SUMMARIES, HAS_LIMIT, S
                    )
                weights, top, total, decay = _soften(logits, top, total, scale, S, D == 64)
                # already true: a fence, or the assembler waits for the product before the softmax
                mbarrier.wait(v_full.index(t % STAGES), (t // STAGES) & 1)
                # the weights are an operand of the product in flight: they must outlive it
                acc, weights16 = warpgroup_mma_wait(0, deps=(pending, weights16))
                _release(v_free, t, STAGES)
                acc = acc * gl.convert_layout(decay, gl.SliceLayout(1, OUT))[:, None]
                weights16 = gl.convert_layout(weights.to(v_bufs.dtype), P)
                t = following
            mbarrier.wait(v_full.index(t % STAGES), (t // STAGES) & 1)
            pending = warpgroup_mma(weights16, v_bufs.index(t % STAGES), acc, is_async=True)
            acc, weights16 = warpgroup_mma_wait(0, deps=(pending, weights16))
            _release(v_free, t, STAGES)
            t += 1
        if not Q_IN_REGISTERS:
            mbarrier.arrive(q_free, count=1)
        exists = (row < limit) & (total > 0.0)
        total = gl.where(exists, total, 1.0)
        lse = gl.where(exists, top + gl.log2(total), float("inf"))
        gl.store(lse_ptr + (batch * heads + h).to(gl.int64) * num_steps + row, lse, mask=row < num_steps)
        share = gl.convert_layout(gl.where(exists, 1.0 / total, 0.0), gl.SliceLayout(1, OUT))
        out_row = own * 128 + group * 64 + gl.arange(0, 64, gl.SliceLayout(1, OUT))
        channel = gl.arange(0, D, gl.SliceLayout(0, OUT))
        at = out_ptr + batch.to(gl.int64) * out_b + h * out_h + out_row.to(gl.int64)[:, None] * out_n
        out = (acc * share[:, None]).to(out_ptr.dtype.element_ty)
        gl.store(at + channel[None, :], out, mask=(out_row < num_steps)[:, None])


@gluon.jit(do_not_specialize=SIZES)
def forward(
    q_desc, k_desc, v_desc, mean_k_desc, mean_v_desc,
    out_ptr, lse_ptr, index_ptr, count_ptr, full_ptr, bits_ptr, limit_ptr, scale,
    q_row_b, q_row_h, q_col_h, k_row_b, k_row_g, k_col_g, v_row_b, v_row_g, v_col_g, out_b, out_h, out_n,
    heads, groups, rankings, num_steps, num_blocks, slots, words, items,
    D: gl.constexpr, STAGES: gl.constexpr, CAUSAL: gl.constexpr, SUMMARIES: gl.constexpr,
    HAS_LIMIT: gl.constexpr,
):  # fmt: skip
    """Same function as triton_forward.forward for blocks of 128 steps and 64 or 128 channels of 16 bits."""
    q_bufs = gl.allocate_shared_memory(q_desc.dtype, [2, 64, D], q_desc.layout)
    k_bufs = gl.allocate_shared_memory(k_desc.dtype, [STAGES, 128, D], k_desc.layout)
    v_bufs = gl.allocate_shared_memory(v_desc.dtype, [STAGES, 128, D], v_desc.layout)
    q_full = gl.allocate_shared_memory(gl.int64, [1], mbarrier.MBarrierLayout())
    q_free = gl.allocate_shared_memory(gl.int64, [1], mbarrier.MBarrierLayout())
    k_full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    k_free = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    v_full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    v_free = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    mbarrier.init(q_full, count=1)
    mbarrier.init(q_free, count=2)
    for i in gl.static_range(STAGES):
        mbarrier.init(k_full.index(i), count=1)
        mbarrier.init(v_full.index(i), count=1)
        mbarrier.init(k_free.index(i), count=2)  # one arrival per warp group
        mbarrier.init(v_free.index(i), count=2)
    descs = (q_desc, k_desc, v_desc, mean_k_desc, mean_v_desc)
    buffers = (q_bufs, k_bufs, v_bufs)
    fence_async_shared()
    bars = (q_full, q_free, k_full, k_free, v_full, v_free)
    lists = (index_ptr, count_ptr, full_ptr, bits_ptr, limit_ptr)
    sizes = (heads, groups, rankings, num_steps, num_blocks, slots, words, items)
    rows = (q_row_b, q_row_h, q_col_h, k_row_b, k_row_g, k_col_g, v_row_b, v_row_g, v_col_g)
    outputs = (out_ptr, lse_ptr, out_b, out_h, out_n)
    gl.warp_specialize(
        [
            (
                _compute,
                (
                    buffers,
                    bars,
                    lists,
                    sizes,
                    outputs,
                    scale,
                    gl.to_tensor(0),
                    D,
                    STAGES,
                    CAUSAL,
                    SUMMARIES,
                    HAS_LIMIT,
                ),
            ),
            (
                _compute,
                (
                    buffers,
                    bars,
                    lists,
                    sizes,
                    outputs,
                    scale,
                    gl.to_tensor(1),
                    D,
                    STAGES,
                    CAUSAL,
                    SUMMARIES,
                    HAS_LIMIT,
                ),
            ),
            (_loader, (descs, buffers, bars, lists, sizes, rows, STAGES, CAUSAL, SUMMARIES)),
        ],
        [4, 1],
        [240, 24],
    )
