// Which key blocks a block of queries reads (sparse_model.attention.selection), in float32.
//
// Rows of queries lie side by side in a vector, keys are single numbers: the largest product over a block of
// keys is then one maximum after another, without a sum across a vector.

// best[row] = the largest product of each of PANEL rows with `count` keys. queries [channels][PANEL], keys [count, channels].
INLINE void best_of(int count, long channels, const float *queries, const float *keys, Vector best[2]) {
    Vector sums[STRIP][2];
    UNROLL
    for (int i = 0; i < count; i++) sums[i][0] = sums[i][1] = splat(0.0f);
    for (long e = 0; e < channels; e++) {
        const Vector left = load(queries + PANEL * e), right = load(queries + PANEL * e + LANES);
        UNROLL
        for (int i = 0; i < count; i++) {
            const Vector key = splat(keys[i * channels + e]);
            sums[i][0] += key * left;
            sums[i][1] += key * right;
        }
    }
    UNROLL
    for (int i = 0; i < count; i++) {
        best[0] = larger(best[0], sums[i][0]);
        best[1] = larger(best[1], sums[i][1]);
    }
}

static void best_of_block(long count, long channels, const float *queries, const float *keys, float *out) {
    Vector best[2] = {splat(-INFINITY), splat(-INFINITY)};
    long k = 0;
    for (; k + STRIP <= count; k += STRIP) best_of(STRIP, channels, queries, keys + k * channels, best);
    for (; k + 2 <= count; k += 2) best_of(2, channels, queries, keys + k * channels, best);
    for (; k < count; k++) best_of(1, channels, queries, keys + k * channels, best);
    store(out, best[0]);
    store(out + LANES, best[1]);
}

// Lifts every row's best products above each other's: minus the row's log-sum-exp over all blocks (base 2).
static void normalise(float *best_JR, long blocks, long lanes) {
    for (long lane = 0; lane < lanes; lane += LANES) {
        Vector most = splat(-INFINITY), sum = splat(0.0f);
        for (long j = 0; j < blocks; j++) most = larger(most, load(best_JR + j * lanes + lane));
        for (long j = 0; j < blocks; j++) sum += exp2_of(load(best_JR + j * lanes + lane) - most);
        for (int i = 0; i < LANES; i++) most[i] += log2f(sum[i]);
        for (long j = 0; j < blocks; j++)
            store(best_JR + j * lanes + lane, load(best_JR + j * lanes + lane) - most);
    }
}

// The value that exactly `rank` of `count` numbers lie above or at (quickselect); reorders them.
static float value_at(float *numbers, long count, long rank) {
    long first = 0, last = count - 1, at = rank - 1;
    while (first < last) {
        const float pivot = numbers[(first + last) / 2];
        long i = first, j = last;
        while (i <= j) {
            while (numbers[i] > pivot) i++;
            while (numbers[j] < pivot) j--;
            if (i <= j) {
                const float kept = numbers[i];
                numbers[i++] = numbers[j];
                numbers[j--] = kept;
            }
        }
        if (at <= j) last = j;
        else if (at >= i) first = i;
        else break;
    }
    return numbers[at];
}

// The `wanted` best of `blocks` scores in order of their number; of equal ones the first. `spare` is overwritten.
static void choose(const float *score, float *spare, long blocks, long wanted, int32_t *chosen) {
    memcpy(spare, score, sizeof(float) * blocks);
    const float bar = value_at(spare, blocks, wanted);
    long above = 0, taken = 0;
    for (long j = 0; j < blocks; j++) above += score[j] > bar;
    long ties = wanted - above;
    for (long j = 0; j < blocks && taken < wanted; j++)
        if (score[j] > bar || (score[j] == bar && ties-- > 0)) chosen[taken++] = (int32_t)j;
    while (taken < wanted) chosen[taken++] = 0;  // scores that are no numbers rank nothing, but stay inside
}
