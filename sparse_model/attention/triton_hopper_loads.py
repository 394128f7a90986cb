"""The loading side of the Hopper backward kernels: what a work item reads, and the warp that fetches it.

See triton_hopper_backward.py for the passes and for `near` and `far`.
"""

# Triton compiles the kernels and knows their types; it is not installed everywhere.
# pyright: reportMissingImports=false, reportAttributeAccessIssue=false, reportIndexIssue=false
# pyright: reportOperatorIssue=false, reportAssignmentType=false
# pyright: reportCallIssue=false, reportArgumentType=false, reportGeneralTypeIssues=false
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import mbarrier, tma

QUERIES, KEYS, MEANS = gl.constexpr(0), gl.constexpr(1), gl.constexpr(2)


@gluon.jit
def work_item(item, lists, sizes, PASS: gl.constexpr, CAUSAL: gl.constexpr, SUMMARIES: gl.constexpr):
    """Sequence, head (of q in QUERIES, else of k), block, chunk, and summary tiles before the list's."""
    heads, groups, rankings, _num_steps, num_blocks, _slots, _words, items, chunks, _per_chunk = sizes
    chunk = 0
    before = 0
    if PASS == QUERIES:
        block, head, rows = item % num_blocks, item // num_blocks, heads
        if SUMMARIES:
            before = (num_blocks + 63) // 64
            if CAUSAL:
                before = (block + 63) // 64
    elif PASS == KEYS:
        # the most read blocks of all heads first
        heads_of_all = items // num_blocks
        head, rows = item % heads_of_all, groups
        ranking = head % groups * (heads // groups) // (heads // rankings)
        block = gl.load(lists[6] + (head // groups * rankings + ranking) * num_blocks + item // heads_of_all)
    else:
        tiles = (num_blocks + 127) // 128
        block, chunk, head, rows = item % tiles, item // tiles % chunks, item // tiles // chunks, groups
    return head // rows, head % rows, block, chunk, before


@gluon.jit
def span_of(batch, h, block, chunk, lists, sizes, PASS: gl.constexpr, CAUSAL: gl.constexpr):
    """Row of the list in question, and first and last entry: of the list, or of the chunk of query blocks."""
    heads, _groups, rankings, _num_steps, num_blocks, slots, _words, _items, _chunks, per_chunk = sizes
    _index_ptr, count_ptr, _full_ptr, _bits_ptr, _reader_ptr, offset_ptr, _order_ptr, _limit_ptr = lists
    list_row = (batch * rankings + h // (heads // rankings)) * num_blocks
    if PASS == QUERIES:
        start = (list_row + block) * slots
        stop = start + gl.load(count_ptr + list_row + block).to(gl.int32)
    elif PASS == KEYS:
        start, stop = gl.load(offset_ptr + list_row + block), gl.load(offset_ptr + list_row + block + 1)
    else:
        start, stop = chunk * per_chunk, gl.minimum((chunk + 1) * per_chunk, num_blocks)
        if CAUSAL:
            start = gl.minimum(gl.maximum(start, block * 128 + 1), stop)
    return list_row, start, stop


@gluon.jit
def entry(i, lists, PASS: gl.constexpr):
    """Block number at place i of a list."""
    if PASS == QUERIES:
        block = gl.load(lists[0] + i).to(gl.int32)
    elif PASS == KEYS:
        block = gl.load(lists[4] + i)
    else:
        block = i
    return block


@gluon.jit
def _fetch(desc0, desc1, row0, column0, row1, column1, far0, far1, full, free, t, STAGES: gl.constexpr):
    """Load the two tiles that stream by into buffer t % STAGES, once both warp groups have left it."""
    bar = full.index(t % STAGES)
    mbarrier.wait(free.index(t % STAGES), ((t // STAGES) & 1) ^ 1)
    mbarrier.expect(bar, 2 * desc0.block_type.nbytes)
    tma.async_copy_global_to_shared(desc0, [row0, column0], bar, far0.index(t % STAGES))
    tma.async_copy_global_to_shared(desc1, [row1, column1], bar, far1.index(t % STAGES))


@gluon.jit
def loader(
    descs, buffers, bars, lists, sizes, rows0, rows1, rows2, rows3,
    PASS: gl.constexpr, STAGES: gl.constexpr, CAUSAL: gl.constexpr, SUMMARIES: gl.constexpr,
):  # fmt: skip
    """The loading warp. Rows 0 and 1 place the near operands, 2 and 3 the far ones (triton_launch.Rows)."""
    near0_desc, near1_desc, far0_desc, far1_desc, mean0_desc, mean1_desc = descs
    near0, near1, far0, far1 = buffers
    near_full, near_free, far_full, far_free, _turns = bars
    heads, groups, _rankings, _num_steps, num_blocks, _slots, _words, items, _chunks, _per_chunk = sizes
    t = 0
    turn = 0
    for item in range(gl.program_id(0), items, gl.num_programs(0)):
        batch, h, block, chunk, before = work_item(item, lists, sizes, PASS, CAUSAL, SUMMARIES)
        mbarrier.wait(near_free, (turn & 1) ^ 1)
        mbarrier.expect(near_full, 4 * near0_desc.block_type.nbytes)
        turn += 1  # noqa: SIM113  kernels have no enumerate
        row0 = batch * rows0[0] + h * rows0[1] + block * 128
        row1 = batch * rows1[0] + h * rows1[1] + block * 128
        tma.async_copy_global_to_shared(near0_desc, [row0, h * rows0[2]], near_full, near0.index(0))
        tma.async_copy_global_to_shared(near0_desc, [row0 + 64, h * rows0[2]], near_full, near0.index(1))
        tma.async_copy_global_to_shared(near1_desc, [row1, h * rows1[2]], near_full, near1.index(0))
        tma.async_copy_global_to_shared(near1_desc, [row1 + 64, h * rows1[2]], near_full, near1.index(1))
        first_head = h
        num_heads = 1
        if PASS != QUERIES:
            first_head = h * (heads // groups)
            num_heads = heads // groups
        for i in range(0, before):
            row = (batch * groups + h // (heads // groups)) * num_blocks + i * 64
            _fetch(mean0_desc, mean1_desc, row, 0, row, 0, far0, far1, far_full, far_free, t, STAGES)
            t += 1
        for head in range(first_head, first_head + num_heads):
            _list_row, start, stop = span_of(batch, head, block, chunk, lists, sizes, PASS, CAUSAL)
            far_head = head
            if PASS == QUERIES:
                far_head = head // (heads // groups)
            for i in range(start * 2, stop * 2):
                step = entry(i // 2, lists, PASS) * 128 + i % 2 * 64
                row2 = batch * rows2[0] + far_head * rows2[1] + step
                row3 = batch * rows3[0] + far_head * rows3[1] + step
                _fetch(
                    far0_desc, far1_desc, row2, far_head * rows2[2], row3, far_head * rows3[2],
                    far0, far1, far_full, far_free, t, STAGES,
                )  # fmt: skip
                t += 1
