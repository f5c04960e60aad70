/* Greedy pursuits of 2·W signals at once, one in each lane of the vectors: the residual form.
 *
 * All numbers of the signals are vectors over lanes, so that a step has no overhead for a single signal. The
 * correlations of the residuals with an atom take `features` multiply-adds. Their maximum is kept in registers, and no
 * array of size n × atoms is written. OLS stores the correlations and the squared lengths outside the span, 2·atoms
 * vectors. It updates both with the correlations of the new direction,
 *
 *     α_k ← α_k − p qᵀd_k,    n_k ← n_k − (qᵀd_k)² .
 */

#define VECTORS 2
#define GROUP 8 /* atoms at a time */
#define LANES (VECTORS * W)

/* GROUP·VECTORS inner products of `x (features, VECTORS)` with the atoms at `panel`. */
FUNCTION void NAME(products)(const float *panel, const vf *x, long features, vf out[VECTORS][GROUP])
{
    for (int a = 0; a < GROUP; a++)
        for (int v = 0; v < VECTORS; v++) out[v][a] = NAME(splat)(0);
    for (long l = 0; l < features; l++) {
        const float *d = panel + l * PANEL;
        vf x0 = x[l * VECTORS], x1 = x[l * VECTORS + 1];
#pragma GCC unroll 8
        for (int a = 0; a < GROUP; a++) {
            vf atom = NAME(splat)(d[a]);
            out[0][a] = NAME(fma)(atom, x0, out[0][a]);
            out[1][a] = NAME(fma)(atom, x1, out[1][a]);
        }
    }
}

/* OMP: the atom most correlated with each residual, or −1 where no correlation exceeds `best`. */
FUNCTION void NAME(lanes_omp)(const pursuit *p, const vf *residual, vf *best, vi *where)
{
    for (int v = 0; v < VECTORS; v++) where[v] = NAME(isplat)(-1);
    for (long first = 0; first < p->count; first += GROUP) {
        vf c[VECTORS][GROUP];
        NAME(products)(p->packed + first / PANEL * PANEL * p->features + first % PANEL, residual, p->features, c);
        for (int v = 0; v < VECTORS; v++) NAME(keep_largest)(c[v], NAME(isplat)((int)first), 1, &best[v], &where[v]);
    }
}

/* OLS: the atom that shortens each residual most, or −1 where none shortens it by `best`. In the first step there is no
 * `projection`, and `direction` is the signal itself. */
FUNCTION void NAME(lanes_ols)(
    const pursuit *p, const vf *direction, const vf *projection, vf *gain, vf *length, const vf *smallest, vi *where)
{
    vf least = NAME(splat)(LEAST_SQUARED_LENGTH), best[VECTORS], below[VECTORS];
    for (int v = 0; v < VECTORS; v++)
        best[v] = smallest[v] * smallest[v], below[v] = NAME(splat)(1), where[v] = NAME(isplat)(-1);
    for (long first = 0; first < p->count; first += GROUP) {
        vf c[VECTORS][GROUP];
        NAME(products)(p->packed + first / PANEL * PANEL * p->features + first % PANEL, direction, p->features, c);
        for (int v = 0; v < VECTORS; v++) {
            vf g[GROUP], n[GROUP];
            vf *stored_gain = gain + (first * VECTORS + v * GROUP);
            vf *stored_length = length + (first * VECTORS + v * GROUP);
#pragma GCC unroll 8
            for (int a = 0; a < GROUP; a++) {
                if (projection) {
                    g[a] = NAME(fnma)(projection[v], c[v][a], stored_gain[a]);
                    n[a] = NAME(fnma)(c[v][a], c[v][a], stored_length[a]);
                } else {
                    g[a] = c[v][a];
                    n[a] = NAME(splat)(first + a < p->count && p->scale[first + a] != 0 ? 1.0f : 0.0f);
                }
                stored_gain[a] = g[a], stored_length[a] = n[a];
            }
            NAME(keep_largest_ratio)(g, n, NAME(isplat)((int)first), 1, least, &best[v], &below[v], &where[v]);
        }
    }
}

FUNCTION vf NAME(lanes_norm)(const vf *x, long features, int v)
{
    vf total = NAME(splat)(0);
    for (long l = 0; l < features; l++) total = NAME(fma)(x[l * VECTORS + v], x[l * VECTORS + v], total);
    return NAME(root)(total);
}

static size_t NAME(lanes_workspace)(const pursuit *p)
{
    size_t s = p->sparsity, vectors = p->features * (2 + s) + s * (s + 1) / 2 + 2 * s;
    if (p->orthogonal) vectors += 2 * p->panels * PANEL;
    return (vectors * VECTORS) * sizeof(vf);
}

FUNCTION void NAME(lanes_pursuit)(const pursuit *p, void *workspace, long start)
{
    long features = p->features, sparsity = p->sparsity;
    long signals = p->n - start < LANES ? p->n - start : LANES;
    vf *residual = workspace, *direction = residual + features * VECTORS, *basis = direction + features * VECTORS;
    vf *triangle = basis + sparsity * features * VECTORS;
    vf *projection = triangle + sparsity * (sparsity + 1) / 2 * VECTORS;
    vi *slots = (vi *)(projection + sparsity * VECTORS);
    vf *gain = (vf *)(slots + sparsity * VECTORS), *length = gain + p->panels * PANEL * VECTORS;
    vf peak[VECTORS], smallest[VECTORS], goal[VECTORS];
    vi active[VECTORS], finite[VECTORS];
    const vf infinity = NAME(splat)(INFINITY), zero = NAME(splat)(0), one = NAME(splat)(1);

    memset(residual, 0, features * VECTORS * sizeof(vf));
    for (long i = 0; i < signals; i++)
        for (long l = 0; l < features; l++)
            ((float *)residual)[l * LANES + i] = p->signals[(start + i) * features + l];
    for (int v = 0; v < VECTORS; v++) {
        vf top = zero, sum = zero;
        for (long l = 0; l < features; l++) {
            vf x = NAME(magnitude)(residual[l * VECTORS + v]);
            top = NAME(pick)(x > top, x, top);
            sum += x; /* NaN or infinite if any entry is */
        }
        finite[v] = (top < infinity) & (sum == sum);
        active[v] = finite[v] & (top > zero);
        peak[v] = NAME(pick)(active[v], top, one);
        for (long l = 0; l < features; l++) /* largest entry 1: squares neither overflow nor vanish */
            residual[l * VECTORS + v] = NAME(pick)(active[v], residual[l * VECTORS + v] / peak[v], zero);
        smallest[v] = NAME(lanes_norm)(residual, features, v) * RELATIVE_CORRELATION;
        goal[v] = NAME(splat)(p->tolerance) / peak[v];
    }

    long steps = 0;
    for (; steps < sparsity; steps++) {
        vf best[VECTORS];
        vi where[VECTORS], any = NAME(isplat)(0);
        vf *column = triangle + steps * (steps + 1) / 2 * VECTORS, *q = basis + steps * features * VECTORS;
        for (int v = 0; v < VECTORS; v++) {
            if (p->tolerance >= 0) active[v] &= NAME(lanes_norm)(residual, features, v) > goal[v];
            any |= active[v];
            best[v] = smallest[v];
        }
        int alive = 0;
        for (int i = 0; i < W; i++) alive |= any[i];
        if (!alive) break;
        if (!p->orthogonal)
            NAME(lanes_omp)(p, residual, best, where);
        else if (steps == 0)
            NAME(lanes_ols)(p, residual, NULL, gain, length, smallest, where);
        else
            NAME(lanes_ols)(
                p, q - features * VECTORS, projection + (steps - 1) * VECTORS, gain, length, smallest, where);
        for (int v = 0; v < VECTORS; v++) active[v] &= where[v] >= 0;
        for (int v = 0; v < VECTORS; v++)
            for (int i = 0; i < W; i++) {
                const float *atom = p->atoms + (active[v][i] ? where[v][i] : 0) * features;
                for (long l = 0; l < features; l++) ((float *)direction)[l * LANES + v * W + i] = atom[l];
            }
        for (int v = 0; v < VECTORS; v++) {
            vf *d = direction + v;
            for (long t = 0; t < steps; t++) column[t * VECTORS + v] = zero;
            for (int pass = 0; pass < 2; pass++) /* modified Gram–Schmidt; two passes are enough */
                for (long t = 0; t < steps; t++) {
                    const vf *b = basis + t * features * VECTORS + v;
                    vf overlap = zero;
                    for (long l = 0; l < features; l++) overlap = NAME(fma)(b[l * VECTORS], d[l * VECTORS], overlap);
                    for (long l = 0; l < features; l++)
                        d[l * VECTORS] = NAME(fnma)(overlap, b[l * VECTORS], d[l * VECTORS]);
                    column[t * VECTORS + v] += overlap;
                }
            vf height = NAME(lanes_norm)(direction, features, v), along = zero;
            active[v] &= height > RELATIVE_INDEPENDENCE;
            vf divisor = NAME(pick)(active[v], height, one);
            for (long l = 0; l < features; l++) {
                q[l * VECTORS + v] = NAME(pick)(active[v], d[l * VECTORS] / divisor, zero);
                along = NAME(fma)(q[l * VECTORS + v], residual[l * VECTORS + v], along);
            }
            active[v] &= NAME(magnitude)(along) * height > smallest[v];
            along = NAME(pick)(active[v], along, zero);
            for (long l = 0; l < features; l++)
                residual[l * VECTORS + v] = NAME(fnma)(along, q[l * VECTORS + v], residual[l * VECTORS + v]);
            column[steps * VECTORS + v] = divisor;
            projection[steps * VECTORS + v] = along;
            slots[steps * VECTORS + v] = (active[v] & where[v]) | ~active[v];
        }
    }

    /* Back substitution in R γ = Qᵀ y. An unused slot has projection 0 and index −1, and so have all slots after it. */
    for (long s = steps; s-- > 0;)
        for (int v = 0; v < VECTORS; v++) {
            vf value = projection[s * VECTORS + v];
            for (long t = s + 1; t < steps; t++)
                value = NAME(fnma)(triangle[(t * (t + 1) / 2 + s) * VECTORS + v], projection[t * VECTORS + v], value);
            value /= triangle[(s * (s + 1) / 2 + s) * VECTORS + v];
            projection[s * VECTORS + v] = NAME(pick)(slots[s * VECTORS + v] >= 0, value, zero);
        }
    for (long i = 0; i < signals; i++) {
        int64_t *indices = p->indices + (start + i) * sparsity;
        float *coefficients = p->coefficients + (start + i) * sparsity;
        int good = ((int *)finite)[i];
        for (long s = 0; s < sparsity; s++) {
            int k = s < steps ? ((int *)slots)[s * LANES + i] : -1;
            float value = k < 0 ? 0.0f : ((float *)projection)[s * LANES + i] * p->scale[k] * ((float *)peak)[i];
            indices[s] = k;
            coefficients[s] = good ? value : NAN;
        }
    }
}

/* A task has several neighbouring tiles. If two threads took them in turns, they would be no faster than one thread for
 * short signals. */
TASK void NAME(lanes_task)(const void *arguments, void *workspace, long index)
{
    const pursuit *p = arguments;
    long size = p->tiles * LANES;
    for (long start = index * size; start < (index + 1) * size && start < p->n; start += LANES)
        NAME(lanes_pursuit)(p, workspace, start);
}
