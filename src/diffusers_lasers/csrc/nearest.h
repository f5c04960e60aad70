/* The nearest codeword of each part of each signal, which maximises xᵀc − ‖c‖²/2. Each of the `slots` parts has its own
 * codebook.
 *
 * Products and maxima are computed in one pass. A tile of ROWS signals and 2·W codewords stays in registers, and only
 * the running maximum of each lane and its position are kept. The codewords that pad the last panel have
 * −‖c‖²/2 = −∞ and are never chosen.
 */

#ifndef NEAREST
#define NEAREST
typedef struct nearest {
    const float *signals; /* (n, stride), of which the first slots × features count */
    const float *packed;  /* (slots, panels, features, PANEL): the codewords, padded by zeros */
    const float *offsets; /* (slots, panels × PANEL): −‖c‖²/2, and −∞ for the padding */
    int64_t *indices;     /* (n, slots) */
    long n, stride, slots, features, panels;
} nearest;
#endif

#define NEAREST_SIGNALS (8 * ROWS) /* in a task */

TASK void NAME(nearest_task)(const void *arguments, void *workspace, long index)
{
    const nearest *p = arguments;
    long slot = index % p->slots, first = index / p->slots * NEAREST_SIGNALS, width = p->panels * PANEL;
    long rest = p->n - first, rows = rest < NEAREST_SIGNALS ? rest : NEAREST_SIGNALS;
    const float *signals = p->signals + first * p->stride + slot * p->features;
    const float *packed = p->packed + slot * width * p->features, *offsets = p->offsets + slot * width;
    vf best[NEAREST_SIGNALS];
    vi where[NEAREST_SIGNALS], lanes;
    (void)workspace;
    for (int i = 0; i < W; i++) lanes[i] = i;
    for (long i = 0; i < NEAREST_SIGNALS; i++) best[i] = NAME(splat)(-INFINITY), where[i] = NAME(isplat)(0);
    for (long k = 0; k < width; k += 2 * W) {
        const float *d = packed + k / PANEL * PANEL * p->features + k % PANEL;
        vf o0 = NAME(load)(offsets + k), o1 = NAME(load)(offsets + k + W);
        vi at0 = lanes + NAME(isplat)((int)k), at1 = at0 + NAME(isplat)(W);
        for (long start = 0; start < rows; start += ROWS) {
            /* The last tile may repeat rows of the tile before. Their maxima do not change. */
            long from = start + ROWS <= rows ? start : rows >= ROWS ? rows - ROWS : start;
            long count = rows - from < ROWS ? rows - from : ROWS;
            const float *x[ROWS];
            vf c[ROWS][2];
            for (int i = 0; i < ROWS; i++) {
                x[i] = signals + (from + (i < count ? i : count - 1)) * p->stride;
                c[i][0] = o0, c[i][1] = o1;
            }
            for (long l = 0; l < p->features; l++) {
                vf d0 = NAME(load)(d + l * PANEL), d1 = NAME(load)(d + l * PANEL + W);
#pragma GCC unroll 8
                for (int i = 0; i < ROWS; i++) {
                    vf y = NAME(splat)(x[i][l]);
                    c[i][0] = NAME(fma)(y, d0, c[i][0]);
                    c[i][1] = NAME(fma)(y, d1, c[i][1]);
                }
            }
            for (int i = 0; i < ROWS && i < count; i++) {
                NAME(keep_larger)(c[i][0], at0, &best[from + i], &where[from + i]);
                NAME(keep_larger)(c[i][1], at1, &best[from + i], &where[from + i]);
            }
        }
    }
    for (long i = 0; i < rows; i++) {
        float top = best[i][0];
        int at = where[i][0];
        for (int j = 1; j < W; j++) /* the first one on ties */
            if (best[i][j] > top || (best[i][j] == top && where[i][j] < at)) top = best[i][j], at = where[i][j];
        p->indices[(first + i) * p->slots + slot] = at;
    }
}

static int NAME(nearest)(nearest *p, int threads)
{
    long blocks = (p->n + NEAREST_SIGNALS - 1) / NEAREST_SIGNALS;
    job j = {.arguments = p, .task = NAME(nearest_task), .tasks = p->slots * blocks};
    return run(&j, threads);
}

#undef NEAREST_SIGNALS
