/* Arguments and thresholds of both forms of the greedy pursuits. */

#define PANEL 32 /* atoms in a panel of the packed dictionary */

/* A step must explain this share of a signal's length. */
#define RELATIVE_CORRELATION 1e-6f
/* The part of an atom outside the span of the chosen ones must be this share of its length. */
#define RELATIVE_INDEPENDENCE 1e-5f
/* OLS divides by the squared length outside the span. It is updated by subtraction; below this it is only rounding. */
#define LEAST_SQUARED_LENGTH 1e-5f

typedef struct pursuit {
    const float *signals;   /* (n, features) */
    const float *atoms;     /* (atoms, features), unit norm or zero */
    const float *packed;    /* (panels, features, PANEL): the same atoms, padded by zeros */
    const float *scale;     /* (atoms,): factors from coefficients of unit atoms to those of the given atoms */
    const float *gram;      /* (atoms, panels × PANEL), or NULL: rows are computed when they are needed */
    int64_t *indices;       /* (n, sparsity) */
    float *coefficients;    /* (n, sparsity) */
    long n, features, count, panels, sparsity;
    long tiles;             /* in a task of the residual form */
    float tolerance;        /* negative if there is none */
    int orthogonal;         /* 1: OLS, 0: OMP */
    int gram_form;          /* 1: the Gram form, 0: the residual form */
} pursuit;

/* A number of floats rounded up to a multiple of 16, so that every array in a workspace is aligned. */
static inline size_t padded(size_t x) { return (x + 15) / 16 * 16; }
