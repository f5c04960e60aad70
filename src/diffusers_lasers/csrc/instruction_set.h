/* All kernels for one instruction set. This file is included once for each set. */

#include "simd.h"

#include "correlations.h"
#include "pursuit_lanes.h"
#include "pursuit_gram.h"
#include "synthesis.h"
#include "online_learning.h"
#include "codewords.h"
#include "nearest.h"

#ifndef IMPLEMENTATION
#define IMPLEMENTATION
typedef struct implementation {
    const char *name;
    int (*pursue)(pursuit *p, int threads);
    int (*synthesis_gradients)(synthesis *p, int threads);
    int (*nearest)(nearest *p, int threads);
    int (*codewords)(codewords *, int);
    int (*block_update)(float *, const float *, const float *, const float *, long, long, long);
} implementation;
#endif

static int NAME(pursue)(pursuit *p, int threads)
{
    job j = {.arguments = p};
    if (p->gram_form) {
        if (p->gram) {
            prefer_huge_pages(p->gram, p->count * p->panels * PANEL * sizeof(float));
            job gram = {.arguments = p, .task = NAME(gram_task), .tasks = (p->count + GRAM_ROWS - 1) / GRAM_ROWS};
            if (run(&gram, threads)) return -1;
        }
        j.task = NAME(gram_form_task), j.tasks = (p->n + SIGNALS - 1) / SIGNALS, j.workspace = NAME(gram_workspace)(p);
    } else {
        p->tiles = p->n / (4L * threads * LANES); /* four tasks for each thread */
        p->tiles = p->tiles < 1 ? 1 : p->tiles > 64 ? 64 : p->tiles;
        j.task = NAME(lanes_task), j.tasks = (p->n + p->tiles * LANES - 1) / (p->tiles * LANES);
        j.workspace = NAME(lanes_workspace)(p);
    }
    return run(&j, threads);
}

#define STRING_(x) #x
#define STRING(x) STRING_(x)
static const implementation NAME(implementation) = {
    .name = STRING(SUFFIX),
    .pursue = NAME(pursue),
    .synthesis_gradients = NAME(synthesis_gradients),
    .nearest = NAME(nearest),
    .codewords = NAME(codewords),
    .block_update = NAME(block_update),
};

#undef vf
#undef vi
#undef SUFFIX
#undef TARGET
#undef W
#undef ISA_AVX512
#undef ISA_AVX2
#undef ROWS
#undef DEPTH
#undef AHEAD
#undef WIDE
#undef TOGETHER
#undef LANES
#undef VECTORS
#undef GROUP
#undef SIGNALS
#undef BLOCK
#undef ATOMS_A_TASK
#undef SIGNALS_A_TASK
