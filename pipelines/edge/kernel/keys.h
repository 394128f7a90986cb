// Keys, values, their means and selector keys of the whole sequence, block by block.

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
