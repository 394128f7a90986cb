// Vectors of 8 or 16 floats (target.h) and the products that everything else is made of.
//
// GCC's and Clang's vector types; what they cannot say, and what falls back to plain C, is at the top.

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#if defined(WITH_AVX2) || defined(WITH_AVX512)
#include <immintrin.h>
#endif

// PANEL columns of a packed matrix are multiplied at once with STRIP rows. 6 x 16 sums, two vectors of columns and
// one number fill 15 of AVX2's 16 registers; 8 rows divide a block of 64, and their 16 sums hide what a product waits.
#define PANEL (2 * LANES)
#if LANES == 16
#define STRIP 8
#else
#define STRIP 6
#endif
#define INLINE static inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 8")
#define DEEP _Pragma("GCC unroll 4")  // a loop of 32 or 64 turns ends in a branch that is foreseen wrongly

typedef float Vector __attribute__((vector_size(4 * LANES)));
typedef float Unaligned __attribute__((vector_size(4 * LANES), aligned(4)));
typedef int32_t Integers __attribute__((vector_size(4 * LANES)));

INLINE Vector load(const float *from) { return *(const Unaligned *)from; }
INLINE void store(float *to, Vector x) { *(Unaligned *)to = x; }
INLINE Vector splat(float x) { return x - (Vector){0}; }
INLINE Vector larger(Vector a, Vector b) {
#if defined(WITH_AVX512)
    return (Vector)_mm512_max_ps((__m512)a, (__m512)b);
#elif defined(WITH_AVX2)
    return (Vector)_mm256_max_ps((__m256)a, (__m256)b);
#else
    const Integers is_larger = a > b;
    return (Vector)(((Integers)a & is_larger) | ((Integers)b & ~is_larger));
#endif
}
static float *allocate(long floats) {
    void *memory = NULL;
    return posix_memalign(&memory, 64, sizeof(float) * (floats > 0 ? floats : 1)) ? NULL : memory;
}

INLINE long up_to(long n, long multiple) { return (n + multiple - 1) / multiple * multiple; }

// Asks for one of `parts` equal parts of memory that is read soon: blocks that are chosen lie anywhere.
INLINE void ask_for(const void *memory, long bytes, long part, long parts) {
    if (!memory) return;
    const char *from = (const char *)memory + bytes * part / parts, *to = (const char *)memory + bytes * (part + 1) / parts;
    for (; from < to; from += 64) __builtin_prefetch(from, 0, 2);
}

INLINE float largest_lane(Vector x) {
#if defined(WITH_AVX512)
    return _mm512_reduce_max_ps((__m512)x);
#elif defined(WITH_AVX2)
    __m128 y = _mm_max_ps(_mm256_castps256_ps128((__m256)x), _mm256_extractf128_ps((__m256)x, 1));
    y = _mm_max_ps(y, _mm_movehl_ps(y, y));
    return _mm_cvtss_f32(_mm_max_ss(y, _mm_movehdup_ps(y)));
#else
    float best = x[0];
    for (int i = 1; i < LANES; i++) best = x[i] > best ? x[i] : best;
    return best;
#endif
}

INLINE float sum_of_lanes(Vector x) {
#if defined(WITH_AVX512)
    return _mm512_reduce_add_ps((__m512)x);
#else
    float sum = ((x[0] + x[4]) + (x[1] + x[5])) + ((x[2] + x[6]) + (x[3] + x[7]));
    for (int i = 8; i < LANES; i++) sum += x[i];
    return sum;
#endif
}

// Lane i is the largest lane of x[i], or the sum of its lanes where `adds`, for the first `rows` of STRIP; `rest` beyond.
#if defined(WITH_AVX512)
INLINE __m512 meet(__m512 a, __m512 b, int adds) { return adds ? _mm512_add_ps(a, b) : _mm512_max_ps(a, b); }
INLINE Vector across(const Vector x[STRIP], long rows, int adds, Vector rest) {
    __m512 two[4];
    __m512d four[2];
    UNROLL
    for (int i = 0; i < 4; i++) {
        const __m512 a = (__m512)x[2 * i], b = (__m512)x[2 * i + 1];
        two[i] = meet(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b), adds);
    }
    for (int i = 0; i < 2; i++) {
        const __m512d a = (__m512d)two[2 * i], b = (__m512d)two[2 * i + 1];
        four[i] = (__m512d)meet((__m512)_mm512_unpacklo_pd(a, b), (__m512)_mm512_unpackhi_pd(a, b), adds);
    }
    const __m512 a = (__m512)four[0], b = (__m512)four[1];
    __m512 all = meet(_mm512_shuffle_f32x4(a, b, 0x44), _mm512_shuffle_f32x4(a, b, 0xEE), adds);
    all = meet(all, _mm512_shuffle_f32x4(all, all, 0xB1), adds);
    return (Vector)_mm512_mask_shuffle_f32x4((__m512)rest, (__mmask16)((1 << rows) - 1), all, all, 0x88);
}
#else
INLINE Vector across(const Vector x[STRIP], long rows, int adds, Vector rest) {
    for (long i = 0; i < rows; i++) rest[i] = adds ? sum_of_lanes(x[i]) : largest_lane(x[i]);
    return rest;
}
#endif

// x as a whole number and the part beyond it in [-0.5, 0.5]; y * 2^whole.
#if defined(WITH_AVX512)
typedef Vector Whole;
INLINE Whole split(Vector x, Vector *part) {
    *part = (Vector)_mm512_reduce_ps((__m512)x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    return x - *part;
}
INLINE Vector times_power(Vector y, Whole whole) { return (Vector)_mm512_scalef_ps((__m512)y, (__m512)whole); }
#else
typedef Integers Whole;  // already in the place of a float's exponent; what lies below -126, -inf included, counts as -126
INLINE Whole split(Vector x, Vector *part) {
    x = larger(x, splat(-126.0f));
    const Vector shifter = splat(12582912.0f);  // 1.5 * 2^23: adding it rounds to a whole number
    const Vector whole = x + shifter;
    *part = x - (whole - shifter);
    return (Integers)whole << 23;
}
INLINE Vector times_power(Vector y, Whole whole) { return (Vector)((Integers)y + whole); }
#endif

// 2^x; relative error below 2e-7.
INLINE Vector exp2_of(Vector x) {
    Vector part;
    const Whole whole = split(x, &part);
    Vector y = splat(1.535336188319500e-4f);
    y = y * part + splat(1.339887440266574e-3f);
    y = y * part + splat(9.618437357674640e-3f);
    y = y * part + splat(5.550332471162809e-2f);
    y = y * part + splat(2.402264791363012e-1f);
    y = y * part + splat(6.931472028550421e-1f);
    y = y * part + splat(1.0f);
    return times_power(y, whole);
}

// sums[r] += a[r, :] . b[:, 0..PANEL] for a few rows. `b` is packed: the columns of one depth side by side.
INLINE void multiply(int rows, long depth, const float *a, long a_row, const float *b, Vector sums[STRIP][2]) {
    DEEP
    for (long k = 0; k < depth; k++) {
        const Vector left = load(b + PANEL * k), right = load(b + PANEL * k + LANES);
        UNROLL
        for (int r = 0; r < rows; r++) {
            const Vector x = splat(a[r * a_row + k]);
            sums[r][0] += x * left;
            sums[r][1] += x * right;
        }
    }
}

// c[r, 0..count] = (or += where `add`) a[r, :] . b, panel after panel
INLINE void multiply_into(int rows, long depth, const float *a, long a_row, const float *b, long count, float *c,
                          long c_row, int add) {
    for (long first = 0; first < count; first += PANEL, b += PANEL * depth) {
        float *to = c + first;
        Vector sums[STRIP][2];
        UNROLL
        for (int r = 0; r < rows; r++) {
            sums[r][0] = add ? load(to + r * c_row) : splat(0.0f);
            sums[r][1] = add ? load(to + r * c_row + LANES) : splat(0.0f);
        }
        multiply(rows, depth, a, a_row, b, sums);
        UNROLL
        for (int r = 0; r < rows; r++) {
            store(to + r * c_row, sums[r][0]);
            store(to + r * c_row + LANES, sums[r][1]);
        }
    }
}

// Calls WORK(rows) with a number of rows from 1 to STRIP that is known at run time only.
#if STRIP == 8
#define MORE_ROWS(WORK) \
    case 8: WORK(8); break; \
    case 7: WORK(7); break;
#else
#define MORE_ROWS(WORK)
#endif
#define FOR_ROWS(rows, WORK) \
    switch (rows) { \
        MORE_ROWS(WORK) \
        case 6: WORK(6); break; \
        case 5: WORK(5); break; \
        case 4: WORK(4); break; \
        case 3: WORK(3); break; \
        case 2: WORK(2); break; \
        default: WORK(1); \
    }

INLINE void strip_into(long rows, long depth, const float *a, long a_row, const float *b, long count, float *c,
                       long c_row, int add) {
#define WORK(rows) multiply_into(rows, depth, a, a_row, b, count, c, c_row, add)
    FOR_ROWS(rows, WORK)
#undef WORK
}

typedef struct {
    float *panels;  // [columns / PANEL][depth][PANEL], zeros beyond the last column
    long depth, columns;
} Matrix;

// c[rows, columns] = (or += where `add`) a[rows, depth] . w; rows of c have room for whole panels.
static void linear(const float *a, long a_row, long rows, const Matrix *w, float *c, long c_row, int add) {
    for (long first = 0; first < w->columns; first += PANEL)
        for (long r = 0; r < rows; r += STRIP) {
            const long strip = rows - r < STRIP ? rows - r : STRIP;
            strip_into(strip, w->depth, a + r * a_row, a_row, w->panels + first * w->depth, PANEL,
                       c + r * c_row + first, c_row, add);
        }
}
