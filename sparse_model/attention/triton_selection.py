"""GPU kernels, selection: block scores, the best blocks of a query block, and the lists in both directions.

Nothing here waits for the host: list lengths stay on the device, and buffers have the size of the worst case.
"""

# Triton compiles the kernels and knows their types; it is not installed everywhere.
# pyright: reportMissingImports=false, reportAttributeAccessIssue=false, reportIndexIssue=false
# pyright: reportPossiblyUnboundVariable=false, reportCallIssue=false, reportArgumentType=false, reportGeneralTypeIssues=false
import triton
import triton.language as tl

from sparse_model.attention.triton_forward import SIZES

_LARGEST = tl.constexpr(
    """{
    .reg .b32 a, b, c, d;
    max.f16x2 a, $1, $2;
    max.f16x2 a, a, $3;
    max.f16x2 b, $4, $5;
    max.f16x2 b, b, $6;
    max.f16x2 c, $7, $8;
    max.f16x2 a, a, b;
    max.f16x2 $0, a, c;
    }"""
)


@triton.jit
def _parts(x, ROWS: tl.constexpr, WIDTH: tl.constexpr):
    """Left and right half of the columns, [ROWS, WIDTH] each."""
    return tl.split(tl.permute(tl.reshape(x, [ROWS, 2, WIDTH]), (0, 2, 1)))


@triton.jit
def _largest_of_8(x, ROWS: tl.constexpr, WIDTH: tl.constexpr):
    """Elementwise maximum of eight parts of the columns, [ROWS, WIDTH] float16: two numbers per instruction,
    and three operands where the assembler finds such an instruction."""
    left, right = _parts(x, ROWS, 4 * WIDTH)
    a, b = _parts(left, ROWS, 2 * WIDTH)
    c, d = _parts(right, ROWS, 2 * WIDTH)
    a0, a1 = _parts(a, ROWS, WIDTH)
    b0, b1 = _parts(b, ROWS, WIDTH)
    c0, c1 = _parts(c, ROWS, WIDTH)
    d0, d1 = _parts(d, ROWS, WIDTH)
    return tl.inline_asm_elementwise(
        _LARGEST, "=r,r,r,r,r,r,r,r,r", [a0, a1, b0, b1, c0, c1, d0, d1], dtype=tl.float16, is_pure=True,
        pack=2,
    )  # fmt: skip


@triton.jit
def _block_maxima(x, ROWS: tl.constexpr, BLOCKS: tl.constexpr, WIDTH: tl.constexpr, PACKED: tl.constexpr):
    """Largest value of every row in each of BLOCKS blocks, [ROWS, BLOCKS * WIDTH] to [ROWS, BLOCKS]."""
    if PACKED:  # blocks of 64 steps or more
        x = tl.permute(tl.reshape(x, [ROWS, BLOCKS, 8, WIDTH // 8]), (0, 2, 1, 3))
        x = _largest_of_8(tl.reshape(x, [ROWS, WIDTH * BLOCKS]), ROWS, BLOCKS * WIDTH // 8)
        best = tl.max(tl.reshape(x, [ROWS, BLOCKS, WIDTH // 8]), 2)
    else:
        best = tl.max(tl.reshape(x, [ROWS, BLOCKS, WIDTH]), 2)
    return best


@triton.jit(do_not_specialize=SIZES)
def halve(
    sq_ptr, sk_ptr, sq_out_ptr, sk_out_ptr, sq_b, sq_s, sq_n, sq_e, sk_b, sk_s, sk_n, sk_e,
    rankings, num_steps, channels, scale, ROWS: tl.constexpr, E: tl.constexpr,
):  # fmt: skip
    """Selector queries (times `scale`) and keys as packed float16 [B * S, N, E]; zeros from `channels` on."""
    rows, list_head = tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.program_id(1)
    batch, ranking = (list_head // rankings).to(tl.int64), list_head % rankings
    at, channel = rows.to(tl.int64)[:, None], tl.arange(0, E)[None, :]
    mask = (rows < num_steps)[:, None]
    real = mask & (channel < channels)
    sq = tl.load(sq_ptr + batch * sq_b + ranking * sq_s + at * sq_n + channel * sq_e, mask=real, other=0.0)
    sk = tl.load(sk_ptr + batch * sk_b + ranking * sk_s + at * sk_n + channel * sk_e, mask=real, other=0.0)
    out = (list_head.to(tl.int64) * num_steps + at) * E + channel
    tl.store(sq_out_ptr + out, (sq.to(tl.float32) * scale).to(tl.float16), mask=mask)
    tl.store(sk_out_ptr + out, sk.to(tl.float16), mask=mask)


@triton.jit(do_not_specialize=SIZES)
def maxima(
    sq_ptr, sk_ptr, maxima_ptr, limit_ptr, rankings, num_steps, num_blocks, first_row_block, row_blocks,
    per_chunk,
    BLOCK: tl.constexpr, E: tl.constexpr, TOGETHER: tl.constexpr, AT_ONCE: tl.constexpr,
    CAUSAL: tl.constexpr, HAS_LIMIT: tl.constexpr, PACKED: tl.constexpr,
):  # fmt: skip
    """Largest q'.k' of every row of TOGETHER query blocks in every key block of a chunk, float16 [J, rows] in
    scratch memory that stays in the cache. sq (scaled) and sk are float16 [B * S, N, E]."""
    first, chunk, list_head = tl.program_id(0) * TOGETHER, tl.program_id(1), tl.program_id(2)
    own = first_row_block + first
    limit = tl.load(limit_ptr + list_head // rankings).to(tl.int32) if HAS_LIMIT else num_steps
    row, channels = tl.arange(0, TOGETHER * BLOCK), tl.arange(0, E)
    rows, local = own * BLOCK + row, first + row // BLOCK
    base = list_head.to(tl.int64) * num_steps
    q_at = sq_ptr + (base + rows)[:, None] * E + channels[None, :]
    q = tl.load(q_at, mask=(rows < num_steps)[:, None], other=0.0)
    scratch = maxima_ptr + (list_head.to(tl.int64) * row_blocks + local) * num_blocks * BLOCK + row % BLOCK
    is_here = local < tl.minimum(row_blocks, num_blocks - first_row_block)
    # key blocks before `full` need no mask, those from `seen` on are not permitted
    begin, end = chunk * per_chunk, tl.minimum((chunk + 1) * per_chunk, num_blocks)
    full, seen = limit // BLOCK, (limit + BLOCK - 1) // BLOCK
    if CAUSAL:
        full, seen = tl.minimum(full, own), tl.minimum(seen, own + TOGETHER)
    full, seen = tl.maximum(tl.minimum(full, end), begin), tl.maximum(tl.minimum(seen, end), begin)
    keys = tl.arange(0, BLOCK)
    many = tl.arange(0, BLOCK * AT_ONCE)
    unmasked = begin + (full - begin) // AT_ONCE * AT_ONCE
    for block in range(begin, unmasked, AT_ONCE):
        k = tl.load(sk_ptr + (base + block * BLOCK + many)[:, None] * E + channels[None, :])
        logits = tl.dot(q, k.T, out_dtype=tl.float16)
        best = _block_maxima(logits, TOGETHER * BLOCK, AT_ONCE, BLOCK, PACKED)
        at = scratch[:, None] + (block + tl.arange(0, AT_ONCE))[None, :] * BLOCK
        tl.store(at, best, mask=is_here[:, None])
    for block in range(unmasked, seen):
        columns = block * BLOCK + keys
        k_at = sk_ptr + (base + columns)[:, None] * E + channels[None, :]
        k = tl.load(k_at, mask=(columns < limit)[:, None], other=0.0)
        is_open = (columns < limit)[None, :]
        if CAUSAL:
            is_open = is_open & (columns[None, :] <= rows[:, None])
        logits = tl.where(is_open, tl.dot(q, k.T, out_dtype=tl.float16), float("-inf"))
        tl.store(scratch + block * BLOCK, tl.max(logits, 1), mask=is_here)


@triton.jit(do_not_specialize=SIZES)
def score(
    maxima_ptr, score_ptr, limit_ptr, rankings, num_steps, num_blocks, first_row_block, row_blocks,
    BLOCK: tl.constexpr, SWEEP: tl.constexpr, CAUSAL: tl.constexpr, HAS_LIMIT: tl.constexpr,
):  # fmt: skip
    """Scores of one query block against all key blocks (see `selection.block_scores`), from `maxima`.

    One sweep for the rows' log-sum-exp, kept per row and place in the sweep, and one for the maximum over
    the rows.
    """
    local, list_head = tl.program_id(0), tl.program_id(1)
    own = first_row_block + local
    limit = tl.load(limit_ptr + list_head // rankings).to(tl.int32) if HAS_LIMIT else num_steps
    rows = tl.arange(0, BLOCK)
    scratch = maxima_ptr + (list_head.to(tl.int64) * row_blocks + local) * num_blocks * BLOCK + rows
    seen = tl.minimum((limit + BLOCK - 1) // BLOCK, num_blocks)
    if CAUSAL:
        seen = tl.minimum(seen, own + 1)
    sweep = tl.arange(0, SWEEP)
    top = tl.full([SWEEP, BLOCK], float("-inf"), tl.float32)
    total = tl.zeros([SWEEP, BLOCK], tl.float32)
    for first in range(0, seen, SWEEP):
        blocks = (first + sweep)[:, None]
        best = tl.load(scratch[None, :] + blocks * BLOCK, mask=blocks < seen, other=float("-inf"))
        best = best.to(tl.float32)
        new_top = tl.maximum(top, best)
        # of the two exponentials of an online sum one is of zero
        below = tl.exp(tl.minimum(top, best) - tl.where(new_top == float("-inf"), 0.0, new_top))
        total = tl.where(best > top, total * below + 1.0, total + below)
        top = new_top
    row_top = tl.max(top, 0)
    shift = tl.where(row_top == float("-inf"), 0.0, row_top)
    row_total = tl.sum(total * tl.exp(top - shift[None, :]), 0)
    exists = (own * BLOCK + rows < limit) & (row_total > 0.0)
    norm = tl.where(exists, shift + tl.log(tl.where(exists, row_total, 1.0)), float("inf"))
    out = score_ptr + (list_head.to(tl.int64) * num_blocks + own) * num_blocks
    for first in range(0, num_blocks, SWEEP):
        blocks = first + sweep
        best = tl.load(
            scratch[None, :] + blocks[:, None] * BLOCK, mask=(blocks < seen)[:, None], other=float("-inf")
        )
        tl.store(out + blocks, tl.max(best.to(tl.float32) - norm[None, :], 1), mask=blocks < num_blocks)


@triton.jit(do_not_specialize=SIZES)
def best_blocks(
    score_ptr, index_ptr, count_ptr, limit_ptr, rankings, num_steps, num_blocks, num_selected, top_p,
    BLOCK: tl.constexpr, J_POW2: tl.constexpr, CAUSAL: tl.constexpr, HAS_LIMIT: tl.constexpr,
    HAS_TOP_P: tl.constexpr,
):  # fmt: skip
    """The `num_selected` best permitted blocks of one query block, ascending, the own block among them.

    The smallest score that is still selected is found by bisection on the ordered bit pattern of the
    scores, so nothing is sorted; of equal scores the earlier blocks are taken. With `top_p`, of those only
    as many as it takes, from the best down, to hold that share of the softmax over permitted blocks.
    """
    own, list_head = tl.program_id(0), tl.program_id(1)
    limit = tl.load(limit_ptr + list_head // rankings).to(tl.int32) if HAS_LIMIT else num_steps
    list_row = list_head.to(tl.int64) * num_blocks + own
    blocks = tl.arange(0, J_POW2)
    permitted = (blocks < num_blocks) & (blocks * BLOCK < limit)
    if CAUSAL:
        permitted = permitted & (blocks <= own)
    scores = tl.load(score_ptr + list_row * num_blocks + blocks, mask=permitted, other=float("-inf"))
    if HAS_TOP_P:
        weights = tl.exp(scores - tl.maximum(tl.max(scores, 0), -1e30))
        share = weights / tl.maximum(tl.sum(weights, 0), 1e-30)
    scores = tl.where(blocks == own, float("inf"), scores)
    bits = scores.to(tl.int32, bitcast=True)
    order = tl.where(bits >= 0, bits, bits ^ 0x7FFFFFFF).to(tl.int64)  # as integers, ordered like the scores
    order = tl.where(permitted, order, -(1 << 33))
    wanted = tl.minimum(tl.sum(permitted.to(tl.int32), 0), num_selected)
    low, high = tl.full([], -(1 << 31), tl.int64), tl.full([], 1 << 31, tl.int64)
    for _ in range(0, 32):  # at least `wanted` blocks reach `low`; fewer reach `high`
        middle = (low + high) >> 1
        enough = tl.sum((order >= middle).to(tl.int32), 0) >= wanted
        low, high = tl.where(enough, middle, low), tl.where(enough, high, middle)
    above, tied = order > low, order == low
    room = wanted - tl.sum(above.to(tl.int32), 0)
    chosen = above | (tied & (tl.cumsum(tied.to(tl.int32), 0) <= room))
    if HAS_TOP_P:
        low, high = tl.full([], -(1 << 31), tl.int64), tl.full([], 1 << 31, tl.int64)
        for _ in range(0, 32):  # beyond `high` lies less than `top_p`, beyond `low` does not
            middle = (low + high) >> 1
            less = tl.sum(tl.where(order > middle, share, 0.0), 0) < top_p
            low, high = tl.where(less, low, middle), tl.where(less, middle, high)
        # of blocks tied at `high`, as many as are still needed
        tied_share = tl.where(order == high, share, 0.0)
        before = tl.sum(tl.where(order > high, share, 0.0), 0) + tl.cumsum(tied_share, 0) - tied_share
        chosen = chosen & ((order > high) | ((order == high) & (before < top_p)))
        wanted = tl.sum(chosen.to(tl.int32), 0)
    slot = tl.cumsum(chosen.to(tl.int32), 0) - 1
    tl.store(index_ptr + list_row * num_selected + slot, blocks, mask=chosen)
    tl.store(
        index_ptr + list_row * num_selected + blocks,
        num_blocks - 1,
        mask=(blocks >= wanted) & (blocks < num_selected),
    )
    tl.store(count_ptr + list_row, wanted)


@triton.jit(do_not_specialize=SIZES)
def read_bits(
    index_ptr, count_ptr, bits_ptr, full_ptr, limit_ptr, rankings, num_steps, num_blocks, slots, words,
    BLOCK: tl.constexpr, SLOTS_POW2: tl.constexpr, WORDS_POW2: tl.constexpr, CAUSAL: tl.constexpr,
    HAS_LIMIT: tl.constexpr,
):  # fmt: skip
    """One bit per permitted block on a query block's list; how many need no mask.

    Lists are ascending, so the blocks that need one (a partial last block, the diagonal) stand at the end.
    """
    own, list_head = tl.program_id(0), tl.program_id(1)
    limit = tl.load(limit_ptr + list_head // rankings).to(tl.int32) if HAS_LIMIT else num_steps
    list_row = list_head.to(tl.int64) * num_blocks + own
    slot = tl.arange(0, SLOTS_POW2)
    listed = slot < tl.load(count_ptr + list_row)
    block = tl.load(index_ptr + list_row * slots + slot, mask=listed, other=0).to(tl.int32)
    full_blocks = tl.minimum(limit // BLOCK, own) if CAUSAL else limit // BLOCK
    tl.store(full_ptr + list_row, tl.sum((listed & (block < full_blocks)).to(tl.int32), 0))
    listed = listed & (block * BLOCK < limit) & (own * BLOCK < limit)
    if CAUSAL:
        listed = listed & (block <= own)
    word = tl.arange(0, WORDS_POW2)
    tl.store(bits_ptr + list_row * words + word, 0, mask=word < words)
    tl.debug_barrier()  # other threads of this program set bits in these words
    tl.atomic_or(bits_ptr + list_row * words + block // 32, 1 << (block % 32), mask=listed, sem="relaxed")


@triton.jit
def _readers(bits_ptr, list_head, word, num_blocks, words, first, ROWS: tl.constexpr):
    """int32 [ROWS, 32]: 1 where query block `first + row` reads key block `word * 32 + column`."""
    rows = first + tl.arange(0, ROWS)
    at = bits_ptr + (list_head.to(tl.int64) * num_blocks + rows) * words + word
    word_of_row = tl.load(at, mask=rows < num_blocks, other=0)
    return (word_of_row[:, None] >> tl.arange(0, 32)[None, :]) & 1


@triton.jit(do_not_specialize=SIZES)
def count_readers(bits_ptr, count_ptr, num_blocks, words, ROWS: tl.constexpr):
    """How many query blocks read each of 32 key blocks."""
    word, list_head = tl.program_id(0), tl.program_id(1)
    total = tl.zeros([32], tl.int32)
    for first in range(0, num_blocks, ROWS):
        total += tl.sum(_readers(bits_ptr, list_head, word, num_blocks, words, first, ROWS), 0)
    blocks = word * 32 + tl.arange(0, 32)
    tl.store(count_ptr + list_head * num_blocks + blocks, total, mask=blocks < num_blocks)


@triton.jit(do_not_specialize=SIZES)
def place_readers(
    count_ptr, offset_ptr, order_ptr, num_blocks, list_heads, ROWS: tl.constexpr, COLUMNS: tl.constexpr
):
    """Where the readers of each key block begin, and the key blocks of a list head by number of readers."""
    blocks, list_head = tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.program_id(1)
    base = list_head * num_blocks
    own = tl.load(count_ptr + base + blocks, mask=blocks < num_blocks, other=0)
    before = tl.zeros([ROWS], tl.int32)
    rank = tl.zeros([ROWS], tl.int32)
    columns = tl.arange(0, COLUMNS)
    for first in range(0, base, COLUMNS):
        before += tl.sum(tl.load(count_ptr + first + columns, mask=first + columns < base, other=0), 0)
    for first in range(0, num_blocks, COLUMNS):
        other = first + columns
        count = tl.load(count_ptr + base + other, mask=other < num_blocks, other=-1)[None, :]
        earlier = (other[None, :] < blocks[:, None]) & (count >= 0)
        before += tl.sum(tl.where(earlier, count, 0), 1)
        ahead = (count > own[:, None]) | ((count == own[:, None]) & earlier)
        rank += tl.sum(ahead.to(tl.int32), 1)
    tl.store(offset_ptr + base + blocks, before, mask=blocks < num_blocks)
    tl.store(order_ptr + base + rank, blocks, mask=blocks < num_blocks)
    last = (list_head == list_heads - 1) & (blocks == num_blocks - 1)
    tl.store(offset_ptr + base + blocks + 1, before + own, mask=last)


@triton.jit(do_not_specialize=SIZES)
def list_readers(bits_ptr, offset_ptr, reader_ptr, num_blocks, words, ROWS: tl.constexpr):
    """The transposed lists: query blocks that read each of 32 key blocks, ascending, from `offset` on."""
    word, list_head = tl.program_id(0), tl.program_id(1)
    blocks = word * 32 + tl.arange(0, 32)
    at = tl.load(offset_ptr + list_head * num_blocks + blocks, mask=blocks < num_blocks, other=0)
    for first in range(0, num_blocks, ROWS):
        reads = _readers(bits_ptr, list_head, word, num_blocks, words, first, ROWS)
        position = at[None, :] + tl.cumsum(reads, 0) - 1
        rows = (first + tl.arange(0, ROWS))[:, None] + tl.zeros_like(reads)
        tl.store(reader_ptr + position, rows, mask=reads > 0)
        at += tl.sum(reads, 0)
