/* Greedy pursuits of one signal at a time, with correlations from the Gram matrix: the Gram form.
 *
 * Let q_1 … q_s be the orthonormal basis of the chosen atoms, Q R = D_τ. The correlations of a new direction with all
 * atoms are
 *
 *     w_s = Dᵀ q_s = (G_{j_s} − Σ_{t<s} R_ts w_t) / R_ss ,      α ← α − p_s w_s ,      n ← n − w_s² (OLS) .
 *
 * This takes s multiply-adds for each atom instead of `features`. Q, R, the residual and the coefficients are computed
 * from the atoms themselves, as in the residual form. Only the choice of the next atom uses the recursion. Its rounding
 * error, in units of that of a product, is at most e_s = (1 + Σ |R_ts| e_t) / R_ss. Where this is large, w_s is
 * computed directly. α is computed directly when the residual has become short.
 *
 * Few signals do not need all rows of the Gram matrix. Without a table of it, a row is computed when its atom is
 * chosen. It has the same bits as in the table, so that a signal's code does not depend on the number of signals.
 */

#define SIGNALS (4 * ROWS)   /* in a task */
#define BLOCK (8 * W)        /* atoms at a time; divides the padded number of atoms */
#define WORST_ROUNDING 16.0f /* largest e_s for which the recursion is used */
#define SHORT 0.03f          /* α is computed directly when the residual is this short, relative to the last time */

FUNCTION float NAME(dot)(const float *a, const float *b, long length)
{
    vf total = NAME(splat)(0);
    for (long l = 0; l < length; l += W) total = NAME(fma)(NAME(load)(a + l), NAME(load)(b + l), total);
    return NAME(sum)(total);
}

/* a ← a − Σ_t factor_t b_t, with `b (terms, length)`. */
FUNCTION void NAME(subtract)(float *a, const float *factor, const float *b, long terms, long length)
{
    for (long l = 0; l < length; l += W) {
        vf x = NAME(load)(a + l);
        for (long t = 0; t < terms; t++) x = NAME(fnma)(NAME(splat)(factor[t]), NAME(load)(b + t * length + l), x);
        NAME(store)(a + l, x);
    }
}

/* Position of the largest value of all lanes, the first one on ties, or −1 if no lane has one. */
FUNCTION long NAME(first_of_lanes)(vf best, vi where)
{
#if ISA_AVX512
    __mmask16 top = _mm512_cmp_ps_mask((__m512)best, _mm512_set1_ps(_mm512_reduce_max_ps((__m512)best)), _CMP_EQ_OQ);
    return _mm512_mask_reduce_min_epi32(top, (__m512i)where);
#else
    float top = -1;
    int found = -1;
    for (int i = 0; i < W; i++)
        if (best[i] > top || (best[i] == top && where[i] < found)) top = best[i], found = where[i];
    return found;
#endif
}

/* Updates α (and n) with the correlations of a direction and finds the next atom, in one pass.
 * `row` is G_j, or w itself if `terms` is 0 and `inverse` 1. `w (blocks, sparsity, BLOCK)` holds the earlier w_t, and
 * w_s is stored there as number `current`. `ahead` is the row that the other signal in work needs next; it is
 * prefetched. */
FUNCTION long NAME(advance)(
    const float *row, const float *column, long terms, float inverse, float step, float *w, long current, long sparsity,
    float *alpha, float *length, long width, float smallest, const float *ahead)
{
    vf scale = NAME(splat)(inverse), along = NAME(splat)(step), least = NAME(splat)(LEAST_SQUARED_LENGTH);
    vf best = NAME(splat)(length ? smallest * smallest : smallest), below = NAME(splat)(1);
    vi where = NAME(isplat)(-1), position;
    for (int i = 0; i < W; i++) position[i] = i;
    for (long block = 0; block < width; block += BLOCK) { /* eight independent chains of multiply-adds */
        vf x[8], a[8], n[8];
        float *store = w + block * sparsity;
        for (int i = 0; i < BLOCK; i += 16) __builtin_prefetch(ahead + block + i);
        for (int i = 0; i < 8; i++) x[i] = NAME(load)(row + block + i * W);
        for (long t = 0; t < terms; t++) {
            vf factor = NAME(splat)(column[t]);
#pragma GCC unroll 8
            for (int i = 0; i < 8; i++) x[i] = NAME(fnma)(factor, NAME(load)(store + t * BLOCK + i * W), x[i]);
        }
#pragma GCC unroll 8
        for (int i = 0; i < 8; i++) {
            long k = block + i * W;
            x[i] *= scale;
            NAME(store)(store + current * BLOCK + i * W, x[i]);
            a[i] = NAME(fnma)(along, x[i], NAME(load)(alpha + k));
            NAME(store)(alpha + k, a[i]);
            if (length) {
                n[i] = NAME(fnma)(x[i], x[i], NAME(load)(length + k));
                NAME(store)(length + k, n[i]);
            }
        }
        if (length)
            NAME(keep_largest_ratio)(a, n, position, W, least, &best, &below, &where);
        else
            NAME(keep_largest)(a, position, W, &best, &where);
        position += BLOCK;
    }
    return NAME(first_of_lanes)(best / below, where);
}

/* The first atom, from given α. All atoms have length 1, or 0 with α = 0. */
FUNCTION long NAME(first_atom)(const float *alpha, long width, float smallest)
{
    vf best = NAME(splat)(smallest);
    vi where = NAME(isplat)(-1), position;
    for (int i = 0; i < W; i++) position[i] = i;
    for (long block = 0; block < width; block += BLOCK, position += BLOCK) {
        vf a[8];
        for (int i = 0; i < 8; i++) a[i] = NAME(load)(alpha + block + i * W);
        NAME(keep_largest)(a, position, W, &best, &where);
    }
    return NAME(first_of_lanes)(best, where);
}

/* The state of one signal in work. */
typedef struct NAME(state) {
    float *residual, *alpha, *basis, *w, *length, *triangle, *projection, *rounding, *directly, *atom, *overlap;
    int64_t *indices;
    float *coefficients;
    float peak, smallest, goal, direct;
    long s, next; /* number of atoms so far; the next atom, or −1 */
} NAME(state);

/* Places the arrays of a state in `memory`, unless that is NULL, and returns the number of floats that they take. */
static size_t NAME(place)(const pursuit *p, NAME(state) *x, float *memory)
{
    size_t f = padded(p->features), k = p->panels * PANEL, s = p->sparsity, taken = 0;
    size_t sizes[] = {s * f, s * k, k, padded(s * (s + 1) / 2), padded(s), padded(s), k, f, padded(s)};
    float **arrays[] = {&x->basis,    &x->w,        &x->length, &x->triangle, &x->projection,
                        &x->rounding, &x->directly, &x->atom,   &x->overlap};
    for (int i = 0; i < 9; i++) {
        if (memory) *arrays[i] = memory + taken;
        taken += sizes[i];
    }
    return taken;
}

static size_t NAME(gram_workspace)(const pursuit *p)
{
    NAME(state) unused;
    return sizeof(float) * (SIGNALS * (padded(p->features) + p->panels * PANEL) + 2 * NAME(place)(p, &unused, NULL));
}

TASK void NAME(begin)(const pursuit *p, NAME(state) *x)
{
    long f = padded(p->features), width = p->panels * PANEL;
    float norm = sqrtf(NAME(dot)(x->residual, x->residual, f));
    x->s = 0;
    x->smallest = norm * RELATIVE_CORRELATION, x->goal = p->tolerance / x->peak, x->direct = norm;
    x->next = p->tolerance >= 0 && !(norm > x->goal) ? -1 : NAME(first_atom)(x->alpha, width, x->smallest);
    memset(x->atom, 0, f * sizeof(float));
    if (p->orthogonal)
        for (long k = 0; k < width; k++) x->length[k] = k < p->count && p->scale[k] != 0 ? 1.0f : 0.0f;
}

/* Adds the chosen atom and chooses the next one. */
TASK void NAME(step)(const pursuit *p, NAME(state) *x, const float *ahead)
{
    long f = padded(p->features), width = p->panels * PANEL, s = x->s, chosen_atom = x->next;
    float *column = x->triangle + s * (s + 1) / 2, *q = x->basis + s * f, *atom = x->atom;
    x->next = -1;
    memcpy(atom, p->atoms + chosen_atom * p->features, p->features * sizeof(float));
    for (long t = 0; t < s; t++) column[t] = 0;
    float height = 1, before;
    do { /* classical Gram–Schmidt, with a second pass where the first one cancelled much */
        before = height;
        for (long t = 0; t < s; t++) x->overlap[t] = NAME(dot)(x->basis + t * f, atom, f);
        NAME(subtract)(atom, x->overlap, x->basis, s, f);
        for (long t = 0; t < s; t++) column[t] += x->overlap[t];
        height = sqrtf(NAME(dot)(atom, atom, f));
    } while (before == 1 && height < 0.7f);
    if (!(height > RELATIVE_INDEPENDENCE)) return;
    for (long l = 0; l < f; l++) q[l] = atom[l] / height;
    float along = NAME(dot)(q, x->residual, f);
    if (!(fabsf(along) * height > x->smallest)) return;
    NAME(subtract)(x->residual, &along, q, 1, f);
    column[s] = height, x->projection[s] = along, x->indices[s] = chosen_atom;
    if ((x->s = s + 1) == p->sparsity) return;
    float norm = sqrtf(NAME(dot)(x->residual, x->residual, f));
    if (p->tolerance >= 0 && !(norm > x->goal)) return;

    const float *row = p->gram ? p->gram + chosen_atom * width : x->directly;
    float bound = 1, inverse = 1 / height;
    long terms = s;
    for (long t = 0; t < s; t++) bound += fabsf(column[t]) * x->rounding[t];
    x->rounding[s] = bound * inverse;
    if (x->rounding[s] > WORST_ROUNDING) {
        NAME(correlate)(q, 1, f, p->packed, p->features, 0, p->panels, x->directly, width);
        x->rounding[s] = 1, row = x->directly, terms = 0, inverse = 1;
    } else if (!p->gram)
        NAME(correlate)(
            p->atoms + chosen_atom * p->features, 1, p->features, p->packed, p->features, 0, p->panels, x->directly,
            width);
    if (norm < SHORT * x->direct) {
        NAME(correlate)(x->residual, 1, f, p->packed, p->features, 0, p->panels, x->alpha, width);
        x->direct = norm, along = 0;
    }
    x->next = NAME(advance)(
        row, column, terms, inverse, along, x->w, s, p->sparsity, x->alpha, p->orthogonal ? x->length : NULL, width,
        x->smallest, ahead);
}

TASK void NAME(finish)(const pursuit *p, NAME(state) *x)
{
    for (long i = x->s; i-- > 0;) { /* back substitution in R γ = Qᵀ y */
        float value = x->projection[i];
        for (long t = i + 1; t < x->s; t++) value -= x->triangle[t * (t + 1) / 2 + i] * x->projection[t];
        x->projection[i] = value / x->triangle[i * (i + 1) / 2 + i];
    }
    for (long i = 0; i < p->sparsity; i++) {
        x->coefficients[i] = i < x->s ? x->projection[i] * p->scale[x->indices[i]] * x->peak : 0.0f;
        if (i >= x->s) x->indices[i] = -1;
    }
}

TASK void NAME(gram_form_task)(const void *arguments, void *workspace, long index)
{
    const pursuit *p = arguments;
    long f = padded(p->features), width = p->panels * PANEL, start = index * SIGNALS;
    long rows = p->n - start < SIGNALS ? p->n - start : SIGNALS;
    float *residual = workspace, *alpha = residual + SIGNALS * f, *memory = alpha + SIGNALS * width, peak[SIGNALS];
    for (long i = 0; i < rows; i++) {
        const float *y = p->signals + (start + i) * p->features;
        float top = 0, sum = 0;
        for (long l = 0; l < p->features; l++) {
            float x = fabsf(y[l]);
            top = x > top ? x : top;
            sum += x; /* NaN or infinite if any entry is */
        }
        peak[i] = top < INFINITY && sum == sum ? top : NAN;
        float divisor = peak[i] > 0 ? top : 1;
        for (long l = 0; l < f; l++) /* largest entry 1: squares neither overflow nor vanish */
            residual[i * f + l] = peak[i] > 0 && l < p->features ? y[l] / divisor : 0;
    }
    NAME(correlate)(residual, rows, f, p->packed, p->features, 0, p->panels, alpha, width);

    /* Two signals are in work, with steps in turn. A row of the Gram matrix is fetched during a step of the other. */
    NAME(state) flight[2];
    memory += NAME(place)(p, &flight[0], memory);
    NAME(place)(p, &flight[1], memory);
    flight[0].next = flight[1].next = -1;
    long loaded = 0, busy[2] = {0, 0};
    for (int turn = 0; loaded < rows || busy[0] || busy[1]; turn = !turn) {
        NAME(state) *x = &flight[turn];
        if (!busy[turn] && loaded < rows) {
            x->residual = residual + loaded * f, x->alpha = alpha + loaded * width, x->peak = peak[loaded];
            x->indices = p->indices + (start + loaded) * p->sparsity;
            x->coefficients = p->coefficients + (start + loaded) * p->sparsity;
            loaded++;
            if (x->peak > 0)
                NAME(begin)(p, x), busy[turn] = 1;
            else
                for (long s = 0; s < p->sparsity; s++)
                    x->indices[s] = -1, x->coefficients[s] = x->peak == 0 ? 0.0f : NAN;
        } else if (busy[turn]) {
            const NAME(state) *other = &flight[!turn];
            long ahead = busy[!turn] && other->next >= 0 ? other->next : x->next;
            if (x->next >= 0) NAME(step)(p, x, p->gram ? p->gram + ahead * width : x->alpha);
            if (x->next < 0) NAME(finish)(p, x), busy[turn] = 0;
        }
    }
}
