// The products of tiles.h on 16-bit integers, summed in 32 bits: twice as many of them in one instruction.
//
// Numbers are rounded to whole multiples of a scale of their own row, column or tile. The largest magnitude is
// chosen so that no sum can overflow: 12 to 13 bits, far finer than int8 or bfloat16. On processors with AVX2
// but no VNNI 8-bit products are no faster (pipelines/benchmarks/results/EDGE_LOG.md).

#define DEPTH 256  // of a product that is summed before it becomes float32

typedef int32_t UnalignedIntegers __attribute__((vector_size(4 * LANES), aligned(4)));

INLINE Integers load_integers(const int16_t *from) { return *(const UnalignedIntegers *)from; }
INLINE void store_integers(int16_t *to, Integers x) { *(UnalignedIntegers *)to = x; }
INLINE Vector to_floats(Integers x) { return __builtin_convertvector(x, Vector); }

// Largest magnitude of both factors such that `depth` products sum up to less than 2^31.
INLINE float magnitude(long depth) {
    const float most = floorf(sqrtf(2147483000.0f / depth));
    return most < 32767.0f ? most : 32767.0f;
}

// Each lane holds two neighbours in depth: sum + a0 * b0 + a1 * b1.
INLINE Integers add_products(Integers sum, Integers a, Integers b) {
#if defined(WITH_AVX512)
    return (Integers)_mm512_dpwssd_epi32((__m512i)sum, (__m512i)a, (__m512i)b);
#elif defined(WITH_AVX2)
    return sum + (Integers)_mm256_madd_epi16((__m256i)a, (__m256i)b);
#else
    return sum + ((a << 16) >> 16) * ((b << 16) >> 16) + (a >> 16) * (b >> 16);
#endif
}

// sums[r] = a[r, :] . b[:, 0..PANEL]; both in pairs of neighbours in depth, `b` packed as [pairs][PANEL][2].
INLINE void multiply_integers(
    int rows, long pairs, const int16_t *a, long a_row, const int16_t *b, Integers sums[STRIP][2]) {
    UNROLL
    for (int r = 0; r < rows; r++) sums[r][0] = sums[r][1] = (Integers){0};
    DEEP
    for (long k = 0; k < pairs; k++) {
        const Integers left = load_integers(b + 2 * PANEL * k), right = load_integers(b + 2 * PANEL * k + PANEL);
        UNROLL
        for (int r = 0; r < rows; r++) {
            int32_t both;
            memcpy(&both, a + r * a_row + 2 * k, sizeof both);
            const Integers x = both - (Integers){0};
            sums[r][0] = add_products(sums[r][0], x, left);
            sums[r][1] = add_products(sums[r][1], x, right);
        }
    }
}

// c[r, 0..count] = c * keep[r] + sums * scale[r] * columns[0..count], panel after panel; NULL for `columns` is
// ones, for `keep` zeros.
INLINE void integers_into(int rows, long pairs, const int16_t *a, long a_row, const int16_t *b, long count,
                          const float *scale, const float *columns, const float *keep, float *c, long c_row) {
    for (long first = 0; first < count; first += PANEL, b += 2 * PANEL * pairs) {
        Integers sums[STRIP][2];
        multiply_integers(rows, pairs, a, a_row, b, sums);
        UNROLL
        for (int r = 0; r < rows; r++)
            for (int side = 0; side < 2; side++) {
                float *to = c + r * c_row + first + side * LANES;
                Vector x = to_floats(sums[r][side]) * splat(scale[r]);
                if (columns) x *= load(columns + first + side * LANES);
                store(to, keep ? load(to) * splat(keep[r]) + x : x);
            }
    }
}

INLINE void integer_strip(long rows, long pairs, const int16_t *a, long a_row, const int16_t *b, long count,
                          const float *scale, const float *columns, const float *keep, float *c, long c_row) {
#define WORK(rows) integers_into(rows, pairs, a, a_row, b, count, scale, columns, keep, c, c_row)
    FOR_ROWS(rows, WORK)
#undef WORK
}

static float largest_magnitude(const float *x, long count, long stride) {
    float most = 0.0f;
    for (long i = 0; i < count; i++) most = fabsf(x[i * stride]) > most ? fabsf(x[i * stride]) : most;
    return most > 1e-30f ? most : 1e-30f;
}

INLINE int16_t rounded(float x) { return (int16_t)lrintf(x); }

INLINE Integers to_whole(Vector x) {
#if defined(WITH_AVX512)
    return (Integers)_mm512_cvtps_epi32((__m512)x);
#elif defined(WITH_AVX2)
    return (Integers)_mm256_cvtps_epi32((__m256)x);
#else
    Integers whole;
    for (int i = 0; i < LANES; i++) whole[i] = rounded(x[i]);
    return whole;
#endif
}

// Two vectors, rounded, side by side.
INLINE Integers whole_pair(Vector left, Vector right) {
    const Integers a = to_whole(left), b = to_whole(right);
#if defined(WITH_AVX512)
    const __m512i in_order = _mm512_set_epi64(7, 5, 3, 1, 6, 4, 2, 0);
    return (Integers)_mm512_permutexvar_epi64(in_order, _mm512_packs_epi32((__m512i)a, (__m512i)b));
#elif defined(WITH_AVX2)
    return (Integers)_mm256_permute4x64_epi64(_mm256_packs_epi32((__m256i)a, (__m256i)b), 0xD8);
#else
    int16_t both[2 * LANES];
    for (int i = 0; i < LANES; i++) both[i] = (int16_t)a[i], both[LANES + i] = (int16_t)b[i];
    return load_integers(both);
#endif
}

static void round_row(const float *x, long count, float inverse, int16_t *to) {
    long i = 0;
    for (; i + 2 * LANES <= count; i += 2 * LANES)
        store_integers(to + i, whole_pair(load(x + i) * splat(inverse), load(x + i + LANES) * splat(inverse)));
    for (; i < count; i++) to[i] = rounded(x[i] * inverse);
}

// Rows of `to` have an even length; what fills them up is zero. scale[r] is what one unit of row r is worth.
static void round_rows(const float *x, long row, long rows, long count, float most, int16_t *to, float *scale) {
    const long to_row = up_to(count, 2);
    for (long r = 0; r < rows; r++, x += row, to += to_row) {
        Vector best = splat(1e-30f);
        long i = 0;
        for (; i + LANES <= count; i += LANES) best = larger(best, larger(load(x + i), -load(x + i)));
        float largest = largest_lane(best);
        for (; i < count; i++) largest = fabsf(x[i]) > largest ? fabsf(x[i]) : largest;
        scale[r] = largest / most;
        to[to_row - 1] = 0;
        round_row(x, count, most / largest, to);
    }
}

typedef struct {
    int16_t *panels;  // [parts of DEPTH][columns / PANEL][pairs][PANEL][2]
    float *scales;    // [columns], what one unit of a column is worth
} Rounded;

static long part_of(long depth, long first) { return depth - first < DEPTH ? depth - first : DEPTH; }

static Rounded rounded_matrix(const float *weight, long depth, long columns) {
    const long wide = up_to(columns, PANEL);
    const float most = magnitude(depth < DEPTH ? depth : DEPTH);
    Rounded m = {(int16_t *)allocate(wide * up_to(depth, 2) / 2), allocate(wide)};
    if (!m.panels || !m.scales) return m;
    memset(m.panels, 0, sizeof(int16_t) * wide * up_to(depth, 2));
    memset(m.scales, 0, sizeof(float) * wide);
    for (long c = 0; c < columns; c++) {
        const float largest = largest_magnitude(weight + c, depth, columns);
        m.scales[c] = largest / most;
        for (long k = 0; k < depth; k++) {
            const long first = k / DEPTH * DEPTH, pairs = up_to(part_of(depth, first), 2) / 2, in = k - first;
            int16_t *panel = m.panels + wide * first + c / PANEL * pairs * 2 * PANEL;
            panel[in / 2 * 2 * PANEL + c % PANEL * 2 + in % 2] = rounded(weight[k * columns + c] * most / largest);
        }
    }
    return m;
}

// c[rows, columns] = (or += where `add`) a[rows, depth] . w. `spare` holds rows * (DEPTH / 2 + 2) floats.
static void rounded_linear(const float *a, long a_row, long rows, const Rounded *w, long depth, long columns, float *c,
                           long c_row, int add, float *spare) {
    const long wide = up_to(columns, PANEL);
    const float most = magnitude(depth < DEPTH ? depth : DEPTH);
    float *scale = spare, *ones = spare + rows;
    int16_t *integers = (int16_t *)(spare + 2 * rows);
    for (long r = 0; r < rows; r++) ones[r] = 1.0f;
    for (long first = 0; first < depth; first += DEPTH) {
        const long part = part_of(depth, first), row = up_to(part, 2), pairs = row / 2;
        round_rows(a + first, a_row, rows, part, most, integers, scale);
        for (long column = 0; column < wide; column += PANEL)
            for (long r = 0; r < rows; r += STRIP)
                integer_strip(rows - r < STRIP ? rows - r : STRIP, pairs, integers + r * row, row,
                              w->panels + wide * first + column * row, PANEL, scale + r, w->scales + column,
                              add || first ? ones + r : NULL, c + r * c_row + column, c_row);
    }
}

// attention -----------------------------------------------------------------------------------------------

typedef struct {
    const int16_t *keys;    // [keys / PANEL][channels / 2][PANEL][2]
    const int16_t *values;  // [channels / PANEL][keys / 2][PANEL][2]
    const float *bias;      // as in Tile
    long num_keys, num_valid;
    float key_scale, value_scale;
    const int16_t *next_keys, *next_values;
} RoundedTile;

// size * 2^x; relative error below 3e-6, a thirtieth of what rounding to a whole number does to it.
INLINE Vector rough_exp2(Vector x, float size) {
    Vector part;
    const Whole whole = split(x, &part);
    Vector y = splat(9.570101276040077e-3f * size);
    y = y * part + splat(5.591785907745361e-2f * size);
    y = y * part + splat(2.402474433183670e-1f * size);
    y = y * part + splat(6.931217908859253e-1f * size);
    y = y * part + splat(9.999992847442627e-1f * size);
    return times_power(y, whole);
}

// to[k] = round(size * 2^(logits[k] - most)), two vectors of keys at a time; their sum, lane by lane.
INLINE Vector whole_weights(const float *logits, long count, float most, float size, int16_t *to) {
    const Vector zero = splat(most);
    const Integers ones = 0x00010001 - (Integers){0};
    Integers sum = {0};
    for (long k = 0; k < count; k += 2 * LANES) {
        const Vector left = load(logits + k) - zero, right = load(logits + k + LANES) - zero;
        const Integers weights = whole_pair(rough_exp2(left, size), rough_exp2(right, size));
        store_integers(to + k, weights);
        sum = add_products(sum, weights, ones);
    }
    return to_floats(sum);
}

// The largest of each row's logits in a tile, with what does not exist closed; at least -1e30.
INLINE Vector largest_logits(const Reading *r, const RoundedTile *tile, long rows) {
    const Vector least = splat(-1e30f);
    Vector best[STRIP];
    for (long i = 0; i < STRIP; i++) best[i] = least;
    for (long i = 0; i < rows; i++) {
        float *logits = r->weights + i * tile->num_keys;
        if (tile->bias)
            for (long k = 0; k < tile->num_keys; k += LANES) store(logits + k, load(logits + k) + load(tile->bias + k));
        for (long k = tile->num_valid; k < tile->num_keys; k++) logits[k] = -INFINITY;
        for (long k = 0; k < tile->num_keys; k += LANES) best[i] = larger(best[i], load(logits + k));
    }
    return across(best, rows, 0, least);
}

// A strip's logits become whole numbers up to `most`, in proportion to their weights in this tile. keep[i] and
// scale[i] say what row i's former output and a unit of its new one are worth then. State has room for a vector.
INLINE void weigh_rounded_strip(Reading *r, const RoundedTile *tile, long row, long rows, float most, int16_t *to,
                                float *keep, float *scale) {
    const Vector here = largest_logits(r, tile, rows), before = load(r->most + row), next = larger(here, before);
    const Vector worth = exp2_of(here - next) * splat(1.0f / most), kept = exp2_of(before - next);
    Vector sums[STRIP];
    for (long i = rows; i < STRIP; i++) sums[i] = splat(0.0f);
    for (long i = 0; i < rows; i++)
        sums[i] = whole_weights(r->weights + i * tile->num_keys, tile->num_keys, here[i], most, to + i * tile->num_keys);
    const Vector sum = across(sums, rows, 1, splat(0.0f));
    store(r->most + row, next);
    store(r->sum + row, load(r->sum + row) * kept + sum * worth);
    store(keep + row, kept);
    store(scale + row, worth * splat(tile->value_scale));
}

// `queries` in pairs [rows, channels] with the worth of a unit of each row; `spare` holds (rows + LANES) * (2 + keys / 2).
static void read_rounded_tile(Reading *r, const int16_t *queries, const float *worth, const RoundedTile *tile, float *spare) {
    const float most = magnitude(tile->num_keys);
    const long room = r->rows + LANES;  // the last strip's vector may reach beyond the last row
    float *keep = spare, *scale = spare + room, strip_scale[STRIP];
    int16_t *weights = (int16_t *)(spare + 2 * room);
    const long strips = (r->rows + STRIP - 1) / STRIP;
    for (long row = 0; row < r->rows; row += STRIP) {
        const long strip = r->rows - row < STRIP ? r->rows - row : STRIP;
        ask_for(tile->next_keys, sizeof(int16_t) * tile->num_keys * r->channels, row / STRIP, strips);
        for (long i = 0; i < strip; i++) strip_scale[i] = worth[row + i] * tile->key_scale;
        integer_strip(strip, r->channels / 2, queries + row * r->channels, r->channels, tile->keys, tile->num_keys,
                      strip_scale, NULL, NULL, r->weights, tile->num_keys);
        weigh_rounded_strip(r, tile, row, strip, most, weights + row * tile->num_keys, keep, scale);
    }
    for (long row = 0; row < r->rows; row += STRIP) {
        const long strip = r->rows - row < STRIP ? r->rows - row : STRIP;
        ask_for(tile->next_values, sizeof(int16_t) * tile->num_keys * r->padded, row / STRIP, strips);
        integer_strip(strip, tile->num_keys / 2, weights + row * tile->num_keys, tile->num_keys, tile->values,
                      r->padded, scale + row, NULL, keep + row, r->out + row * r->padded, r->padded);
    }
}

// Float panels [columns / PANEL][depth][PANEL] as integer ones [columns / PANEL][depth / 2][PANEL][2]; depth is even.
static float round_panels(const float *panels, long depth, long columns, float most, int16_t *to) {
    Vector best = splat(1e-30f);
    for (long i = 0; i < depth * columns; i += LANES) best = larger(best, larger(load(panels + i), -load(panels + i)));
    const float largest = largest_lane(best);
    const Vector inverse = splat(most / largest);
    for (long k = 0; k < depth * columns; k += 2 * PANEL)
        for (long i = 0; i < PANEL; i += LANES) {
            const Integers even = to_whole(load(panels + k + i) * inverse);
            const Integers odd = to_whole(load(panels + k + PANEL + i) * inverse);
            store_integers(to + k + 2 * i, (even & 0xFFFF) | odd << 16);
        }
    return largest / most;
}
