// The weights, packed for the products: loaded once, used by every run.

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
