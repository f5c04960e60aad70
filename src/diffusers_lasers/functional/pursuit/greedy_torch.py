r"""Greedy pursuits in tensor operations: any device, float32 and float64.

A block of n signals is coded at once. Its arrays have the layout `(…, n)`, so that every operation runs along n. The
residual r and each new direction q_s come from elementwise arithmetic on the chosen atoms D_τ = Q R (`SupportFit`). The
choice of the next atom needs correlations of all atoms (`correlations.py`): Dᵀ r for OMP, and for OLS also Dᵀ q_s, with
which the correlations α are updated, α ← α − p_s Dᵀ q_s. How these are computed, and
`torch.set_float32_matmul_precision`, only affect the choice between nearly equal atoms.

On an accelerator and in a compiled graph nothing is decided on the host. So the code compiles to one graph and never
waits for a GPU.

The correlation of a chosen atom is rounding only. If such an atom is chosen again, no other atom can explain anything
either, and `SupportFit` finds it dependent.
"""

from __future__ import annotations

import math

import torch
from torch.nn import functional as F

from ..unit_atoms import unit_atoms
from .correlations import BLOCK_ELEMENTS, RUN, GramForm, faster_form, row_maximum
from .support_fit import SupportFit, column_norms


# Elements of the bases, or of the triangles, of a block (signals × sparsity × features or sparsity). Blocks of signals
# are larger than blocks of correlations, so that the work of an operation outweighs the cost of starting it.
_BASIS_ELEMENTS = {"cpu": 2**21, "accelerator": 2**26}
# Correlations (signals × atoms) that OLS and the Gram form keep from step to step.
_STATE_ELEMENTS = {"cpu": 2**22, "accelerator": 2**26}
# OLS divides by the squared length outside the span. It is updated by subtraction; below this it is only rounding.
LEAST_SQUARED_LENGTH = {torch.float32: 1e-5, torch.float64: 1e-10}


def greedy_pursuit_torch(
    signals: torch.Tensor, dictionary: torch.Tensor, sparsity: int, tolerance: float | None, orthogonal: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Runs OMP, or OLS if `orthogonal`, in blocks of signals. The arguments are those of [`omp`]. They must have been
    checked and have one dtype.

    Returns:
        `tuple[torch.Tensor, torch.Tensor]`: Indices and coefficients, `(N, sparsity)` each.
    """
    n, count = signals.shape[0], dictionary.shape[1]
    atoms, scale = unit_atoms(dictionary)
    if count % RUN:
        atoms, scale = F.pad(atoms, (0, -count % RUN)), F.pad(scale, (0, -count % RUN))
    form = faster_form(atoms, n, sparsity)
    where = "cpu" if signals.device.type == "cpu" else "accelerator"
    # numbers for each signal: basis, its products, triangle, and vectors
    numbers = (2 * sparsity + 4) * max(signals.shape[1], sparsity) + 16
    rows, at_once = _BASIS_ELEMENTS[where] // numbers, BLOCK_ELEMENTS[where] // atoms.shape[1]
    if orthogonal or form is GramForm:
        rows = min(rows, _STATE_ELEMENTS[where] // atoms.shape[1])
    if where == "cpu" and (orthogonal or form is GramForm):
        at_once //= 2  # OLS reads more arrays; large sums of rows fragment the memory
    rows = max(1, min(n, rows))
    at_once = max(1, min(rows, at_once))
    correlations = form(atoms, rows, sparsity, orthogonal)
    blocks = signals.split(rows)
    if len(blocks) == 1:
        return _code_block(signals, scale, correlations, at_once, tolerance)
    indices, coefficients = signals.new_empty(n, sparsity, dtype=torch.int64), signals.new_empty(n, sparsity)
    for part, *places in zip(blocks, indices.split(rows), coefficients.split(rows)):
        for place, result in zip(places, _code_block(part, scale, correlations, at_once, tolerance)):
            place.copy_(result)
    return indices, coefficients


def _code_block(signals, scale, correlations, at_once, tolerance):
    """OMP or OLS of one block of `signals (n, L)`. Correlations with all atoms are computed for `at_once` signals."""
    fit = SupportFit(signals, correlations.atoms, scale, correlations.sparsity, correlations.rows)
    goal = None if tolerance is None else tolerance / fit.unit
    correlations.begin(fit)
    parts = [slice(start, start + at_once) for start in range(0, max(1, len(signals)), at_once)]
    if correlations.orthogonal:
        scores, least_score = _OrthogonalScores(correlations.atoms, len(signals)), fit.smallest.square()
    else:
        scores, least_score = _magnitudes, fit.smallest
    for step in range(correlations.sparsity):
        if step:
            correlations.advance(fit)
        if goal is not None:
            fit.active = fit.active & (column_norms(fit.residual) > goal)
        found = [row_maximum(scores(fit, correlations, part)) for part in parts]
        best, slot = found[0] if len(parts) == 1 else map(torch.cat, zip(*found))
        fit.add(slot, best > least_score)
    return fit.code()


def _magnitudes(fit, correlations, part):
    """The scores of OMP: |Dᵀ r|."""
    return correlations.with_residual(fit, part, True)


class _OrthogonalScores:
    """The scores `(n, K)` of OLS: the square of d_jᵀ r divided by the squared length of d_j outside the span."""

    def __init__(self, atoms: torch.Tensor, signals: int):
        self.least = LEAST_SQUARED_LENGTH[atoms.dtype]
        self.correlations = atoms.new_empty(signals, atoms.shape[1])
        self.lengths = torch.empty_like(self.correlations)  # squared, outside the span
        # before the first atom: 1, or 0 for a zero atom
        self.squared_lengths = (atoms.square().sum(dim=0) > 0).to(atoms.dtype)

    def __call__(self, fit, correlations, part):
        current, lengths = self.correlations[part], self.lengths[part]
        if not fit.slots:
            return correlations.with_residual(fit, part, False, out=current).square()
        new = correlations.with_direction(fit, part)
        current.addcmul_(new, fit.projections[-1][part].unsqueeze(1), value=-1.0)
        torch.addcmul(lengths if len(fit.slots) > 1 else self.squared_lengths, new, new, value=-1.0, out=lengths)
        correlations.correct(fit, part, current)
        # a dependent atom gets an infinite length, which stays infinite in all later steps
        F.threshold_(lengths, self.least, math.inf)
        return torch.div(current, lengths, out=new).mul_(current)
