/* Vectors of W floats for one instruction set, with the vector extension of the compiler.
 *
 * kernels.c includes the kernels once for each instruction set. Before, it defines W, ISA_AVX512 or ISA_AVX2, and
 * FUNCTION (a static function compiled for that set). Some operations are not expressed well by the extension, such as
 * a fused multiply-add or a running maximum with its position. They use intrinsics where these exist.
 */

#define PASTE_(a, b) a##b
#define PASTE(a, b) PASTE_(a, b)
#define NAME(x) PASTE(x, SUFFIX)
#define vf NAME(vf)
#define vi NAME(vi)

typedef float vf __attribute__((vector_size(W * 4)));
typedef int vi __attribute__((vector_size(W * 4)));

FUNCTION vf NAME(load)(const float *x)
{
    vf v;
    memcpy(&v, x, sizeof v);
    return v;
}

FUNCTION void NAME(store)(float *x, vf v) { memcpy(x, &v, sizeof v); }

FUNCTION vf NAME(splat)(float x)
{
#if ISA_AVX512
    return (vf)_mm512_set1_ps(x);
#elif ISA_AVX2
    return (vf)_mm256_set1_ps(x);
#else
    return (vf){x, x, x, x};
#endif
}

FUNCTION vi NAME(isplat)(int x)
{
    vi v = {0};
    return v + x;
}

/* mask ? a : b. In each lane of the mask all bits are 0 or all are 1, as in the result of a comparison. */
FUNCTION vf NAME(pick)(vi mask, vf a, vf b) { return (vf)((mask & (vi)a) | (~mask & (vi)b)); }

FUNCTION vf NAME(magnitude)(vf x) { return (vf)((vi)x & 0x7fffffff); }

FUNCTION float NAME(sum)(vf x)
{
#if ISA_AVX512
    return _mm512_reduce_add_ps((__m512)x);
#else
    float part[W];
    NAME(store)(part, x);
    for (int half = W / 2; half; half /= 2)
        for (int i = 0; i < half; i++) part[i] += part[i + half];
    return part[0];
#endif
}

FUNCTION vf NAME(root)(vf x)
{
#if ISA_AVX512
    return (vf)_mm512_sqrt_ps((__m512)x);
#elif ISA_AVX2
    return (vf)_mm256_sqrt_ps((__m256)x);
#else
    for (int i = 0; i < W; i++) x[i] = sqrtf(x[i]);
    return x;
#endif
}

/* a·b + c */
FUNCTION vf NAME(fma)(vf a, vf b, vf c)
{
#if ISA_AVX512
    return (vf)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif ISA_AVX2
    return (vf)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#else
    return a * b + c;
#endif
}

/* c − a·b */
FUNCTION vf NAME(fnma)(vf a, vf b, vf c)
{
#if ISA_AVX512
    return (vf)_mm512_fnmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif ISA_AVX2
    return (vf)_mm256_fnmadd_ps((__m256)a, (__m256)b, (__m256)c);
#else
    return c - a * b;
#endif
}

/* Where x exceeds *best: *best = x and *where = position. On ties the earlier position is kept. NaN never exceeds. */
FUNCTION void NAME(keep_larger)(vf x, vi position, vf *best, vi *where)
{
#if ISA_AVX512
    __mmask16 m = _mm512_cmp_ps_mask((__m512)x, (__m512)*best, _CMP_GT_OQ);
    *best = (vf)_mm512_mask_mov_ps((__m512)*best, m, (__m512)x);
    *where = (vi)_mm512_mask_mov_epi32((__m512i)*where, m, (__m512i)position);
#elif ISA_AVX2
    __m256 m = _mm256_cmp_ps((__m256)x, (__m256)*best, _CMP_GT_OQ);
    *best = (vf)_mm256_blendv_ps((__m256)*best, (__m256)x, m);
    *where = (vi)_mm256_blendv_ps((__m256)*where, (__m256)position, m);
#else
    vi m = x > *best;
    *best = NAME(pick)(m, x, *best);
    *where = (m & position) | (~m & *where);
#endif
}

/* The same for ratios x/n with x ≥ 0 and n > 0. They are compared by cross-multiplication, without a division. */
FUNCTION void NAME(keep_larger_ratio)(vf x, vf n, vi position, vf *best, vf *below, vi *where)
{
    vf left = x * *below, right = *best * n;
#if ISA_AVX512
    __mmask16 m = _mm512_cmp_ps_mask((__m512)left, (__m512)right, _CMP_GT_OQ);
    *best = (vf)_mm512_mask_mov_ps((__m512)*best, m, (__m512)x);
    *below = (vf)_mm512_mask_mov_ps((__m512)*below, m, (__m512)n);
    *where = (vi)_mm512_mask_mov_epi32((__m512i)*where, m, (__m512i)position);
#else
    vi m = left > right;
    *best = NAME(pick)(m, x, *best);
    *below = NAME(pick)(m, n, *below);
    *where = (m & position) | (~m & *where);
#endif
}

/* Updates *best and *where with the largest of eight magnitudes in each lane. It is found by pairs, so that comparisons
 * do not wait for each other. */
FUNCTION void NAME(keep_largest)(const vf x[8], vi position, int spacing, vf *best, vi *where)
{
    vf top[8];
    vi at[8];
#pragma GCC unroll 8
    for (int i = 0; i < 8; i++) top[i] = NAME(magnitude)(x[i]), at[i] = position + i * spacing;
#pragma GCC unroll 3
    for (int step = 1; step < 8; step *= 2)
#pragma GCC unroll 4
        for (int i = 0; i < 8; i += 2 * step) NAME(keep_larger)(top[i + step], at[i + step], &top[i], &at[i]);
    NAME(keep_larger)(top[0], at[0], best, where);
}

/* The same for ratios x²/n, of which those with n > `least` count. */
FUNCTION void NAME(keep_largest_ratio)(
    const vf x[8], const vf n[8], vi position, int spacing, vf least, vf *best, vf *below, vi *where)
{
    vf top[8], bottom[8];
    vi at[8];
#pragma GCC unroll 8
    for (int i = 0; i < 8; i++) {
        vi usable = n[i] > least;
        top[i] = NAME(pick)(usable, x[i] * x[i], NAME(splat)(0));
        bottom[i] = NAME(pick)(usable, n[i], NAME(splat)(1));
        at[i] = position + i * spacing;
    }
#pragma GCC unroll 3
    for (int step = 1; step < 8; step *= 2)
#pragma GCC unroll 4
        for (int i = 0; i < 8; i += 2 * step)
            NAME(keep_larger_ratio)(top[i + step], bottom[i + step], at[i + step], &top[i], &bottom[i], &at[i]);
    NAME(keep_larger_ratio)(top[0], bottom[0], at[0], best, below, where);
}
