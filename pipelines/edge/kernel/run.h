// What one call works on, its threads, and what happens to rows one by one.

#define CHUNK_STEPS 128  // of queries that go through a layer together: their weights are read once for all
#define SUMMARIES 64     // summaries in one tile of keys

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

typedef struct {
    Run *run;
    float *scratch;
} Worker;

// Numbers below 2^-126 count as zero meanwhile: a product with one can take a hundred times as long.
static void *work_on(void *argument) {
    Worker *worker = argument;
    long item;
#if defined(__x86_64__)
    const unsigned before = _mm_getcsr();
    _mm_setcsr(before | _MM_FLUSH_ZERO_ON | _MM_DENORMALS_ZERO_ON);
#endif
    while ((item = __atomic_fetch_add(&worker->run->next, 1, __ATOMIC_RELAXED)) < worker->run->count)
        worker->run->work(worker->run, item, worker->scratch);
#if defined(__x86_64__)
    _mm_setcsr(before);
#endif
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
