r"""Orthogonal matching pursuit (OMP), batched.

For a signal \(y \in \mathbb{R}^L\) and a dictionary \(D \in \mathbb{R}^{L \times K}\), OMP approximates

    min ‖y − D γ‖₂  subject to  ‖γ‖₀ ≤ S

greedily: at each step it adds the atom most correlated with the residual, j = argmax |d_jᵀ r| / ‖d_j‖ (LASERS, 2024,
Algorithm 1, eq 19), and refits all coefficients by least squares on the support (eqs 20–22).

The paper's Algorithm 1 follows the Gram matrix with a growing Cholesky factor whose corner √(1 − ωᵀω) turns NaN for a
dependent atom. We keep the residual and an orthonormal basis Q of the chosen atoms instead (modified Gram–Schmidt, two
passes): r ← r − q qᵀr, and the coefficients solve the triangular system R γ = Qᵀ y at the end. This never forms an
N × K code, costs one matrix product a step, and tells a dependent atom by the length of its part outside the span.

What the paper leaves open is settled so: chosen atoms are excluded from the argmax; a signal stops when its residual is
within `tolerance`, or when no remaining atom can reduce it in the working precision, and its unused slots hold index −1
and coefficient 0; atoms of any length are accepted, zero atoms are never chosen.

All but the correlations is elementwise arithmetic, so that `torch.set_float32_matmul_precision` (TF32 on a GPU) can sway the choice
between nearly equal atoms and nothing else.
"""

from __future__ import annotations

import torch


__all__ = ["omp"]

# Correlations held at a time (signals × atoms): on the CPU what its cache holds, on an accelerator what keeps it busy.
_BLOCK_ELEMENTS = {"cpu": 2**19, "accelerator": 2**26}
_FOLDS = 8  # see `_row_maximum`
# A step must explain at least this share of a signal's length (squared length: its square); below it lies rounding.
_RELATIVE_CORRELATION = {torch.float32: 1e-6, torch.float64: 1e-13}
# An atom whose part outside the span of the chosen ones is shorter than this share of it counts as dependent.
_RELATIVE_INDEPENDENCE = {torch.float32: 1e-5, torch.float64: 1e-11}


def omp(
    signals: torch.Tensor,
    dictionary: torch.Tensor,
    sparsity: int,
    tolerance: float | None = None,
    *,
    check_finite: bool = True,
) -> tuple[torch.Tensor, torch.Tensor]:
    r"""
    Codes each signal with at most `sparsity` atoms by orthogonal matching pursuit (LASERS, 2024, Algorithm 1).

    The codes are greedy, hence nested: the first s slots hold the support that `sparsity=s` finds (its coefficients
    differ, since they are refitted). A signal's code does not depend on the others of the batch. The computation runs
    in float32 (float64 for float64 signals), also under autocast, without gradient, in a fixed number of steps.

    Args:
        signals (`torch.Tensor` of shape `(N, features)`): Signals to code; floating point.
        dictionary (`torch.Tensor` of shape `(features, atoms)`): Atoms as columns, of any length. Zero columns are never
            chosen.
        sparsity (`int`): Number of atoms S a signal may use, `1 <= sparsity <= atoms`. It may exceed `features`; the
            slots that cannot help stay unused.
        tolerance (`float`, *optional*): A signal takes no further atom once its residual norm ‖y − Dγ‖₂ is at most
            this, in the units of the signals. Defaults to `None`: stop at rounding only.
        check_finite (`bool`, defaults to `True`): Whether to refuse NaN and infinite values, at the price of one host
            synchronisation on accelerators. Without the check a non-finite signal gets indices −1 and NaN coefficients, and
            every signal does with a non-finite dictionary.

    Returns:
        `tuple[torch.Tensor, torch.Tensor]`: `indices (N, sparsity)` (int64, in order of selection, −1 in unused slots)
        and `coefficients (N, sparsity)` (float32 or float64, with respect to the given atoms; 0 in unused slots).

    Raises:
        ValueError: On shapes that do not fit, a sparsity out of range, a negative tolerance, or non-finite input.
    """
    _check_arguments(signals, dictionary, sparsity, tolerance)
    dtype = torch.float64 if signals.dtype == torch.float64 else torch.float32
    signals, dictionary = signals.to(dtype), dictionary.to(dtype)
    if check_finite:  # outside no_grad: a compiled refusal that raised inside would leave autograd off
        _check_finite(signals, dictionary)
    with torch.no_grad(), torch.autocast(signals.device.type, enabled=False):
        atoms, scale = _unit_atoms(dictionary)
        kind = "cpu" if signals.device.type == "cpu" else "accelerator"
        block = max(1, _BLOCK_ELEMENTS[kind] // dictionary.shape[1])
        parts = [_omp_block(part, atoms, scale, sparsity, tolerance) for part in signals.split(block)]
        if len(parts) == 1:
            return parts[0]
        return torch.cat([indices for indices, _ in parts]), torch.cat([coefficients for _, coefficients in parts])


def _omp_block(
    signals: torch.Tensor, atoms: torch.Tensor, scale: torch.Tensor, sparsity: int, tolerance: float | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """OMP of one block: `signals (n, L)`, unit (or zero) `atoms (L, K)`; `scale (K,)` maps back to the given atoms."""
    dtype = signals.dtype
    atom_rows = atoms.t().contiguous()  # (K, L): a gather of rows is a contiguous read
    peak = signals.abs().amax(dim=1, keepdim=True) if signals.shape[0] else signals.new_zeros(0, 1)
    unit = torch.where(peak > 0, peak, torch.ones_like(peak))
    residual = signals / unit  # largest entry 1: squares neither overflow nor vanish
    length = residual.norm(dim=1)
    smallest = _RELATIVE_CORRELATION[dtype] * length
    goal = None if tolerance is None else tolerance / unit.squeeze(1)

    active = torch.isfinite(length) & (length > 0)
    basis: list[torch.Tensor] = []  # q_1 … q_s, each (n, L)
    slots: list[torch.Tensor] = []
    used: list[torch.Tensor] = []
    projections: list[torch.Tensor] = []  # Qᵀ y
    triangle: list[list[torch.Tensor]] = []  # triangle[s][t] = R[t, s] for t <= s
    for step in range(sparsity):
        if goal is not None:
            active = active & (residual.norm(dim=1) > goal)
        correlation = (residual @ atoms).abs_()  # (n, K)
        for slot in slots:
            correlation.scatter_(1, slot.unsqueeze(1), -1.0)
        best, slot = _row_maximum(correlation)
        atom = atom_rows[slot]  # (n, L)
        column = [torch.zeros_like(length) for _ in range(step)]
        for _ in range(2):
            for t, direction in enumerate(basis):
                overlap = (direction * atom).sum(dim=1)
                atom = torch.addcmul(atom, overlap.unsqueeze(1), direction, value=-1.0)
                column[t] = column[t] + overlap
        height = atom.norm(dim=1)
        active = active & (best > smallest) & (height > _RELATIVE_INDEPENDENCE[dtype])
        direction = torch.where(active.unsqueeze(1), atom / height.clamp_min(1e-30).unsqueeze(1), 0.0)
        projection = torch.where(active, (direction * residual).sum(dim=1), 0.0)
        residual = torch.addcmul(residual, projection.unsqueeze(1), direction, value=-1.0)
        column.append(torch.where(active, height, 1.0))
        basis.append(direction)
        slots.append(slot)
        used.append(active)
        projections.append(projection)
        triangle.append(column)

    # Back substitution R γ = Qᵀ y; an unused slot has projection 0 and diagonal 1, so that its coefficient is 0.
    solution: list[torch.Tensor] = [torch.empty(0)] * sparsity
    for s in reversed(range(sparsity)):
        value = projections[s]
        for t in range(s + 1, sparsity):
            value = value - triangle[t][s] * solution[t]
        solution[s] = torch.where(used[s], value / triangle[s][s], 0.0)
    indices = torch.stack([torch.where(u, j, -1) for u, j in zip(used, slots)], dim=1)
    coefficients = torch.stack([value * scale[slot] for value, slot in zip(solution, slots)], dim=1) * unit
    finite = (torch.isfinite(length) & torch.isfinite(scale).all()).unsqueeze(1)
    return indices, torch.where(finite, coefficients, float("nan"))


def _row_maximum(values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Largest value `(n,)` of each row of `values (n, K)` and where it stands.

    `max` with indices runs at a tenth of the speed of `amax` on a CPU. So rows are folded eight times where K allows, the fold
    is reduced by `amax`, and only the folded row and the eight candidates are searched with indices.
    """
    n, atoms = values.shape
    if atoms % _FOLDS:
        best, index = values.max(dim=1)
        return best, index
    folded = values.view(n, _FOLDS, atoms // _FOLDS)
    best, column = folded.amax(dim=1).max(dim=1)
    candidates = folded.gather(2, column.view(n, 1, 1).expand(n, _FOLDS, 1)).squeeze(2)
    return best, column + (atoms // _FOLDS) * candidates.max(dim=1).indices


def _unit_atoms(dictionary: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Unit-norm columns and the factors that turn their coefficients into those of the given columns (0 stays 0; NaN for a non-finite column)."""
    peak = dictionary.abs().amax(dim=0)
    safe = torch.where(peak > 0, peak, torch.ones_like(peak))
    norm = (dictionary / safe).norm(dim=0)
    unit = dictionary / safe / norm.clamp_min(1e-30)
    scale = torch.where(peak > 0, 1 / norm.clamp_min(1e-30) / safe, 0.0)
    return unit, torch.where(torch.isfinite(peak), scale, float("nan"))


def _check_arguments(signals: torch.Tensor, dictionary: torch.Tensor, sparsity: int, tolerance: float | None) -> None:
    if signals.ndim != 2 or not signals.is_floating_point():
        raise ValueError(
            f"`signals` must be a floating-point tensor of shape (N, features), got {signals.dtype} of shape "
            f"{tuple(signals.shape)}."
        )
    if dictionary.ndim != 2 or not dictionary.is_floating_point() or dictionary.shape[0] != signals.shape[1]:
        raise ValueError(
            f"`dictionary` must be a floating-point tensor of shape (features, atoms) with features = "
            f"{signals.shape[1]} as in `signals`, got {dictionary.dtype} of shape {tuple(dictionary.shape)}."
        )
    if isinstance(sparsity, bool) or not isinstance(sparsity, int) or not 1 <= sparsity <= dictionary.shape[1]:
        raise ValueError(
            f"`sparsity` must be an integer from 1 to the number of atoms ({dictionary.shape[1]}), got {sparsity!r}."
        )
    if tolerance is not None and not tolerance >= 0:
        raise ValueError(f"`tolerance` must be a non-negative residual norm or None, got {tolerance!r}.")


def _check_finite(signals: torch.Tensor, dictionary: torch.Tensor) -> None:
    """Refuses NaN and infinities; inside `torch.compile` the check becomes an assertion in the graph."""
    for name, tensor in (("signals", signals), ("dictionary", dictionary)):
        finite = torch.isfinite(tensor).all()
        message = f"`{name}` must be finite, got NaN or infinite values."
        if torch.compiler.is_compiling():
            torch._assert_async(finite, message)
        elif not finite:
            raise ValueError(message)
