/* Signals from codewords. Each channel has some of the slots, with its own codebooks. Its signal is the sum of the
 * codewords of its slots, or their concatenation if their features add up to those of a signal. */

#ifndef CODEWORDS
#define CODEWORDS
typedef struct channel {
    const float *books; /* (slots, count, features) */
    int64_t slots, count, features;
} channel;

typedef struct codewords {
    const channel *channels;
    const int64_t *indices; /* (n, stride): the slots of all channels */
    float *signals;         /* (channels, n, width) */
    atomic_int *outside;    /* set to 1 if an index is out of range */
    long number, n, stride, width;
} codewords;
#endif

#define CODES_A_TASK 256

TASK void NAME(codewords_task)(const void *arguments, void *workspace, long index)
{
    const codewords *p = arguments;
    long blocks = (p->n + CODES_A_TASK - 1) / CODES_A_TASK;
    long number = index / blocks, first = index % blocks * CODES_A_TASK;
    long last = first + CODES_A_TASK < p->n ? first + CODES_A_TASK : p->n;
    const channel c = p->channels[number];
    const int64_t *indices = p->indices;
    long groups = c.features < p->width ? c.slots : 1, summed = groups > 1 ? 1 : c.slots, book = c.count * c.features;
    (void)workspace;
    for (long before = 0; before < number; before++) indices += p->channels[before].slots;
    for (long n = first; n < last; n++) {
        const int64_t *at = indices + n * p->stride;
        float *out = p->signals + (number * p->n + n) * p->width;
        for (long s = 0; s < c.slots; s++)
            if (at[s] < 0 || at[s] >= c.count) {
                atomic_store(p->outside, 1);
                return;
            }
        for (long g = 0; g < groups; g++, at += summed, out += c.features) {
            const float *books = c.books + g * book;
            long l = 0;
            for (; l + 4 * W <= c.features; l += 4 * W) {
                const float *x = books + at[0] * c.features + l;
                vf x0 = NAME(load)(x), x1 = NAME(load)(x + W), x2 = NAME(load)(x + 2 * W), x3 = NAME(load)(x + 3 * W);
                for (long s = 1; s < summed; s++) {
                    x = books + s * book + at[s] * c.features + l;
                    x0 += NAME(load)(x), x1 += NAME(load)(x + W);
                    x2 += NAME(load)(x + 2 * W), x3 += NAME(load)(x + 3 * W);
                }
                NAME(store)(out + l, x0), NAME(store)(out + l + W, x1);
                NAME(store)(out + l + 2 * W, x2), NAME(store)(out + l + 3 * W, x3);
            }
            for (; l + W <= c.features; l += W) {
                vf x = NAME(load)(books + at[0] * c.features + l);
                for (long s = 1; s < summed; s++) x += NAME(load)(books + s * book + at[s] * c.features + l);
                NAME(store)(out + l, x);
            }
            for (; l < c.features; l++) {
                float x = books[at[0] * c.features + l];
                for (long s = 1; s < summed; s++) x += books[s * book + at[s] * c.features + l];
                out[l] = x;
            }
        }
    }
}

static int NAME(codewords)(codewords *p, int threads)
{
    long blocks = (p->n + CODES_A_TASK - 1) / CODES_A_TASK;
    job j = {.arguments = p, .task = NAME(codewords_task), .tasks = p->number * blocks};
    return run(&j, threads);
}

#undef CODES_A_TASK
