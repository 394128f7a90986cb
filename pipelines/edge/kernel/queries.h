// Chunks of query blocks through a layer, in place: rank, read, feed forward.

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
        const long j = chosen[i], at = g * J + j, left = run->N - j * R, next = i + 1 < run->K ? g * J + chosen[i + 1] : at;
        read_tile(&r, &(Tile){run->keys + at * Rp * D, run->values + at * Rp * Dp, NULL, Rp, left < R ? left : R,
                              run->keys + next * Rp * D, run->values + next * Rp * Dp});
    }
    for (long j = 0; run->K < J && j < run->Jp; j += SUMMARIES) {
        const long at = g * run->Jp + j, left = J - j;
        read_tile(&r, &(Tile){run->mean_keys + at * D, run->mean_values + at * Dp, bias + j, SUMMARIES,
                              left < SUMMARIES ? left : SUMMARIES, NULL, NULL});
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
        const long j = chosen[i], at = g * J + j, left = run->N - j * R, next = i + 1 < run->K ? g * J + chosen[i + 1] : at;
        read_rounded_tile(&r, queries, worth,
                          &(RoundedTile){run->rounded_keys + at * Rp * D, run->rounded_values + at * Rp * Dp, NULL, Rp,
                                         left < R ? left : R, run->key_scale[at], run->value_scale[at],
                                         run->rounded_keys + next * Rp * D, run->rounded_values + next * Rp * Dp}, spare);
    }
    for (long j = 0; run->K < J && j < run->Jp; j += SUMMARIES) {
        const long at = g * run->Jp + j, left = J - j;
        read_rounded_tile(&r, queries, worth,
                          &(RoundedTile){run->rounded_mean_keys + at * D, run->rounded_mean_values + at * Dp, bias + j,
                                         SUMMARIES, left < SUMMARIES ? left : SUMMARIES,
                                         run->mean_key_scale[at / SUMMARIES], run->mean_value_scale[at / SUMMARIES], NULL, NULL}, spare);
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
            const Vector g = load(gate + f), shrunk = exp2_of(larger(g, splat(-87.0f)) * splat(-1.44269504f));  // below 2^126
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
