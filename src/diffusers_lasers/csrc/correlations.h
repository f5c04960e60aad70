/* Inner products of signals with all atoms: a matrix product whose right factor is the packed dictionary. */

/* Signals in a tile. This number leaves registers for two vectors of atoms. */
#if W == 16
#define ROWS 8
#elif W == 8
#define ROWS 6
#else
#define ROWS 4
#endif
#define DEPTH 64 /* features at a time; this part of a panel fits into the L1 cache beside the signals */
#define AHEAD 32 /* distance, in features, by which the first tile on a panel prefetches it */

/* out[i][k] = Σ_l signals[i][l] · d_k[l] over l = from … to − 1, for `rows` ≤ ROWS signals and the 2·W atoms from
 * `panel` on. The sum is added to `out` unless from = 0. With `fetch`, the next lines of the panel are prefetched. */
FUNCTION void NAME(tile)(
    const int rows, const int fetch, const float *signals, long stride, const float *panel, long from, long to,
    float *out, long out_stride)
{
    vf c[ROWS][2];
#pragma GCC unroll 8
    for (int i = 0; i < rows; i++) {
        c[i][0] = from ? NAME(load)(out + i * out_stride) : NAME(splat)(0);
        c[i][1] = from ? NAME(load)(out + i * out_stride + W) : NAME(splat)(0);
    }
    for (long l = from; l < to; l++) {
        if (fetch) __builtin_prefetch(panel + (l + AHEAD) * PANEL);
        vf d0 = NAME(load)(panel + l * PANEL), d1 = NAME(load)(panel + l * PANEL + W);
#pragma GCC unroll 8
        for (int i = 0; i < rows; i++) {
            vf x = NAME(splat)(signals[i * stride + l]);
            c[i][0] = NAME(fma)(x, d0, c[i][0]);
            c[i][1] = NAME(fma)(x, d1, c[i][1]);
        }
    }
#pragma GCC unroll 8
    for (int i = 0; i < rows; i++) {
        NAME(store)(out + i * out_stride, c[i][0]);
        NAME(store)(out + i * out_stride + W, c[i][1]);
    }
}

#define WIDE (PANEL / W)
#define TOGETHER (8 / WIDE)

/* One signal and the atoms of `panels` ≤ TOGETHER panels. There are eight chains of multiply-adds where a tile has two.
 * Each chain has the same order as in a tile, so that the products of a signal are exactly the same for any number of
 * signals. */
FUNCTION void NAME(one_row)(const int panels, const float *signal, const float *panel, long features, float *out)
{
    vf c[8];
#pragma GCC unroll 8
    for (int i = 0; i < panels * WIDE; i++) c[i] = NAME(splat)(0);
    for (long l = 0; l < features; l++) {
        vf x = NAME(splat)(signal[l]);
#pragma GCC unroll 8
        for (int i = 0; i < panels * WIDE; i++)
            c[i] = NAME(fma)(x, NAME(load)(panel + (i / WIDE * features + l) * PANEL + i % WIDE * W), c[i]);
    }
#pragma GCC unroll 8
    for (int i = 0; i < panels * WIDE; i++) NAME(store)(out + i * W, c[i]);
}

/* The same for any number of rows: `signals (rows, stride)`, `out (rows, out_stride)`, and panels first … last − 1. */
TASK void NAME(correlate)(
    const float *signals, long rows, long stride, const float *packed, long features, long first, long last, float *out,
    long out_stride)
{
    if (rows == 1) {
        for (; first + TOGETHER <= last; first += TOGETHER)
            NAME(one_row)(TOGETHER, signals, packed + first * features * PANEL, features, out + first * PANEL);
        for (; first < last; first++)
            NAME(one_row)(1, signals, packed + first * features * PANEL, features, out + first * PANEL);
        return;
    }
    for (long panel = first; panel < last; panel++)
        for (long from = 0; from < features; from += DEPTH)
            for (long part = 0; part < PANEL; part += 2 * W) {
                const float *d = packed + panel * features * PANEL + part;
                long to = features - from < DEPTH ? features : from + DEPTH, k = panel * PANEL + part, i = 0;
                if (rows >= ROWS) NAME(tile)(ROWS, 1, signals, stride, d, from, to, out + k, out_stride), i = ROWS;
                for (; i + ROWS <= rows; i += ROWS)
                    NAME(tile)(
                        ROWS, 0, signals + i * stride, stride, d, from, to, out + i * out_stride + k, out_stride);
                for (; i + ROWS / 2 <= rows; i += ROWS / 2)
                    NAME(tile)(
                        ROWS / 2, 0, signals + i * stride, stride, d, from, to, out + i * out_stride + k, out_stride);
                for (; i < rows; i++)
                    NAME(tile)(1, 1, signals + i * stride, stride, d, from, to, out + i * out_stride + k, out_stride);
            }
}

/* A task that computes rows of the Gram matrix from the diagonal on, and copies them to the transposed places. */
TASK void NAME(gram_task)(const void *arguments, void *workspace, long index)
{
    const pursuit *p = arguments;
    long width = p->panels * PANEL, start = index * GRAM_ROWS, rest = p->count - start;
    long rows = rest < GRAM_ROWS ? rest : GRAM_ROWS;
    float *gram = (float *)p->gram, *out = gram + start * width;
    (void)workspace;
    NAME(correlate)(
        p->atoms + start * p->features, rows, p->features, p->packed, p->features, start / PANEL, p->panels, out,
        width);
    /* In blocks of 16 × 16, so that each line of the cache is read once and written once. Rows may be a power of two
     * apart, and then compete for the same lines. */
    for (long k = start + GRAM_ROWS; k < p->count; k += 16)
        for (long i = 0; i < rows; i += 16) {
            float tile[16][16];
            for (long j = 0; j < 16; j++)
                for (long l = 0; l < 16; l++) tile[l][j] = out[(i + j) * width + k + l];
            for (long l = 0; l < 16 && k + l < p->count; l++)
                memcpy(gram + (k + l) * width + start + i, tile[l], sizeof tile[l]);
        }
}
