r"""Greedy pursuits in tensor operations: any device, float32 and float64.

A block of n signals is coded at once, its arrays laid out `(…, n)` so that every operation runs along n. The residual r of the chosen
atoms D_τ = Q R and each new direction q_s are elementwise arithmetic on the atoms themselves (`SupportFit`). Which atom comes next
depends on the correlations of all atoms, Dᵀ r for OMP and for OLS Dᵀ q_s too, from which it follows α ← α − p_s Dᵀ q_s
(`correlations.py`): only the choice between nearly equal atoms depends on how these are computed, and on
`torch.set_float32_matmul_precision`.

On an accelerator and in a compiled graph nothing is decided on the host, so that it compiles to one graph and never waits for a GPU.

A chosen atom has no correlation left but rounding; should it win all the same, nothing else is left to explain, and `SupportFit` finds it
dependent.
"""

from __future__ import annotations

import math

import torch
from torch.nn import functional as F

from .arguments import unit_atoms
from .correlations import BLOCK_ELEMENTS, RUN, GramForm, faster_form, row_maximum


# Numbers of a basis, or of a triangle, held at a time (signals × sparsity × features or sparsity): blocks of signals are larger than those of
# correlations, so that an operation on them is worth its start.
_BASIS_ELEMENTS = {"cpu": 2**21, "accelerator": 2**26}
# Correlations that are kept from step to step (signals × atoms): OLS, and the Gram form.
_STATE_ELEMENTS = {"cpu": 2**22, "accelerator": 2**26}
# A step must explain at least this share of a signal's length (squared length: its square); below it lies rounding.
RELATIVE_CORRELATION = {torch.float32: 1e-6, torch.float64: 1e-13}
# An atom whose part outside the span of the chosen ones is shorter than this share of it counts as dependent.
RELATIVE_INDEPENDENCE = {torch.float32: 1e-5, torch.float64: 1e-11}
# OLS divides by the squared length outside the span, which is tracked by subtraction: below this it is rounding.
LEAST_SQUARED_LENGTH = {torch.float32: 1e-5, torch.float64: 1e-10}


def greedy_pursuit_torch(
    signals: torch.Tensor, dictionary: torch.Tensor, sparsity: int, tolerance: float | None, orthogonal: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    OMP, or OLS where `orthogonal`, in blocks of signals; see [`omp`] for the arguments, which are taken as checked and of one dtype.

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


class SupportFit:
    r"""
    Least squares on a support that grows by one atom at a time, for n signals at once.

    Holds the orthonormal basis Q of the atoms so far, the triangle R with D_τ = Q R, and the residuals.

    Args:
        signals (`torch.Tensor` of shape `(n, features)`): Signals y.
        atoms (`torch.Tensor` of shape `(features, K)`): Atoms of unit norm, or zero.
        scale (`torch.Tensor` of shape `(K,)`): Factors from coefficients of these atoms to the caller's; see `unit_atoms`.
        sparsity (`int`): Largest size of a support.
        rows (`torch.Tensor` of shape `(K, features)`, *optional*): The atoms once more, as rows: a CPU gathers them faster.

    Attributes:
        residual (`torch.Tensor` of shape `(features, n)`): y − QQᵀy, in units of each signal's largest entry.
        unit (`torch.Tensor` of shape `(n,)`): Those entries.
        length (`torch.Tensor` of shape `(n,)`): ‖y‖ in these units.
        active (`torch.Tensor` of shape `(n,)`): Which signals may still take an atom.
    """

    def __init__(
        self,
        signals: torch.Tensor,
        atoms: torch.Tensor,
        scale: torch.Tensor,
        sparsity: int,
        rows: torch.Tensor | None = None,
    ):
        n, features = signals.shape
        self.atoms, self.rows, self.scale, dtype = atoms, rows, scale, signals.dtype
        columns = signals.t().contiguous()
        peak = columns.abs().amax(dim=0)
        self.unit = torch.where(peak > 0, peak, torch.ones_like(peak))
        self.residual = columns / self.unit  # largest entry 1: squares neither overflow nor vanish
        self.length = _norm(self.residual)
        self.smallest = RELATIVE_CORRELATION[dtype] * self.length
        self.independence = RELATIVE_INDEPENDENCE[dtype]
        self.finite = torch.isfinite(self.length)
        self.active = self.finite & (self.length > 0)
        self.zero = signals.new_zeros(())
        self.on_host = signals.device.type == "cpu" and not torch.compiler.is_compiling()
        self.residual = torch.where(self.active, self.residual, self.zero)
        self.basis = signals.new_zeros(sparsity, features, n)
        self.products = torch.empty_like(self.basis)  # memory for those of directions with others
        self.triangle = signals.new_zeros(sparsity, sparsity, n)  # [t, s] = R_ts
        self.projections: list[torch.Tensor] = []
        self.slots: list[torch.Tensor] = []
        self.used: list[torch.Tensor] = []

    def add(self, slot: torch.Tensor, eligible: torch.Tensor, greedy: bool = True) -> None:
        """
        Adds atom `slot (n,)` to the supports of the active signals among `eligible (n,)`. Where it cannot, the new direction and the
        projection on it are 0, and a signal stops being active; unless `greedy`, it stays so, and an atom need not explain anything by
        itself: the support was chosen as a whole.
        """
        s = len(self.slots)
        basis, overlaps = self.basis[:s], self.triangle[:s, s]
        if self.rows is None:
            atom = self.atoms.index_select(1, slot)  # (features, n)
        else:
            atom = self.rows.index_select(0, slot).t().contiguous()
        if s:  # classical Gram–Schmidt; twice is enough, and on the host once where little was cancelled
            products = self.products[:s]
            overlaps.copy_(torch.mul(basis, atom, out=products).sum(dim=1))
            atom.sub_(torch.mul(basis, overlaps.unsqueeze(1), out=products).sum(dim=0))
            again = overlaps.square().sum(dim=0) > 0.5 if self.on_host else None
            if again is None or again.any():
                rest = torch.mul(basis, atom, out=products).sum(dim=1)
                if again is not None:
                    rest.mul_(again)
                overlaps.add_(rest)
                atom.sub_(torch.mul(basis, rest.unsqueeze(1), out=products).sum(dim=0))
        height = _norm(atom)
        inverse = height.clamp_min(1e-30).reciprocal_()
        projection = (atom * self.residual).sum(dim=0).mul_(inverse)
        added = self.active & eligible & (height > self.independence)
        if greedy:
            added = added & (projection.abs() * height > self.smallest)
            self.active = added
        projection = torch.where(added, projection, self.zero)
        torch.mul(atom, torch.where(added, inverse, self.zero), out=self.basis[s])
        self.residual = torch.addcmul(self.residual, projection, self.basis[s], value=-1.0)
        self.triangle[s, s] = torch.where(added, height, 1.0)
        self.slots.append(slot)
        self.used.append(added)
        self.projections.append(projection)

    def code(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Indices and coefficients `(n, s)`: back substitution R γ = Qᵀ y. An unused slot has projection 0, hence coefficient 0."""
        slots, used = torch.stack(self.slots), torch.stack(self.used)  # (s, n)
        values = torch.stack(self.projections)
        for s in reversed(range(len(slots))):
            values[s].div_(self.triangle[s, s])
            if s:
                values[:s].addcmul_(self.triangle[:s, s], values[s], value=-1.0)
        values = torch.where(used, values * self.scale[slots] * self.unit, 0.0)
        finite = self.finite & torch.isfinite(self.scale).all()
        values = torch.where(finite, values, float("nan"))
        return torch.where(used, slots, -1).t().contiguous(), values.t().contiguous()


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
            fit.active = fit.active & (_norm(fit.residual) > goal)
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
        self.whole = (atoms.square().sum(dim=0) > 0).to(atoms.dtype)  # before the first atom; a zero atom has none

    def __call__(self, fit, correlations, part):
        current, lengths = self.correlations[part], self.lengths[part]
        if not fit.slots:
            return correlations.with_residual(fit, part, False, out=current).square()
        new = correlations.with_direction(fit, part)
        current.addcmul_(new, fit.projections[-1][part].unsqueeze(1), value=-1.0)
        torch.addcmul(lengths if len(fit.slots) > 1 else self.whole, new, new, value=-1.0, out=lengths)
        correlations.correct(fit, part, current)
        # an atom that has become dependent gets an infinite length, from which no later step brings it back
        F.threshold_(lengths, self.least, math.inf)
        return torch.div(current, lengths, out=new).mul_(current)


def _norm(columns: torch.Tensor) -> torch.Tensor:
    """Euclidean lengths `(n,)` of `columns (features, n)`; `torch.linalg.vector_norm` is ten times as slow along this dimension."""
    return columns.square().sum(dim=0).sqrt()
