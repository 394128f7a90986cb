// Vectors of eight floats and the products that everything else is made of.
//
// GCC's and Clang's vector types, so the same source runs with AVX2 and, split in two, with NEON.

#include <math.h>
#include <stdint.h>
#include <string.h>
#ifdef __AVX2__
#include <immintrin.h>
#endif

#define LANES 8
#define PANEL 16  // columns of a packed matrix that are multiplied at once
#define STRIP 6   // rows that are: 6 x 16 sums, two vectors of columns and one number fill 15 of 16 registers
#define INLINE static inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 8")
#define DEEP _Pragma("GCC unroll 4")  // a loop of 32 or 64 turns ends in a branch that is foreseen wrongly

typedef float Vector __attribute__((vector_size(32)));
typedef float Unaligned __attribute__((vector_size(32), aligned(4)));
typedef int32_t Integers __attribute__((vector_size(32)));

INLINE Vector load(const float *from) { return *(const Unaligned *)from; }
INLINE void store(float *to, Vector x) { *(Unaligned *)to = x; }
INLINE Vector splat(float x) { return (Vector){x, x, x, x, x, x, x, x}; }
INLINE Vector larger(Vector a, Vector b) {
#ifdef __AVX2__
    return (Vector)_mm256_max_ps((__m256)a, (__m256)b);
#else
    const Integers is_larger = a > b;
    return (Vector)(((Integers)a & is_larger) | ((Integers)b & ~is_larger));
#endif
}
INLINE long up_to(long n, long multiple) { return (n + multiple - 1) / multiple * multiple; }

// Asks for one of `parts` equal parts of memory that is read soon: blocks that are chosen lie anywhere.
INLINE void ask_for(const void *memory, long bytes, long part, long parts) {
    if (!memory) return;
    const char *from = (const char *)memory + bytes * part / parts, *to = (const char *)memory + bytes * (part + 1) / parts;
    for (; from < to; from += 64) __builtin_prefetch(from, 0, 2);
}

INLINE float largest_lane(Vector x) {
#ifdef __AVX2__
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
    return ((x[0] + x[4]) + (x[1] + x[5])) + ((x[2] + x[6]) + (x[3] + x[7]));
}

// x as a whole number in [-126, ...], already in the place of a float's exponent, and the part beyond it in
// [-0.5, 0.5]. What lies below, -inf included, counts as -126.
INLINE Integers split(Vector x, Vector *part) {
    x = larger(x, splat(-126.0f));
    const Vector shifter = splat(12582912.0f);  // 1.5 * 2^23: adding it rounds to a whole number
    const Vector whole = x + shifter;
    *part = x - (whole - shifter);
    return (Integers)whole << 23;
}

// 2^x; relative error below 2e-7.
INLINE Vector exp2_of(Vector x) {
    Vector part;
    const Integers exponent = split(x, &part);
    Vector y = splat(1.535336188319500e-4f);
    y = y * part + splat(1.339887440266574e-3f);
    y = y * part + splat(9.618437357674640e-3f);
    y = y * part + splat(5.550332471162809e-2f);
    y = y * part + splat(2.402264791363012e-1f);
    y = y * part + splat(6.931472028550421e-1f);
    y = y * part + splat(1.0f);
    return (Vector)((Integers)y + exponent);
}

// sums[r] += a[r, :] . b[:, 0..15] for a few rows. `b` is packed: 16 columns of one depth side by side.
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

// The same with a number of rows from 1 to 6 that is known at run time only.
INLINE void strip_into(long rows, long depth, const float *a, long a_row, const float *b, long count, float *c,
                       long c_row, int add) {
    switch (rows) {
        case 6: multiply_into(6, depth, a, a_row, b, count, c, c_row, add); break;
        case 5: multiply_into(5, depth, a, a_row, b, count, c, c_row, add); break;
        case 4: multiply_into(4, depth, a, a_row, b, count, c, c_row, add); break;
        case 3: multiply_into(3, depth, a, a_row, b, count, c, c_row, add); break;
        case 2: multiply_into(2, depth, a, a_row, b, count, c, c_row, add); break;
        default: multiply_into(1, depth, a, a_row, b, count, c, c_row, add);
    }
}

typedef struct {
    float *panels;  // [columns / 16][depth][16], zeros beyond the last column
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
