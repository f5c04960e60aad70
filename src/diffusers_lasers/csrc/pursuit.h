/* What both forms of the greedy pursuits share: their arguments and their thresholds. */

#define PANEL 32 /* atoms of a panel of the packed dictionary */

/* A step must explain this share of a signal's length, and an atom must stand out of the span by this share of its own. */
#define RELATIVE_CORRELATION 1e-6f
#define RELATIVE_INDEPENDENCE 1e-5f
/* OLS divides by the squared length outside the span, which is tracked by subtraction: below this it is rounding. */
#define LEAST_SQUARED_LENGTH 1e-5f

typedef struct pursuit {
    const float *signals;   /* (n, features) */
    const float *atoms;     /* (atoms, features), unit norm or zero */
    const float *packed;    /* (panels, features, PANEL): the same atoms, padded by zeros */
    const float *scale;     /* (atoms,): from coefficients of unit atoms to those of the given ones */
    const float *gram;      /* (atoms, panels × PANEL), or NULL: a row is computed where it is needed */
    int64_t *indices;       /* (n, sparsity) */
    float *coefficients;    /* (n, sparsity) */
    long n, features, count, panels, sparsity;
    long tiles;             /* of a task, residual form */
    float tolerance;        /* negative: none */
    int orthogonal;         /* 1: OLS, 0: OMP */
    int gram_form;          /* 1: the Gram form, 0: the residual form */
} pursuit;

/* Floats up to a multiple of 16, so that every array in a workspace is aligned. */
static inline size_t padded(size_t x) { return (x + 15) / 16 * 16; }
