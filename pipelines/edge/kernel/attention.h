// Softmax attention of one block of queries of one head, tile of keys after tile of keys.
//
// Logits arrive multiplied by log2(e), so that weights are powers of two. A running maximum and sum per row
// (Milakov and Gimelshein 2018) make the order and number of tiles free.

typedef struct {
    const float *keys;    // [keys / PANEL][channels][PANEL]
    const float *values;  // [channels / PANEL][keys][PANEL]
    const float *bias;    // added to the logits of every row, [keys]; NULL for none
    long num_keys;        // a multiple of PANEL
    long num_valid;       // keys from here on do not exist
    const float *next_keys, *next_values;  // of the tile after this one, or NULL
} Tile;

typedef struct {
    const float *queries;  // [rows, query_row]
    long query_row, rows, channels, padded;  // channels, and those rounded up to whole panels
    float *out;             // [rows, padded]
    float *most, *sum;      // [rows]
    float *weights;         // [rows, keys of the largest tile]
} Reading;

static void begin(Reading *r) {
    memset(r->out, 0, sizeof(float) * r->rows * r->padded);
    for (long row = 0; row < r->rows; row++) r->most[row] = -INFINITY, r->sum[row] = 0.0f;
}

// One row's logits become its weights; what was summed up before is brought to the new maximum.
INLINE void weigh_row(Reading *r, const Tile *tile, long row) {
    float *logits = r->weights + row * tile->num_keys;
    Vector best = splat(-INFINITY);
    if (tile->bias)
        for (long k = 0; k < tile->num_keys; k += LANES)
            store(logits + k, load(logits + k) + load(tile->bias + k));
    for (long k = tile->num_valid; k < tile->num_keys; k++) logits[k] = -INFINITY;
    for (long k = 0; k < tile->num_keys; k += LANES) best = larger(best, load(logits + k));
    const float most = largest_lane(best);
    if (most > r->most[row]) {
        const float shrink = exp2f(r->most[row] - most);
        r->most[row] = most;
        r->sum[row] *= shrink;
        float *out = r->out + row * r->padded;
        for (long d = 0; d < r->padded; d += LANES) store(out + d, load(out + d) * splat(shrink));
    }
    const Vector zero = splat(r->most[row]);
    Vector sum = splat(0.0f);
    for (long k = 0; k < tile->num_keys; k += LANES) {
        const Vector weight = exp2_of(load(logits + k) - zero);
        store(logits + k, weight);
        sum += weight;
    }
    r->sum[row] += sum_of_lanes(sum);
}

static void read_tile(Reading *r, const Tile *tile) {
    const long strips = (r->rows + STRIP - 1) / STRIP;
    for (long row = 0; row < r->rows; row += STRIP) {
        const long strip = r->rows - row < STRIP ? r->rows - row : STRIP;
        ask_for(tile->next_keys, sizeof(float) * tile->num_keys * r->channels, row / STRIP, strips);
        strip_into(strip, r->channels, r->queries + row * r->query_row, r->query_row, tile->keys, tile->num_keys,
                   r->weights + row * tile->num_keys, tile->num_keys, 0);
        for (long i = 0; i < strip; i++) weigh_row(r, tile, row + i);
    }
    for (long row = 0; row < r->rows; row += STRIP) {
        const long strip = r->rows - row < STRIP ? r->rows - row : STRIP;
        ask_for(tile->next_values, sizeof(float) * tile->num_keys * r->padded, row / STRIP, strips);
        strip_into(strip, tile->num_keys, r->weights + row * tile->num_keys, tile->num_keys, tile->values, r->padded,
                   r->out + row * r->padded, r->padded, 1);
    }
}

// Into `to` [rows, to_row], channels side by side.
static void finish(const Reading *r, float *to, long to_row) {
    for (long row = 0; row < r->rows; row++) {
        const float share = 1.0f / r->sum[row];
        for (long d = 0; d < r->channels; d++) to[row * to_row + d] = r->out[row * r->padded + d] * share;
    }
}
