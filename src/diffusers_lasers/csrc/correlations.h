/* Inner products of signals with all atoms: a matrix product whose right factor is the packed dictionary. */

#if W == 16
#define ROWS 8
#else
#define ROWS 4
#endif

/* out[i][k] = Σ_l signals[i][l] · d_k[l] for ROWS signals and the 2·W atoms from `panel` on. */
FUNCTION void NAME(tile)(const float *signals, long stride, const float *panel, long features, float *out, long out_stride)
{
    vf c[ROWS][2];
    for (int i = 0; i < ROWS; i++) c[i][0] = c[i][1] = NAME(splat)(0);
    for (long l = 0; l < features; l++) {
        vf d0 = NAME(load)(panel + l * PANEL), d1 = NAME(load)(panel + l * PANEL + W);
#pragma GCC unroll 8
        for (int i = 0; i < ROWS; i++) {
            vf x = NAME(splat)(signals[i * stride + l]);
            c[i][0] = NAME(fma)(x, d0, c[i][0]);
            c[i][1] = NAME(fma)(x, d1, c[i][1]);
        }
    }
    for (int i = 0; i < ROWS; i++) {
        NAME(store)(out + i * out_stride, c[i][0]);
        NAME(store)(out + i * out_stride + W, c[i][1]);
    }
}

/* The same for any number of rows: `signals (rows, stride)`, `out (rows, out_stride)`, for panels first … last − 1. */
TASK void NAME(correlate)(
    const float *signals, long rows, long stride, const float *packed, long features, long first, long last, float *out, long out_stride)
{
    for (long panel = first; panel < last; panel++)
        for (long part = 0; part < PANEL; part += 2 * W) {
            const float *d = packed + panel * features * PANEL + part;
            long k = panel * PANEL + part, i = 0;
            for (; i + ROWS <= rows; i += ROWS)
                NAME(tile)(signals + i * stride, stride, d, features, out + i * out_stride + k, out_stride);
            for (; i < rows; i++) {
                vf c0 = NAME(splat)(0), c1 = c0;
                for (long l = 0; l < features; l++) {
                    vf x = NAME(splat)(signals[i * stride + l]);
                    c0 = NAME(fma)(x, NAME(load)(d + l * PANEL), c0);
                    c1 = NAME(fma)(x, NAME(load)(d + l * PANEL + W), c1);
                }
                NAME(store)(out + i * out_stride + k, c0);
                NAME(store)(out + i * out_stride + k + W, c1);
            }
        }
}

/* Task: rows of the Gram matrix of the atoms, from the diagonal on, and their mirror images. */
TASK void NAME(gram_task)(const void *arguments, void *workspace, long index)
{
    const pursuit *p = arguments;
    long width = p->panels * PANEL, start = index * GRAM_ROWS, rest = p->count - start, rows = rest < GRAM_ROWS ? rest : GRAM_ROWS;
    float *gram = (float *)p->gram, *out = gram + start * width;
    (void)workspace;
    NAME(correlate)(p->atoms + start * p->features, rows, p->features, p->packed, p->features, start / PANEL, p->panels, out, width);
    /* Eight rows at a time: their lines, a power of two apart, still share the sets of the cache while they are read. */
    for (long i = 0; i < rows; i += 8)
        for (long k = start + GRAM_ROWS; k < p->count; k++)
            for (long j = i; j < i + 8 && j < rows; j++) gram[k * width + start + j] = out[j * width + k];
}
