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

#include "target.h"
#include "tiles.h"
#include "attention.h"
#include "ranking.h"
#include "integers.h"
#include "model.h"
#include "run.h"
#include "keys.h"
#include "queries.h"

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
