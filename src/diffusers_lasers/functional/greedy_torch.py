r"""Greedy pursuits in tensor operations: any device, float32 and float64.

A block of n signals is coded at once, its arrays laid out `(…, n)` so that every operation runs along n. With the residual r of the chosen
atoms D_τ = Q R and the new direction q_s, the correlations that the next choice needs are α = Dᵀ r for OMP, and α ← α − p_s w_s with
w_s = Dᵀ q_s for OLS: one product of `features` multiply-adds an atom. Nothing is decided on the host, so that it compiles to one graph and
never waits for a GPU.

A chosen atom has no correlation left but rounding; should it win all the same, nothing else is left to explain, and `SupportFit` finds it
dependent. Only the choice between nearly equal atoms depends on the product and on `torch.set_float32_matmul_precision`: Q, R, residual and
coefficients are elementwise arithmetic on the atoms themselves.
"""

from __future__ import annotations

import math
from functools import cache

import torch
from torch.nn import functional as F

from .arguments import unit_atoms


# Correlations held at a time (signals × atoms): on the CPU what its cache holds, on an accelerator what keeps it busy.
_BLOCK_ELEMENTS = {"cpu": 2**20, "accelerator": 2**26}
# Numbers of a basis, or of a triangle, held at a time (signals × sparsity × features or sparsity). OMP keeps no correlations from step to step:
# its blocks of signals are larger than those of correlations, so that an operation on them is worth its start.
_BASIS_ELEMENTS = {"cpu": 2**20, "accelerator": 2**26}
_RUN = 64  # atoms are padded to a multiple; see `_row_maximum`
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
    if count % _RUN:
        atoms, scale = F.pad(atoms, (0, -count % _RUN)), F.pad(scale, (0, -count % _RUN))
    where = "cpu" if signals.device.type == "cpu" else "accelerator"
    at_once = max(1, _BLOCK_ELEMENTS[where] // atoms.shape[1])
    numbers = sparsity * max(signals.shape[1], sparsity) + 16  # of a signal: basis or triangle, and single ones
    rows = max(1, _BASIS_ELEMENTS[where] // numbers)
    if orthogonal:
        at_once = rows = min(at_once, rows)
    correlate = _correlator(atoms, min(at_once, rows, n))
    blocks = signals.split(rows)
    if len(blocks) == 1:
        return _code_block(signals, atoms, scale, correlate, at_once, sparsity, tolerance, orthogonal)
    indices, coefficients = signals.new_empty(n, sparsity, dtype=torch.int64), signals.new_empty(n, sparsity)
    for part, *places in zip(blocks, indices.split(rows), coefficients.split(rows)):
        results = _code_block(part, atoms, scale, correlate, at_once, sparsity, tolerance, orthogonal)
        for place, result in zip(places, results):
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

    Attributes:
        residual (`torch.Tensor` of shape `(features, n)`): y − QQᵀy, in units of each signal's largest entry.
        unit (`torch.Tensor` of shape `(n,)`): Those entries.
        length (`torch.Tensor` of shape `(n,)`): ‖y‖ in these units.
        active (`torch.Tensor` of shape `(n,)`): Which signals may still take an atom.
    """

    def __init__(self, signals: torch.Tensor, atoms: torch.Tensor, scale: torch.Tensor, sparsity: int):
        n, features = signals.shape
        self.atoms, self.scale, dtype = atoms, scale, signals.dtype
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
        self.residual = torch.where(self.active, self.residual, self.zero)
        self.basis = signals.new_zeros(sparsity, features, n)
        self.triangle = signals.new_zeros(sparsity, sparsity, n)  # [t, s] = R_ts
        self.projections: list[torch.Tensor] = []
        self.slots: list[torch.Tensor] = []
        self.used: list[torch.Tensor] = []

    def add(
        self, slot: torch.Tensor, eligible: torch.Tensor, greedy: bool = True
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Adds atom `slot (n,)` to the supports of the active signals among `eligible (n,)`. Where it cannot, a signal stops being active;
        unless `greedy`, it stays so, and an atom need not explain anything by itself: the support was chosen as a whole.

        Returns:
            `tuple[torch.Tensor, torch.Tensor]`: The new direction `(features, n)` and the projections p `(n,)` on it; 0 where nothing
            was added.
        """
        s = len(self.slots)
        atom = self.atoms.index_select(1, slot)  # (features, n)
        overlaps = torch.zeros_like(self.triangle[:s, 0])
        for _ in range(2):  # classical Gram–Schmidt, twice is enough
            if s:
                overlap = (self.basis[:s] * atom).sum(dim=1)  # (s, n)
                atom = atom - (self.basis[:s] * overlap.unsqueeze(1)).sum(dim=0)
                overlaps = overlaps + overlap
        height = _norm(atom)
        direction = atom / height.clamp_min(1e-30)
        projection = (direction * self.residual).sum(dim=0)
        added = self.active & eligible & (height > self.independence)
        if greedy:
            added = added & (projection.abs() * height > self.smallest)
            self.active = added
        direction = torch.where(added, direction, self.zero)
        projection = torch.where(added, projection, self.zero)
        self.residual = torch.addcmul(self.residual, projection, direction, value=-1.0)
        self.basis[s] = direction
        self.triangle[:s, s] = overlaps
        self.triangle[s, s] = torch.where(added, height, 1.0)
        self.slots.append(slot)
        self.used.append(added)
        self.projections.append(projection)
        return direction, projection

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


def _code_block(signals, atoms, scale, correlate, at_once, sparsity, tolerance, orthogonal):
    """OMP or OLS of one block: `signals (n, L)`, unit (or zero) `atoms (L, K)`; K a multiple of `_RUN`; `correlate` of `_correlator`, for
    `at_once` signals."""
    fit = SupportFit(signals, atoms, scale, sparsity)
    goal = None if tolerance is None else tolerance / fit.unit
    if orthogonal:
        correlations = correlate(fit.residual, False)
        scores = torch.empty_like(correlations)
        # squared lengths outside the span; a zero atom has none
        lengths = (atoms.square().sum(dim=0) > 0).to(atoms.dtype).expand_as(scores).clone()
    least_score = fit.smallest.square() if orthogonal else fit.smallest
    for step in range(sparsity):
        if goal is not None:
            fit.active = fit.active & (_norm(fit.residual) > goal)
        if orthogonal:
            # an atom that has become dependent gets an infinite length, from which no later step brings it back
            F.threshold_(lengths, LEAST_SQUARED_LENGTH[signals.dtype], math.inf)
            torch.div(correlations, lengths, out=scores).mul_(correlations)
            best, slot = _row_maximum(scores)
        else:
            best, slot = _most_correlated(fit.residual, correlate, at_once)
        direction, projection = fit.add(slot, best > least_score)
        if orthogonal and step + 1 < sparsity:
            new = correlate(direction, False)
            correlations.addcmul_(new, projection.unsqueeze(1), value=-1.0)
            lengths.addcmul_(new, new, value=-1.0)
    return fit.code()


def _most_correlated(residual, correlate, at_once):
    """Largest absolute correlation `(n,)` of each column of `residual (L, n)`, and with which atom; `at_once` signals at a time."""
    if residual.shape[1] <= at_once:
        return _row_maximum(correlate(residual, True))
    parts = [_row_maximum(correlate(part, True)) for part in residual.split(at_once, dim=1)]
    return torch.cat([best for best, _ in parts]), torch.cat([slot for _, slot in parts])


def _norm(columns: torch.Tensor) -> torch.Tensor:
    """Euclidean lengths `(n,)` of `columns (features, n)`; `torch.linalg.vector_norm` is ten times as slow along this dimension."""
    return columns.square().sum(dim=0).sqrt()


def _correlator(atoms: torch.Tensor, rows: int):
    """
    The function that multiplies columns `(L, n)` with `atoms (L, K)`: `(n, K)`, or the absolute values of it.

    For float32 on the CPU it is the product that `torch.compile` takes for linear layers there (oneDNN): on processors whose BLAS is not
    tuned for them it has twice the speed, and absolute values cost nothing as the slope −1 of a leaky ReLU.
    """
    if (
        atoms.device.type == "cpu"
        and atoms.dtype == torch.float32
        and _has_onednn()
        and not torch.compiler.is_compiling()
    ):
        product = torch.ops.mkldnn._linear_pointwise
        packed = torch.ops.mkldnn._reorder_linear_weight(atoms.t().contiguous(), rows)

        def correlate(columns, magnitude):
            if magnitude:
                return product(columns.t(), packed, None, "leaky_relu", [-1.0], "")
            return product(columns.t(), packed, None, "none", [], "")
    else:

        def correlate(columns, magnitude):
            values = columns.t() @ atoms
            return values.abs_() if magnitude else values

    return correlate


@cache
def _has_onednn() -> bool:
    """
    Whether this torch has oneDNN's product; asked once. It writes into fresh memory each time, of which every page costs a fault unless the
    allocator keeps what was freed: glibc does so up to twice the largest block that it got from the system and gave back, at most
    32 MiB. Such a block is taken here (untouched, so that it costs nothing) and given back.
    """
    torch.empty(2**25 - 2**16, dtype=torch.uint8)
    names = ("_linear_pointwise", "_reorder_linear_weight")
    return torch.backends.mkldnn.is_available() and all(hasattr(torch.ops.mkldnn, name) for name in names)


def _row_maximum(values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Largest value `(n,)` of each row of `values (n, K)` and where it stands, the first on ties; K is a multiple of `_RUN`.

    `max` with indices runs at a tenth of the speed of `amax` on a CPU. So there the maximum of each run of `_RUN` values is found by `amax`, and
    only the runs' maxima and the best run are searched with indices.
    """
    if values.device.type != "cpu":
        return values.max(dim=1)
    n, atoms = values.shape
    if atoms == _RUN:
        best = values.amax(dim=1)
        return best, _position(values, best)
    count = atoms // _RUN
    runs = values.view(n * count, _RUN)
    best, run = runs.amax(dim=1).view(n, count).max(dim=1)
    chosen = runs.index_select(0, torch.arange(0, n * count, count, device=values.device) + run)
    return best, run * _RUN + _position(chosen, best)


def _position(values: torch.Tensor, best: torch.Tensor) -> torch.Tensor:
    """First column of `values (n, _RUN)` that holds its row's maximum `best (n,)`; 0 in rows with NaN. In float arithmetic, which a CPU
    does in vectors: the columns' numbers, raised by `_RUN` where the value is below the maximum, and their minimum."""
    columns = torch.arange(_RUN, device=values.device, dtype=values.dtype)
    below = torch.sub(values, best.unsqueeze(1)).sign_()  # 0 or −1
    first = torch.add(columns, below, alpha=-_RUN).amin(dim=1)
    return torch.where(first < _RUN, first, 0.0).long()
