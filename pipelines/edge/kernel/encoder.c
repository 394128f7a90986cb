// The encoder (sparse_model.model) for one sequence, as pipelines.edge.export writes it in ONNX.
//
// A layer makes keys, values and selector keys of the whole sequence, then goes over chunks of query blocks,
// each from its norm to the end of its feed-forward, in place. So memory is the stream, its keys and values,
// and one chunk for each thread, and blocks that are read are read where they lie, never gathered.
//
// Legend: N steps, J blocks of R steps, W width, H heads, G key/value heads, S rankings, D and E channels of
// a head and of a ranking, F hidden channels, C columns.

#include <pthread.h>
#include <stdlib.h>

#if defined(__x86_64__)
int dankai_edge_runs_here(void) { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC target("avx2,fma")
#endif
#define __AVX2__ 1
#else
int dankai_edge_runs_here(void) { return 1; }
#endif

#include "tiles.h"
#include "attention.h"
#include "ranking.h"
#include "integers.h"

#define CHUNK_STEPS 128  // of queries that go through a layer together: their weights are read once for all
#define SUMMARIES 64     // summaries in one tile of keys

typedef struct {
    int32_t width, num_layers, num_heads, num_kv_heads, ffn_width, block_size;
    int32_t selector_heads, selector_dim, num_numeric, num_categorical, num_outputs;
} Shape;

typedef struct {
    Matrix exact;     // without panels where it is rounded
    Rounded rounded;  // without panels where it is exact
} Map;

typedef struct {
    float *attention_norm, *ffn_norm;
    Matrix to_selector_k, to_selector_q;  // always exact: what they rank decides what is read
    Map to_kv, to_q, to_out, to_hidden, ffn_out;
    int32_t reads_all;
} Layer;

typedef struct {
    Shape shape;
    int is_rounded;  // products of layers on 16-bit integers
    Matrix embed, head;
    float *embed_bias, *head_bias, *norm, *frequency, *selector_frequency;
    float **tables;  // one for each categorical column, [size, W]
    Layer *layers;
} Model;

// What one call works on. Everything by step is padded to whole blocks.
typedef struct {
    const Model *model;
    const Layer *layer;
    const float *numeric, *known;
    const int64_t *categorical;
    float *outputs;
    int64_t *selected;  // [S, J, K] of the layer, or NULL
    long N, J, K, chunk_blocks;
    long D, Dp, Rp, Wp, Jp, lanes;  // Dp, Rp, Wp, Jp: rounded up to whole panels, tiles of summaries
    float *x, *keys, *values, *mean_keys, *mean_values, *selector_keys, *log_count;
    float *cos, *sin, *selector_cos, *selector_sin;
    int16_t *rounded_keys, *rounded_values, *rounded_mean_keys, *rounded_mean_values;  // of a rounded model only
    float *key_scale, *value_scale, *mean_key_scale, *mean_value_scale;                // by block, by tile
    float **scratch;  // by thread; the first spare_size of it serve the rounding of a map's input
    long spare_size;
    int num_threads;
    long next;
    void (*work)(void *, long, float *);
    long count;
} Run;

static float *allocate(long floats) {
    void *memory = NULL;
    return posix_memalign(&memory, 64, sizeof(float) * (floats > 0 ? floats : 1)) ? NULL : memory;
}

// threads -------------------------------------------------------------------------------------------------

typedef struct {
    Run *run;
    float *scratch;
} Worker;

static void *work_on(void *argument) {
    Worker *worker = argument;
    long item;
    while ((item = __atomic_fetch_add(&worker->run->next, 1, __ATOMIC_RELAXED)) < worker->run->count)
        worker->run->work(worker->run, item, worker->scratch);
    return NULL;
}

// Calls work(run, i, scratch) for i in 0..count; where a thread cannot be had, the others do its share.
static void side_by_side(Run *run, void (*work)(void *, long, float *), long count) {
    pthread_t threads[64];
    Worker workers[64];
    int started = 1;
    run->work = work, run->count = count, run->next = 0;
    for (int i = 0; i < run->num_threads; i++) workers[i] = (Worker){run, run->scratch[i]};
    while (started < run->num_threads && started < count &&
           !pthread_create(&threads[started], NULL, work_on, &workers[started]))
        started++;
    work_on(&workers[0]);
    for (int i = 1; i < started; i++) pthread_join(threads[i], NULL);
}

static void apply(const Map *map, const float *a, long a_row, long rows, float *c, long c_row, int add, float *spare) {
    if (map->exact.panels) linear(a, a_row, rows, &map->exact, c, c_row, add);
    else rounded_linear(a, a_row, rows, &map->rounded, map->exact.depth, map->exact.columns, c, c_row, add, spare);
}

// steps ---------------------------------------------------------------------------------------------------

static void normalise_rows(const float *x, const float *gain, long rows, long width, long row, float *to) {
    for (long r = 0; r < rows; r++, x += row, to += row) {
        Vector sums = splat(0.0f);
        long lane = 0;
        for (; lane + LANES <= width; lane += LANES) sums += load(x + lane) * load(x + lane);
        float sum = sum_of_lanes(sums);
        for (; lane < width; lane++) sum += x[lane] * x[lane];
        const float scale = 1.0f / sqrtf(sum / width + 1.1920929e-07f);
        for (long w = 0; w < width; w++) to[w] = x[w] * scale * gain[w];
    }
}

static void rotate(float *x, long channels, const float *cos, const float *sin) {
    const long half = channels / 2;
    for (long i = 0; i < half; i++) {
        const float first = x[i], second = x[half + i];
        x[i] = first * cos[i] - second * sin[i];
        x[half + i] = first * sin[i] + second * cos[i];
    }
}

static void turn(const float *frequency, long step, long half, float *cos, float *sin) {
    for (long i = 0; i < half; i++) {
        const float angle = (float)step * frequency[i];  // rounded as the model rounds it
        cos[step * half + i] = cosf(angle);
        sin[step * half + i] = sinf(angle);
    }
}

// The stream's first values, and the angles, of one chunk of steps.
static void embed(void *argument, long chunk, float *scratch) {
    Run *run = argument;
    const Shape *s = &run->model->shape;
    const long F = s->num_numeric, first = chunk * CHUNK_STEPS;
    const long rows = run->N - first < CHUNK_STEPS ? run->N - first : CHUNK_STEPS;
    for (long r = 0; r < rows; r++) {
        const float *numeric = run->numeric + (first + r) * F, *known = run->known + (first + r) * F;
        for (long f = 0; f < F; f++) {
            scratch[r * 2 * F + f] = numeric[f] * known[f];
            scratch[r * 2 * F + F + f] = known[f];
        }
        turn(run->model->frequency, first + r, run->D / 2, run->cos, run->sin);
        turn(run->model->selector_frequency, first + r, s->selector_dim / 2, run->selector_cos, run->selector_sin);
    }
    float *x = run->x + first * run->Wp;
    linear(scratch, 2 * F, rows, &run->model->embed, x, run->Wp, 0);
    for (long r = 0; r < rows; r++) {
        for (long w = 0; w < s->width; w++) x[r * run->Wp + w] += run->model->embed_bias[w];
        for (long c = 0; c < s->num_categorical; c++) {
            const int64_t code = run->categorical[(first + r) * s->num_categorical + c];
            const float *table = run->model->tables[c] + code * s->width;
            for (long w = 0; w < s->width; w++) x[r * run->Wp + w] += table[w];
        }
    }
}

static void predict(void *argument, long chunk, float *scratch) {
    Run *run = argument;
    const Model *m = run->model;
    const long first = chunk * CHUNK_STEPS, O = m->shape.num_outputs, Op = up_to(O, PANEL);
    const long rows = run->N - first < CHUNK_STEPS ? run->N - first : CHUNK_STEPS;
    float *h = scratch, *out = scratch + CHUNK_STEPS * run->Wp;
    normalise_rows(run->x + first * run->Wp, m->norm, rows, m->shape.width, run->Wp, h);
    linear(h, run->Wp, rows, &m->head, out, Op, 0);
    for (long r = 0; r < rows; r++)
        for (long o = 0; o < O; o++) run->outputs[(first + r) * O + o] = out[r * Op + o] + m->head_bias[o];
}

// keys ----------------------------------------------------------------------------------------------------

// One head's key and value of a step, from rows side by side into the panels of their block.
static void place(const Run *run, long r, const float *key, const float *value, float *keys, float *values) {
    const long D = run->D, Rp = run->Rp;
    keys += r / PANEL * PANEL * D + r % PANEL;
    values += r * PANEL;
    for (long d = 0; d < D; d++) keys[d * PANEL] = key[d];
    for (long d = 0; d < D; d++) values[d / PANEL * PANEL * Rp + d % PANEL] = value[d];
}

static void place_means(Run *run, long g, long j, const float *key, const float *value, float share) {
    const long D = run->D, tile = j / SUMMARIES, at = j % SUMMARIES;
    float *keys = run->mean_keys + (g * run->Jp + tile * SUMMARIES) * D + at / PANEL * PANEL * D + at % PANEL;
    float *values = run->mean_values + (g * run->Jp + tile * SUMMARIES) * run->Dp + at * PANEL;
    for (long d = 0; d < D; d++) keys[d * PANEL] = key[d] * share;
    for (long d = 0; d < D; d++) values[d / PANEL * PANEL * SUMMARIES + d % PANEL] = value[d] * share;
}

// A rounded model keeps a block's panels in floats only until they are rounded, one block for each thread.
static float *block_keys(Run *run, long g, long j, float *scratch) {
    return run->model->is_rounded ? scratch + g * run->Rp * (run->D + run->Dp) : run->keys + (g * run->J + j) * run->Rp * run->D;
}

static float *block_values(Run *run, long g, long j, float *scratch) {
    if (run->model->is_rounded) return scratch + g * run->Rp * (run->D + run->Dp) + run->Rp * run->D;
    return run->values + (g * run->J + j) * run->Rp * run->Dp;
}

static void round_block(Run *run, long g, long j, float *block) {
    const long at = g * run->J + j, D = run->D, Dp = run->Dp, Rp = run->Rp;
    run->key_scale[at] = round_panels(block_keys(run, g, j, block), D, Rp, magnitude(D), run->rounded_keys + at * Rp * D);
    run->value_scale[at] =
        round_panels(block_values(run, g, j, block), Rp, Dp, magnitude(Rp), run->rounded_values + at * Rp * Dp);
}

// Keys, values, their means and selector keys of one block.
static void make_keys(void *argument, long j, float *scratch) {
    Run *run = argument;
    const Shape *s = &run->model->shape;
    const Layer *layer = run->layer;
    const long R = s->block_size, G = s->num_kv_heads, D = run->D, E = s->selector_dim, S = s->selector_heads;
    const long first = j * R, rows = run->N - first < R ? run->N - first : R;
    const long kv_row = up_to(2 * G * D, PANEL), s_row = up_to(S * E, PANEL);
    float *h = scratch + run->spare_size, *kv = h + R * run->Wp, *sk = kv + R * kv_row, *sums = sk + R * s_row;
    normalise_rows(run->x + first * run->Wp, layer->attention_norm, rows, s->width, run->Wp, h);
    apply(&layer->to_kv, h, run->Wp, rows, kv, kv_row, 0, scratch);
    linear(h, run->Wp, rows, &layer->to_selector_k, sk, s_row, 0);
    float *block = sums + 2 * G * D;
    memset(sums, 0, sizeof(float) * 2 * G * D);
    if (run->model->is_rounded) memset(block, 0, sizeof(float) * G * run->Rp * (D + run->Dp));
    for (long r = 0; r < rows; r++) {
        const long at = (first + r) * D / 2, s_at = (first + r) * E / 2;
        for (long g = 0; g < G; g++) {
            float *key = kv + r * kv_row + g * D;
            rotate(key, D, run->cos + at, run->sin + at);
            place(run, r, key, key + G * D, block_keys(run, g, j, block), block_values(run, g, j, block));
        }
        for (long i = 0; i < 2 * G * D; i++) sums[i] += kv[r * kv_row + i];
        for (long i = 0; i < S; i++) {
            rotate(sk + r * s_row + i * E, E, run->selector_cos + s_at, run->selector_sin + s_at);
            memcpy(run->selector_keys + (i * run->J * R + first + r) * E, sk + r * s_row + i * E, sizeof(float) * E);
        }
    }
    for (long g = 0; g < G; g++) place_means(run, g, j, sums + g * D, sums + (G + g) * D, 1.0f / rows);
    if (run->model->is_rounded)
        for (long g = 0; g < G; g++) round_block(run, g, j, block);
}

static void round_means(void *argument, long tile, float *scratch) {
    (void)scratch;
    Run *run = argument;
    const long at = tile * SUMMARIES, D = run->D, Dp = run->Dp;
    run->mean_key_scale[tile] =
        round_panels(run->mean_keys + at * D, D, SUMMARIES, magnitude(D), run->rounded_mean_keys + at * D);
    run->mean_value_scale[tile] = round_panels(run->mean_values + at * Dp, SUMMARIES, Dp, magnitude(SUMMARIES),
                                               run->rounded_mean_values + at * Dp);
}

// queries -------------------------------------------------------------------------------------------------

static void rank_block(Run *run, long s, long j, long rows, const float *sq, long s_row, float *scratch, int32_t *chosen) {
    const Shape *shape = &run->model->shape;
    const long E = shape->selector_dim, R = shape->block_size, lanes = run->lanes, J = run->J;
    float *queries = scratch, *best = queries + lanes * E, *score = best + J * lanes, *spare = score + J;
    for (long lane = 0; lane < lanes; lane++)  // rows that do not exist repeat the last: no maximum moves
        for (long e = 0; e < E; e++)
            queries[lane / PANEL * PANEL * E + e * PANEL + lane % PANEL] =
                sq[(lane < rows ? lane : rows - 1) * s_row + s * E + e] * 1.44269504f;
    for (long k = 0; k < J; k++)
        for (long lane = 0; lane < lanes; lane += PANEL)
            best_of_block(run->N - k * R < R ? run->N - k * R : R, E, queries + lane * E,
                          run->selector_keys + (s * J + k) * R * E, best + k * lanes + lane);
    normalise(best, J, lanes);
    for (long k = 0; k < J; k++) {
        Vector most = load(best + k * lanes);
        for (long lane = LANES; lane < lanes; lane += LANES) most = larger(most, load(best + k * lanes + lane));
        score[k] = largest_lane(most);
    }
    score[j] = INFINITY;
    choose(score, spare, J, run->K, chosen);
}

static void all_blocks(long count, int32_t *chosen) {
    for (long j = 0; j < count; j++) chosen[j] = (int32_t)j;
}

// One head's attention for one block of queries, over the blocks chosen and the summaries of the others.
static void attend(Run *run, long h, long rows, const float *q, long q_row, const int32_t *chosen, const float *bias,
                   float *scratch, float *to) {
    const Shape *s = &run->model->shape;
    const long g = h * s->num_kv_heads / s->num_heads, R = s->block_size, D = run->D, Dp = run->Dp, J = run->J, Rp = run->Rp;
    Reading r = {q + h * D, q_row, rows, D, Dp, scratch, NULL, NULL, NULL};
    r.most = scratch + R * Dp, r.sum = r.most + R, r.weights = r.sum + R;
    begin(&r);
    for (long i = 0; i < run->K; i++) {
        const long j = chosen[i], at = g * J + j, left = run->N - j * R;
        read_tile(&r, &(Tile){run->keys + at * Rp * D, run->values + at * Rp * Dp, NULL, Rp, left < R ? left : R});
    }
    for (long j = 0; run->K < J && j < run->Jp; j += SUMMARIES) {
        const long at = g * run->Jp + j, left = J - j;
        read_tile(&r, &(Tile){run->mean_keys + at * D, run->mean_values + at * Dp, bias + j, SUMMARIES,
                              left < SUMMARIES ? left : SUMMARIES});
    }
    finish(&r, to + h * D, run->Wp);
}

// The same on integers.
static void attend_rounded(Run *run, long h, long rows, const float *q, long q_row, const int32_t *chosen,
                           const float *bias, float *scratch, float *to) {
    const Shape *s = &run->model->shape;
    const long g = h * s->num_kv_heads / s->num_heads, R = s->block_size, D = run->D, Dp = run->Dp, J = run->J, Rp = run->Rp;
    const long widest = Rp > SUMMARIES ? Rp : SUMMARIES;
    Reading r = {NULL, 0, rows, D, Dp, scratch, NULL, NULL, NULL};
    r.most = scratch + R * Dp, r.sum = r.most + R + LANES, r.weights = r.sum + R + LANES;
    float *worth = r.weights + STRIP * widest, *spare = worth + R;
    int16_t *queries = (int16_t *)(spare + (R + LANES) * (2 + widest / 2));
    round_rows(q + h * D, q_row, rows, D, magnitude(D), queries, worth);
    begin(&r);
    for (long i = 0; i < run->K; i++) {
        const long j = chosen[i], at = g * J + j, left = run->N - j * R;
        read_rounded_tile(&r, queries, worth,
                          &(RoundedTile){run->rounded_keys + at * Rp * D, run->rounded_values + at * Rp * Dp, NULL, Rp,
                                         left < R ? left : R, run->key_scale[at], run->value_scale[at]}, spare);
    }
    for (long j = 0; run->K < J && j < run->Jp; j += SUMMARIES) {
        const long at = g * run->Jp + j, left = J - j;
        read_rounded_tile(&r, queries, worth,
                          &(RoundedTile){run->rounded_mean_keys + at * D, run->rounded_mean_values + at * Dp, bias + j,
                                         SUMMARIES, left < SUMMARIES ? left : SUMMARIES,
                                         run->mean_key_scale[at / SUMMARIES], run->mean_value_scale[at / SUMMARIES]}, spare);
    }
    finish(&r, to + h * D, run->Wp);
}

static void feed_forward(const Run *run, float *x, long rows, float *h, float *hidden, float *spare) {
    const Layer *layer = run->layer;
    const long F = run->model->shape.ffn_width, row = up_to(2 * F, PANEL);
    normalise_rows(x, layer->ffn_norm, rows, run->model->shape.width, run->Wp, h);
    apply(&layer->to_hidden, h, run->Wp, rows, hidden, row, 0, spare);
    for (long r = 0; r < rows; r++) {
        float *gate = hidden + r * row, *value = gate + F;
        long f = 0;
        for (; f + LANES <= F; f += LANES) {
            const Vector g = load(gate + f), shrunk = exp2_of(g * splat(-1.44269504f));
            store(gate + f, g / (splat(1.0f) + shrunk) * load(value + f));
        }
        for (; f < F; f++) gate[f] = gate[f] / (1.0f + expf(-gate[f])) * value[f];
    }
    apply(&layer->ffn_out, hidden, row, rows, x, run->Wp, 1, spare);
}

// A chunk of query blocks through the whole layer, in place.
static void answer(void *argument, long chunk, float *scratch) {
    Run *run = argument;
    const Shape *s = &run->model->shape;
    const Layer *layer = run->layer;
    const long R = s->block_size, first = chunk * run->chunk_blocks * R, most = run->chunk_blocks * R;
    const long rows = run->N - first < most ? run->N - first : most, S = s->selector_heads, E = s->selector_dim;
    const long s_row = up_to(S * E, PANEL), J = run->J, K = run->K;
    float *h = scratch + run->spare_size, *q = h + most * run->Wp, *sq = q + most * run->Wp, *bias = sq + most * s_row;
    float *mixed = bias + S * run->Jp, *rest = mixed + most * run->Wp;
    int32_t *chosen = (int32_t *)rest;
    rest += up_to(S * K, PANEL);
    float *x = run->x + first * run->Wp;
    normalise_rows(x, layer->attention_norm, rows, s->width, run->Wp, h);
    apply(&layer->to_q, h, run->Wp, rows, q, run->Wp, 0, scratch);
    linear(h, run->Wp, rows, &layer->to_selector_q, sq, s_row, 0);
    for (long r = 0; r < rows; r++) {
        const long at = (first + r) * run->D / 2, s_at = (first + r) * E / 2;
        for (long i = 0; i < s->num_heads; i++) rotate(q + r * run->Wp + i * run->D, run->D, run->cos + at, run->sin + at);
        for (long i = 0; i < S; i++) rotate(sq + r * s_row + i * E, E, run->selector_cos + s_at, run->selector_sin + s_at);
        for (long w = 0; w < s->width; w++) q[r * run->Wp + w] *= 1.44269504f;
    }
    for (long b = 0; b * R < rows; b++) {
        const long j = first / R + b, left = rows - b * R, count = left < R ? left : R;
        for (long i = 0; i < S; i++) {
            if (K == J) all_blocks(J, chosen + i * K);
            else rank_block(run, i, j, count, sq + b * R * s_row, s_row, rest, chosen + i * K);
            memcpy(bias + i * run->Jp, run->log_count, sizeof(float) * run->Jp);
            for (long k = 0; k < K; k++) bias[i * run->Jp + chosen[i * K + k]] = -INFINITY;
            if (run->selected)
                for (long k = 0; k < K; k++) run->selected[(i * J + j) * K + k] = chosen[i * K + k];
        }
        for (long i = 0; i < s->num_heads; i++) {
            const long ranking = i * S / s->num_heads;
            (run->model->is_rounded ? attend_rounded : attend)(
                run, i, count, q + b * R * run->Wp, run->Wp, chosen + ranking * K, bias + ranking * run->Jp, rest,
                mixed + b * R * run->Wp);
        }
    }
    apply(&layer->to_out, mixed, run->Wp, rows, x, run->Wp, 1, scratch);
    feed_forward(run, x, rows, h, rest, scratch);
}

static long scratch_size(const Run *run) {
    const Shape *s = &run->model->shape;
    const long R = s->block_size, most = run->chunk_blocks * R, widest = run->Rp > SUMMARIES ? run->Rp : SUMMARIES;
    const long s_row = up_to(s->selector_heads * s->selector_dim, PANEL);
    const long embedding = CHUNK_STEPS * (2 * s->num_numeric + run->Wp + up_to(s->num_outputs, PANEL));
    const long kv = 2 * s->num_kv_heads * run->D, keys = R * (run->Wp + up_to(kv, PANEL) + s_row) + kv + s->num_kv_heads * run->Rp * (run->D + run->Dp);
    const long ranking = run->lanes * s->selector_dim + run->J * (run->lanes + 2);
    const long reading = (R + LANES) * (run->Dp + 5 + 2 * widest + run->D) + STRIP * widest, hidden = most * up_to(2 * s->ffn_width, PANEL);
    const long largest = ranking > reading ? ranking : reading;
    const long queries = most * (3 * run->Wp + s_row) + s->selector_heads * (run->Jp + run->J + PANEL) +
                         (largest > hidden ? largest : hidden);
    long size = embedding > keys ? embedding : keys;
    return run->spare_size + (size > queries ? size : queries) + 64;
}

static void count_steps(Run *run) {
    const long R = run->model->shape.block_size;
    for (long j = 0; j < run->Jp; j++) {
        const long left = run->N - j * R;
        run->log_count[j] = j < run->J ? log2f((float)(left < R ? left : R)) : -INFINITY;
    }
}

static void run_layers(Run *run, long num_selected, int64_t *selected) {
    const Shape *s = &run->model->shape;
    const long chunks = (run->N + CHUNK_STEPS - 1) / CHUNK_STEPS;
    side_by_side(run, embed, chunks);
    for (long i = 0; i < s->num_layers; i++) {
        run->layer = &run->model->layers[i];
        run->K = run->layer->reads_all ? run->J : num_selected;
        run->selected = run->layer->reads_all ? NULL : selected;
        side_by_side(run, make_keys, run->J);
        if (run->model->is_rounded) side_by_side(run, round_means, s->num_kv_heads * run->Jp / SUMMARIES);
        side_by_side(run, answer, (run->J + run->chunk_blocks - 1) / run->chunk_blocks);
        if (run->selected) selected += s->selector_heads * run->J * run->K;
    }
    side_by_side(run, predict, chunks);
}

// outputs [N, O]; selected [layers that choose, S, J, K] or NULL. 1 where memory ran out, else 0.
int dankai_edge_encode(const Model *model, const float *numeric, const float *known, const int64_t *categorical,
                       int64_t num_steps, int64_t num_selected, int32_t threads, float *outputs, int64_t *selected) {
    const Shape *s = &model->shape;
    const long R = s->block_size, D = s->width / s->num_heads, J = (num_steps + R - 1) / R, G = s->num_kv_heads;
    const long rounded_model = model->is_rounded;
    Run run = {.model = model, .numeric = numeric, .known = known, .categorical = categorical, .outputs = outputs};
    run.N = num_steps, run.J = J, run.D = D, run.Dp = up_to(D, PANEL), run.Rp = up_to(R, PANEL);
    run.Wp = up_to(s->width, PANEL), run.Jp = up_to(J, SUMMARIES), run.lanes = up_to(R, PANEL);
    run.chunk_blocks = CHUNK_STEPS / R > 0 ? CHUNK_STEPS / R : 1;
    run.num_threads = threads < 1 ? 1 : threads > 64 ? 64 : threads;
    run.spare_size = rounded_model ? run.chunk_blocks * R * (DEPTH / 2 + 2) : 0;
    const long E = s->selector_dim, keys = G * J * run.Rp, means = G * run.Jp, exact = !rounded_model;
    const long sizes[] = {J * R * run.Wp, exact * keys * D, exact * keys * run.Dp, means * D, means * run.Dp,
                          s->selector_heads * J * R * E, run.Jp, J * R * D / 2, J * R * D / 2, J * R * E / 2, J * R * E / 2,
                          rounded_model * keys * D / 2, rounded_model * keys * run.Dp / 2, rounded_model * means * D / 2,
                          rounded_model * means * run.Dp / 2, rounded_model * G * J, rounded_model * G * J, rounded_model * means, rounded_model * means};
    float **parts[] = {&run.x, &run.keys, &run.values, &run.mean_keys, &run.mean_values, &run.selector_keys,
                       &run.log_count, &run.cos, &run.sin, &run.selector_cos, &run.selector_sin,
                       (float **)&run.rounded_keys, (float **)&run.rounded_values, (float **)&run.rounded_mean_keys,
                       (float **)&run.rounded_mean_values, &run.key_scale, &run.value_scale, &run.mean_key_scale, &run.mean_value_scale};
    const int count = sizeof sizes / sizeof *sizes;
    float *scratch[64] = {NULL};
    run.scratch = scratch;
    int failed = 0;
    for (int i = 0; i < count; i++) failed |= !(*parts[i] = allocate(sizes[i]));
    for (int i = 0; i < run.num_threads; i++) failed |= !(scratch[i] = allocate(scratch_size(&run)));
    if (!failed) {
        for (int i = 1; i < 5; i++) memset(*parts[i], 0, sizeof(float) * sizes[i]);  // padding weighs nothing
        count_steps(&run);
        run_layers(&run, num_selected, selected);
    }
    for (int i = 0; i < count; i++) free(*parts[i]);
    for (int i = 0; i < run.num_threads; i++) free(scratch[i]);
    return failed;
}

// the model -----------------------------------------------------------------------------------------------

static Matrix packed(const float *weight, long depth, long columns) {
    Matrix m = {allocate(up_to(columns, PANEL) * depth), depth, columns};
    for (long c = 0; m.panels && c < up_to(columns, PANEL); c++)
        for (long k = 0; k < depth; k++)
            m.panels[c / PANEL * PANEL * depth + k * PANEL + c % PANEL] = c < columns ? weight[k * columns + c] : 0.0f;
    return m;
}

static Map mapped(const float *weight, long depth, long columns, int is_rounded) {
    if (!is_rounded) return (Map){packed(weight, depth, columns), {NULL, NULL}};
    return (Map){{NULL, depth, columns}, rounded_matrix(weight, depth, columns)};
}

static float *copied(const float *from, long count) {
    float *to = allocate(count);
    if (to) memcpy(to, from, sizeof(float) * count);
    return to;
}

static void load_layer(Layer *layer, const Shape *s, const float *const *w, int is_rounded) {
    const long W = s->width, D = W / s->num_heads, SE = (long)s->selector_heads * s->selector_dim;
    layer->attention_norm = copied(w[0], W);
    layer->to_kv = mapped(w[1], W, 2 * s->num_kv_heads * D, is_rounded);
    layer->to_selector_k = packed(w[2], W, SE);
    layer->to_selector_q = packed(w[3], W, SE);
    layer->to_q = mapped(w[4], W, W, is_rounded);
    layer->to_out = mapped(w[5], W, W, is_rounded);
    layer->ffn_norm = copied(w[6], W);
    layer->to_hidden = mapped(w[7], W, 2 * s->ffn_width, is_rounded);
    layer->ffn_out = mapped(w[8], s->ffn_width, W, is_rounded);
}

// weights: embed, its bias, norm, head, its bias, frequencies of heads and of rankings, the tables of the
// categorical columns, then nine of each layer in the order of load_layer; all [inputs, outputs], row by row.
Model *dankai_edge_load(const int32_t *shape, const int32_t *reads_all, const int64_t *sizes, const float *const *weights,
                        int32_t is_rounded) {
    Model *m = calloc(1, sizeof(Model));
    if (!m) return NULL;
    memcpy(&m->shape, shape, sizeof(Shape));
    m->is_rounded = is_rounded;
    const Shape *s = &m->shape;
    m->embed = packed(weights[0], 2 * s->num_numeric, s->width);
    m->embed_bias = copied(weights[1], s->width);
    m->norm = copied(weights[2], s->width);
    m->head = packed(weights[3], s->width, s->num_outputs);
    m->head_bias = copied(weights[4], s->num_outputs);
    m->frequency = copied(weights[5], s->width / s->num_heads / 2);
    m->selector_frequency = copied(weights[6], s->selector_dim / 2);
    m->tables = calloc(s->num_categorical + 1, sizeof(float *));
    m->layers = calloc(s->num_layers, sizeof(Layer));
    for (long c = 0; c < s->num_categorical; c++) m->tables[c] = copied(weights[7 + c], sizes[c] * s->width);
    for (long i = 0; i < s->num_layers; i++) {
        load_layer(&m->layers[i], s, weights + 7 + s->num_categorical + 9 * i, is_rounded);
        m->layers[i].reads_all = reads_all[i];
    }
    return m;
}

void dankai_edge_free(Model *m) {
    for (long i = 0; i < m->shape.num_layers; i++) {
        Layer *l = &m->layers[i];
        Map *maps[] = {&l->to_kv, &l->to_q, &l->to_out, &l->to_hidden, &l->ffn_out};
        void *parts[] = {l->attention_norm, l->ffn_norm, l->to_selector_k.panels, l->to_selector_q.panels};
        for (int part = 0; part < 4; part++) free(parts[part]);
        for (int map = 0; map < 5; map++)
            free(maps[map]->exact.panels), free(maps[map]->rounded.panels), free(maps[map]->rounded.scales);
    }
    for (long c = 0; c < m->shape.num_categorical; c++) free(m->tables[c]);
    float *parts[] = {m->embed.panels, m->embed_bias, m->norm, m->head.panels, m->head_bias, m->frequency, m->selector_frequency};
    for (int part = 0; part < 7; part++) free(parts[part]);
    free(m->tables);
    free(m->layers);
    free(m);
}
