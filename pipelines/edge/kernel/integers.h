// The products of tiles.h on 16-bit integers, summed in 32 bits: twice as many of them in one instruction.
//
// Numbers are rounded to whole multiples of a scale of their own row, column or tile. The largest magnitude is
// chosen so that no sum can overflow: 12 to 13 bits, far finer than int8 or bfloat16. On processors with AVX2
// but no VNNI 8-bit products are no faster (pipelines/benchmarks/results/EDGE_LOG.md).

#define DEPTH 256  // of a product that is summed before it becomes float32

typedef int32_t UnalignedIntegers __attribute__((vector_size(32), aligned(4)));

INLINE Integers load_integers(const int16_t *from) { return *(const UnalignedIntegers *)from; }
INLINE Vector to_floats(Integers x) { return __builtin_convertvector(x, Vector); }

// Largest magnitude of both factors such that `depth` products sum up to less than 2^31.
INLINE float magnitude(long depth) {
    const float most = floorf(sqrtf(2147483000.0f / depth));
    return most < 32767.0f ? most : 32767.0f;
}

// Each of the eight lanes holds two neighbours in depth: a0 * b0 + a1 * b1.
INLINE Integers pair_products(Integers a, Integers b) {
#ifdef __AVX2__
    return (Integers)_mm256_madd_epi16((__m256i)a, (__m256i)b);
#else
    return ((a << 16) >> 16) * ((b << 16) >> 16) + (a >> 16) * (b >> 16);
#endif
}

// sums[r] = a[r, :] . b[:, 0..15]; both in pairs of neighbours in depth, `b` packed as [pairs][16][2].
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
            const Integers x = {both, both, both, both, both, both, both, both};
            sums[r][0] += pair_products(x, left);
            sums[r][1] += pair_products(x, right);
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
    switch (rows) {
        case 6: integers_into(6, pairs, a, a_row, b, count, scale, columns, keep, c, c_row); break;
        case 5: integers_into(5, pairs, a, a_row, b, count, scale, columns, keep, c, c_row); break;
        case 4: integers_into(4, pairs, a, a_row, b, count, scale, columns, keep, c, c_row); break;
        case 3: integers_into(3, pairs, a, a_row, b, count, scale, columns, keep, c, c_row); break;
        case 2: integers_into(2, pairs, a, a_row, b, count, scale, columns, keep, c, c_row); break;
        default: integers_into(1, pairs, a, a_row, b, count, scale, columns, keep, c, c_row);
    }
}

static float largest_magnitude(const float *x, long count, long stride) {
    float most = 0.0f;
    for (long i = 0; i < count; i++) most = fabsf(x[i * stride]) > most ? fabsf(x[i * stride]) : most;
    return most > 1e-30f ? most : 1e-30f;
}

INLINE int16_t rounded(float x) { return (int16_t)lrintf(x); }

static void round_row(const float *x, long count, float inverse, int16_t *to) {
    long i = 0;
#ifdef __AVX2__
    for (; i + 16 <= count; i += 16) {
        const __m256i a = _mm256_cvtps_epi32((__m256)(load(x + i) * splat(inverse)));
        const __m256i b = _mm256_cvtps_epi32((__m256)(load(x + i + 8) * splat(inverse)));
        _mm256_storeu_si256((__m256i *)(to + i), _mm256_permute4x64_epi64(_mm256_packs_epi32(a, b), 0xD8));
    }
#endif
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
    int16_t *panels;  // [parts of DEPTH][columns / 16][pairs][16][2]
    float *scales;    // [columns], what one unit of a column is worth
} Rounded;

static long part_of(long depth, long first) { return depth - first < DEPTH ? depth - first : DEPTH; }

static Rounded rounded_matrix(const float *weight, long depth, long columns) {
    const long wide = up_to(columns, PANEL);
    const float most = magnitude(depth < DEPTH ? depth : DEPTH);
    Rounded m = {calloc(wide * up_to(depth, 2), sizeof(int16_t)), calloc(wide, sizeof(float))};
    if (!m.panels || !m.scales) return m;
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
    const int16_t *keys;    // [keys / 16][channels / 2][16][2]
    const int16_t *values;  // [channels / 16][keys / 2][16][2]
    const float *bias;      // as in Tile
    long num_keys, num_valid;
    float key_scale, value_scale;
    const int16_t *next_keys, *next_values;
} RoundedTile;

// 2^x; relative error below 3e-6, a thirtieth of what rounding to a whole number does to it.
INLINE Vector rough_exp2(Vector x) {
    Vector part;
    const Integers exponent = split(x, &part);
    Vector y = splat(9.570101276040077e-3f);
    y = y * part + splat(5.591785907745361e-2f);
    y = y * part + splat(2.402474433183670e-1f);
    y = y * part + splat(6.931217908859253e-1f);
    y = y * part + splat(9.999992847442627e-1f);
    return (Vector)((Integers)y + exponent);
}

// to[k] = round(size * 2^(logits[k] - most)) for 16 keys at a time; their sum.
static float whole_weights(const float *logits, long count, float most, float size, int16_t *to) {
    const Vector zero = splat(most), scale = splat(size);
    Integers sum = {0};
    for (long k = 0; k < count; k += PANEL) {
        const Vector left = rough_exp2(load(logits + k) - zero) * scale;
        const Vector right = rough_exp2(load(logits + k + LANES) - zero) * scale;
#ifdef __AVX2__
        const __m256i a = _mm256_cvtps_epi32((__m256)left), b = _mm256_cvtps_epi32((__m256)right);
        _mm256_storeu_si256((__m256i *)(to + k), _mm256_permute4x64_epi64(_mm256_packs_epi32(a, b), 0xD8));
        sum += (Integers)a + (Integers)b;
#else
        for (int i = 0; i < LANES; i++) {
            to[k + i] = rounded(left[i]), to[k + LANES + i] = rounded(right[i]);
            sum[i] += to[k + i] + to[k + LANES + i];
        }
#endif
    }
    return sum_of_lanes(to_floats(sum));
}

// The largest of each row's logits in a tile, with what does not exist closed; at least -1e30.
INLINE Vector largest_logits(const Reading *r, const RoundedTile *tile, long rows) {
    Vector most = splat(-1e30f);
    for (long i = 0; i < rows; i++) {
        float *logits = r->weights + i * tile->num_keys;
        if (tile->bias)
            for (long k = 0; k < tile->num_keys; k += LANES) store(logits + k, load(logits + k) + load(tile->bias + k));
        for (long k = tile->num_valid; k < tile->num_keys; k++) logits[k] = -INFINITY;
        Vector best = load(logits);
        for (long k = LANES; k < tile->num_keys; k += LANES) best = larger(best, load(logits + k));
        most[i] = largest_lane(best) > -1e30f ? largest_lane(best) : -1e30f;
    }
    return most;
}

// A strip's logits become whole numbers up to `most`, in proportion to their weights in this tile. keep[i] and
// scale[i] say what row i's former output and a unit of its new one are worth then. State has room for a vector.
INLINE void weigh_rounded_strip(Reading *r, const RoundedTile *tile, long row, long rows, float most, int16_t *to,
                                float *keep, float *scale) {
    const Vector here = largest_logits(r, tile, rows), before = load(r->most + row), next = larger(here, before);
    const Vector worth = exp2_of(here - next) * splat(1.0f / most), kept = exp2_of(before - next);
    Vector sum = splat(0.0f);
    for (long i = 0; i < rows; i++)
        sum[i] = whole_weights(r->weights + i * tile->num_keys, tile->num_keys, here[i], most, to + i * tile->num_keys);
    store(r->most + row, next);
    store(r->sum + row, load(r->sum + row) * kept + sum * worth);
    store(keep + row, kept);
    store(scale + row, worth * splat(tile->value_scale));
}

// `queries` in pairs [rows, channels] with the worth of a unit of each row; `spare` holds (rows + 8) * (2 + keys / 2).
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

// Float panels [columns / 16][depth][16] as integer ones [columns / 16][depth / 2][16][2].
static float round_panels(const float *panels, long depth, long columns, float most, int16_t *to) {
    const float largest = largest_magnitude(panels, depth * columns, 1), inverse = most / largest;
    for (long c = 0; c < columns; c += PANEL)
        for (long k = 0; k < depth; k++)
            for (long i = 0; i < PANEL; i++)
                to[c * depth + k / 2 * 2 * PANEL + 2 * i + k % 2] = rounded(panels[c * depth + k * PANEL + i] * inverse);
    return largest / most;
}
