r"""Greedy pursuits in tensor operations: any device, float32 and float64.

A block of n signals is coded at once, its arrays laid out `(…, n)` so that every operation runs along n. The residual r
of the chosen atoms D_τ = Q R and each new direction q_s are elementwise arithmetic on the atoms themselves
(`SupportFit`). Which atom comes next depends on the correlations of all atoms, Dᵀ r for OMP and for OLS Dᵀ q_s too,
from which it follows α ← α − p_s Dᵀ q_s (`correlations.py`): only the choice between nearly equal atoms depends on how
these are computed, and on `torch.set_float32_matmul_precision`.

On an accelerator and in a compiled graph nothing is decided on the host, so that it compiles to one graph and never
waits for a GPU.

A chosen atom has no correlation left but rounding; should it win all the same, nothing else is left to explain, and
`SupportFit` finds it dependent.
"""

from __future__ import annotations

import math

import torch
from torch.nn import functional as F

from ..unit_atoms import unit_atoms
from .correlations import BLOCK_ELEMENTS, RUN, GramForm, faster_form, row_maximum
from .support_fit import SupportFit, column_norms


# Numbers of a basis, or of a triangle, held at a time (signals × sparsity × features or sparsity): blocks of signals
# are larger than those of correlations, so that an operation on them is worth its start.
_BASIS_ELEMENTS = {"cpu": 2**21, "accelerator": 2**26}
# Correlations that are kept from step to step (signals × atoms): OLS, and the Gram form.
_STATE_ELEMENTS = {"cpu": 2**22, "accelerator": 2**26}
# OLS divides by the squared length outside the span, which is tracked by subtraction: below this it is rounding.
LEAST_SQUARED_LENGTH = {torch.float32: 1e-5, torch.float64: 1e-10}


def greedy_pursuit_torch(
    signals: torch.Tensor, dictionary: torch.Tensor, sparsity: int, tolerance: float | None, orthogonal: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    OMP, or OLS where `orthogonal`, in blocks of signals; see [`omp`] for the arguments, which are taken as checked and
    of one dtype.

    Returns:
        `tuple[torch.Tensor, torch.Tensor]`: Indices and coefficients, `(N, sparsity)` each.
    """
    n, count = signals.shape[0], dictionary.shape[1]
    atoms, scale = unit_atoms(dictionary)
    if count % RUN:
        atoms, scale = F.pad(atoms, (0, -count % RUN)), F.pad(scale, (0, -count % RUN))
    form = faster_form(atoms, n, sparsity)
    where = "cpu" if signals.device.type == "cpu" else "accelerator"
    # of a signal: basis, its products, triangle, and what is held once
    numbers = (2 * sparsity + 4) * max(signals.shape[1], sparsity) + 16
    rows, at_once = _BASIS_ELEMENTS[where] // numbers, BLOCK_ELEMENTS[where] // atoms.shape[1]
    if orthogonal or form is GramForm:
        rows = min(rows, _STATE_ELEMENTS[where] // atoms.shape[1])
    if where == "cpu" and (orthogonal or form is GramForm):
        at_once //= 2  # OLS goes over more arrays of a block; large sums of rows leave holes in memory
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
    """OMP or OLS of one block: `signals (n, L)`, of which `at_once` meet all atoms at a time."""
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
    """What OMP chooses by: |Dᵀ r|."""
    return correlations.with_residual(fit, part, True)


class _OrthogonalScores:
    """What OLS chooses by: the square of d_jᵀ r over that of the length of d_j outside the span, `(n, K)`."""

    def __init__(self, atoms: torch.Tensor, signals: int):
        self.least = LEAST_SQUARED_LENGTH[atoms.dtype]
        self.correlations = atoms.new_empty(signals, atoms.shape[1])
        self.lengths = torch.empty_like(self.correlations)  # squared, outside the span
        self.squared_lengths = (atoms.square().sum(dim=0) > 0).to(
            atoms.dtype
        )  # before the first atom; a zero atom has none

    def __call__(self, fit, correlations, part):
        current, lengths = self.correlations[part], self.lengths[part]
        if not fit.slots:
            return correlations.with_residual(fit, part, False, out=current).square()
        new = correlations.with_direction(fit, part)
        current.addcmul_(new, fit.projections[-1][part].unsqueeze(1), value=-1.0)
        torch.addcmul(lengths if len(fit.slots) > 1 else self.squared_lengths, new, new, value=-1.0, out=lengths)
        correlations.correct(fit, part, current)
        # an atom that has become dependent gets an infinite length, from which no later step brings it back
        F.threshold_(lengths, self.least, math.inf)
        return torch.div(current, lengths, out=new).mul_(current)
