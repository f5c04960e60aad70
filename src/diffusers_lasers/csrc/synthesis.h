/* Gradients of ŷ_n = Σ_s c_ns d_{k_ns}, given g = ∂ℓ/∂ŷ:
 *
 *     ∂ℓ/∂d_k = Σ_{(n,s): k_ns = k} c_ns g_n ,      ∂ℓ/∂c_ns = gᵀ_n d_{k_ns} .
 *
 * The slots are sorted by atom with a counting sort. One thread then computes the sum of an atom in the order of the
 * signals. So no two threads write the same numbers, and the result does not depend on the number of threads.
 */

#ifndef SYNTHESIS
#define SYNTHESIS
typedef struct synthesis {
    const float *gradient, *coefficients, *atoms; /* (n, features), (n, sparsity), (atoms, features) */
    const int64_t *indices;                       /* (n, sparsity) */
    float *to_atoms, *to_coefficients;            /* (atoms, features) and (n, sparsity); NULL where not wanted */
    const int *start, *slots;                     /* (atoms + 1,): first slot of an atom in `slots (n × sparsity,)` */
    long n, features, count, sparsity;
} synthesis;
#endif

#define ATOMS_A_TASK 8
#define SIGNALS_A_TASK 256

TASK void NAME(atoms_task)(const void *arguments, void *workspace, long index)
{
    const synthesis *p = arguments;
    long last = (index + 1) * ATOMS_A_TASK < p->count ? (index + 1) * ATOMS_A_TASK : p->count;
    (void)workspace;
    for (long k = index * ATOMS_A_TASK; k < last; k++) {
        float *out = p->to_atoms + k * p->features;
        long l = 0;
        for (; l + 4 * W <= p->features; l += 4 * W) {
            vf x0 = NAME(splat)(0), x1 = x0, x2 = x0, x3 = x0;
            for (int i = p->start[k]; i < p->start[k + 1]; i++) {
                const float *g = p->gradient + p->slots[i] / p->sparsity * p->features + l;
                vf c = NAME(splat)(p->coefficients[p->slots[i]]);
                x0 = NAME(fma)(c, NAME(load)(g), x0), x1 = NAME(fma)(c, NAME(load)(g + W), x1);
                x2 = NAME(fma)(c, NAME(load)(g + 2 * W), x2), x3 = NAME(fma)(c, NAME(load)(g + 3 * W), x3);
            }
            NAME(store)(out + l, x0), NAME(store)(out + l + W, x1);
            NAME(store)(out + l + 2 * W, x2), NAME(store)(out + l + 3 * W, x3);
        }
        for (; l + W <= p->features; l += W) {
            vf x = NAME(splat)(0);
            for (int i = p->start[k]; i < p->start[k + 1]; i++)
                x = NAME(fma)(NAME(splat)(p->coefficients[p->slots[i]]),
                              NAME(load)(p->gradient + p->slots[i] / p->sparsity * p->features + l), x);
            NAME(store)(out + l, x);
        }
        for (; l < p->features; l++) {
            float x = 0;
            for (int i = p->start[k]; i < p->start[k + 1]; i++)
                x += p->coefficients[p->slots[i]] * p->gradient[p->slots[i] / p->sparsity * p->features + l];
            out[l] = x;
        }
    }
}

TASK void NAME(coefficients_task)(const void *arguments, void *workspace, long index)
{
    const synthesis *p = arguments;
    long last = (index + 1) * SIGNALS_A_TASK < p->n ? (index + 1) * SIGNALS_A_TASK : p->n;
    (void)workspace;
    for (long n = index * SIGNALS_A_TASK; n < last; n++)
        for (long s = 0; s < p->sparsity; s++) {
            long k = p->indices[n * p->sparsity + s], l = 0;
            if (k < 0) {
                p->to_coefficients[n * p->sparsity + s] = 0;
                continue;
            }
            const float *g = p->gradient + n * p->features, *d = p->atoms + k * p->features;
            vf total = NAME(splat)(0);
            for (; l + W <= p->features; l += W) total = NAME(fma)(NAME(load)(g + l), NAME(load)(d + l), total);
            float rest = 0;
            for (; l < p->features; l++) rest += g[l] * d[l];
            p->to_coefficients[n * p->sparsity + s] = NAME(sum)(total) + rest;
        }
}

static int NAME(synthesis_gradients)(synthesis *p, int threads)
{
    if (p->to_coefficients) {
        long tasks = (p->n + SIGNALS_A_TASK - 1) / SIGNALS_A_TASK;
        job j = {.arguments = p, .task = NAME(coefficients_task), .tasks = tasks};
        if (run(&j, threads)) return -1;
    }
    if (!p->to_atoms) return 0;
    long total = p->n * p->sparsity;
    int *start = calloc(p->count + 2, sizeof(int)), *slots = malloc((total + 1) * sizeof(int));
    int failed = !start || !slots;
    if (!failed) {
        int *next = start + 1; /* counts, shifted by one; they become the first slots when the slots are placed */
        for (long i = 0; i < total; i++)
            if (p->indices[i] >= 0) next[p->indices[i] + 1]++;
        for (long k = 0; k < p->count; k++) next[k + 1] += next[k];
        for (long i = 0; i < total; i++)
            if (p->indices[i] >= 0) slots[next[p->indices[i]]++] = (int)i;
        p->start = start, p->slots = slots;
        job j = {.arguments = p, .task = NAME(atoms_task), .tasks = (p->count + ATOMS_A_TASK - 1) / ATOMS_A_TASK};
        failed = run(&j, threads);
    }
    free(start), free(slots);
    return failed ? -1 : 0;
}
