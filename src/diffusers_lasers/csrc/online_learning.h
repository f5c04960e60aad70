/* Block-coordinate descent over the atoms of one block in sequence (LASERS, 2024, eqs 27 and 28).
 *
 * Let E_j = b_j − D a_j be the residual before the block. Atom j becomes the unit vector along
 * d_j + (E_j − Σ_{i<j} A_ji δ_i) / A_jj, where δ_i is the change of atom i.
 */

/* `rows (b, features)` are the atoms, which are overwritten. `residual (b, features)` is E, and `coupling (b, stride)`
 * the block of A. `inverse (b,)` is 1 / A_jj, or 0 for an atom without statistics, which does not change. Returns 0, or
 * −1 if there is not enough memory. */
TASK int NAME(block_update)(
    float *rows, const float *residual, const float *coupling, const float *inverse, long b, long features, long stride)
{
    long f = padded(features);
    float *memory = NULL;
    if (posix_memalign((void **)&memory, 64, (b + 2) * f * sizeof(float))) return -1;
    memset(memory, 0, (b + 2) * f * sizeof(float));
    float *changes = memory, *target = memory + b * f, *old = target + f;
    for (long j = 0; j < b; j++) {
        float *row = rows + j * features, *change = changes + j * f;
        if (!(inverse[j] > 0)) continue;
        memcpy(old, row, features * sizeof(float));
        memcpy(target, residual + j * features, features * sizeof(float));
        vf scale = NAME(splat)(inverse[j]), total = NAME(splat)(0);
        for (long l = 0; l < f; l += W) {
            vf x = NAME(load)(target + l);
            for (long i = 0; i < j; i++)
                x = NAME(fnma)(NAME(splat)(coupling[j * stride + i]), NAME(load)(changes + i * f + l), x);
            x = NAME(fma)(scale, x, NAME(load)(old + l));
            NAME(store)(target + l, x);
            total = NAME(fma)(x, x, total);
        }
        float norm = sqrtf(NAME(sum)(total));
        if (!(norm >= 1.17549435e-38f && norm < INFINITY)) continue; /* no direction: 0, infinite or NaN */
        for (long l = 0; l < features; l++) {
            row[l] = target[l] / norm;
            change[l] = row[l] - old[l];
        }
    }
    free(memory);
    return 0;
}
