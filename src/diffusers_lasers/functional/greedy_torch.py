r"""Greedy pursuits in tensor operations: any device, float32 and float64.

A block of n signals is coded at once, its arrays laid out `(…, n)` so that every operation runs along n. With the chosen atoms
D_τ = Q R and the new direction q_s, the correlations α = Dᵀ r that the next choice needs come in one of two forms.

* Residual form: α = Dᵀ r, or for OLS α ← α − p_s w_s with w_s = Dᵀ q_s: one product of `features` multiply-adds an atom. It makes no
  decision on the host, so that it compiles to one graph and never waits for a GPU.
* Gram form, float32 on the CPU: q_s = D_τ m_s with the last column m_s of R⁻¹, hence w_s = G_τ m_s, a weighted sum of s rows of the
  Gram matrix G = Dᵀ D. Its rounding grows with Σ|m_s|; where that is large, w_s is computed from q_s, and α from the residual once that has
  become short.

A chosen atom has no correlation left but rounding; should it win all the same, nothing else is left to explain, and `SupportFit` finds it
dependent. Only the choice between nearly equal atoms depends on the form and on `torch.set_float32_matmul_precision`: Q, R, residual and coefficients
are elementwise arithmetic on the atoms themselves.
"""

from __future__ import annotations

import math

import torch
from torch.nn import functional as F

from .arguments import unit_atoms


# Correlations held at a time (signals × atoms): on the CPU what its cache holds, on an accelerator what keeps it busy.
_BLOCK_ELEMENTS = {"cpu": 2**20, "accelerator": 2**26}
_RUN = 64  # atoms are padded to a multiple; see `_row_maximum`
# A step must explain at least this share of a signal's length (squared length: its square); below it lies rounding.
RELATIVE_CORRELATION = {torch.float32: 1e-6, torch.float64: 1e-13}
# An atom whose part outside the span of the chosen ones is shorter than this share of it counts as dependent.
RELATIVE_INDEPENDENCE = {torch.float32: 1e-5, torch.float64: 1e-11}
# OLS divides by the squared length outside the span, which is tracked by subtraction: below this it is rounding.
LEAST_SQUARED_LENGTH = {torch.float32: 1e-5, torch.float64: 1e-10}

_GRAM_FEATURES = 128  # from which the Gram form is the faster one
_MAX_GRAM_ATOMS = 8192  # 256 MiB
_WORST_ROUNDING = 32.0  # Σ|m_s| that the Gram form may reach
_SHORT = 0.03  # share of the residual's length at the last direct computation of α that asks for the next


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
    atoms, scale = F.pad(atoms, (0, -count % _RUN)), F.pad(scale, (0, -count % _RUN))
    on_cpu = signals.device.type == "cpu"
    gram = None
    if on_cpu and signals.dtype == torch.float32 and not torch.compiler.is_compiling():
        large = sparsity > 1 and signals.shape[1] >= _GRAM_FEATURES and n >= count // 2
        if large and count <= _MAX_GRAM_ATOMS:
            gram = atoms.t() @ atoms
    block = _BLOCK_ELEMENTS["cpu" if on_cpu else "accelerator"]
    rows = max(1, block // max(atoms.shape[1], 2 * sparsity * signals.shape[1]))
    buffers = [signals.new_empty(min(rows, n), atoms.shape[1]) for _ in range(4 if orthogonal else 2)]
    parts = [
        _code_block(part, atoms, scale, gram, sparsity, tolerance, orthogonal, [x[: part.shape[0]] for x in buffers])
        for part in signals.split(rows)
    ]
    if len(parts) == 1:
        return parts[0]
    return torch.cat([indices for indices, _ in parts]), torch.cat([coefficients for _, coefficients in parts])


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
        self.residual = torch.where(self.active, self.residual, 0.0)
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
        direction = torch.where(added, direction, 0.0)
        projection = torch.where(added, projection, 0.0)
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
        steps = len(self.slots)
        solution: list[torch.Tensor] = [torch.empty(0)] * steps
        for s in reversed(range(steps)):
            value = self.projections[s]
            for t in range(s + 1, steps):
                value = torch.addcmul(value, self.triangle[s, t], solution[t], value=-1.0)
            solution[s] = torch.where(self.used[s], value / self.triangle[s, s], 0.0)
        indices = torch.stack([torch.where(u, j, -1) for u, j in zip(self.used, self.slots)], dim=1)
        scaled = [value * self.scale[slot] * self.unit for value, slot in zip(solution, self.slots)]
        finite = self.finite & torch.isfinite(self.scale).all()
        return indices, torch.where(finite.unsqueeze(1), torch.stack(scaled, dim=1), float("nan"))


def _code_block(signals, atoms, scale, gram, sparsity, tolerance, orthogonal, buffers):
    """
    OMP or OLS of one block: `signals (n, L)`, unit (or zero) `atoms (L, K)`; K a multiple of `_RUN`; `gram` chooses the form; `buffers`:
    two, for OLS four, matrices `(n, K)` to write in, since fresh memory costs as much as the arithmetic.
    """
    fit = SupportFit(signals, atoms, scale, sparsity)
    goal = None if tolerance is None else tolerance / fit.unit
    correlations = torch.mm(fit.residual.t(), atoms, out=buffers[0])  # α
    scores = buffers[1]
    new = lengths = None
    if orthogonal:  # squared lengths outside the span; a zero atom has none
        new, lengths = buffers[2:]
        lengths.copy_((atoms.square().sum(dim=0) > 0).to(atoms.dtype).expand_as(lengths))
    follow = _GramForm(fit, atoms, gram) if gram is not None else None
    least_score = fit.smallest.square() if orthogonal else fit.smallest
    for step in range(sparsity):
        if goal is not None:
            fit.active = fit.active & (_norm(fit.residual) > goal)
        if orthogonal:
            # an atom that has become dependent gets an infinite length, from which no later step brings it back
            F.threshold_(lengths, LEAST_SQUARED_LENGTH[signals.dtype], math.inf)
            torch.div(correlations, lengths, out=scores).mul_(correlations)
        else:
            torch.abs(correlations, out=scores)
        best, slot = _row_maximum(scores)
        direction, projection = fit.add(slot, best > least_score)
        if step + 1 == sparsity:
            break
        if follow is not None:
            new = follow.correlations_of(direction)
        elif orthogonal:
            torch.mm(direction.t(), atoms, out=new)
        else:
            torch.mm(fit.residual.t(), atoms, out=correlations)
            continue
        correlations.addcmul_(new, projection.unsqueeze(1), value=-1.0)
        if orthogonal:
            lengths.addcmul_(new, new, value=-1.0)
        if follow is not None:
            follow.refresh(correlations)
    return fit.code()


def _norm(columns: torch.Tensor) -> torch.Tensor:
    """Euclidean lengths `(n,)` of `columns (features, n)`; `torch.linalg.vector_norm` is ten times as slow along this dimension."""
    return columns.square().sum(dim=0).sqrt()


class _GramForm:
    """Correlations of directions with all atoms through the Gram matrix; decides on the host which signals need the direct product."""

    def __init__(self, fit: SupportFit, atoms: torch.Tensor, gram: torch.Tensor):
        self.fit, self.atoms, self.gram = fit, atoms, gram
        n, sparsity = fit.length.shape[0], fit.triangle.shape[0]
        self.inverse = fit.triangle.new_zeros(sparsity, sparsity, n)  # [s, t]: coefficient of atom t in direction s
        self.direct = fit.length  # residual's length when α was last computed from it

    def correlations_of(self, direction: torch.Tensor) -> torch.Tensor:
        """w_s = Dᵀ q_s, `(n, K)`, of the latest direction `(features, n)`."""
        s = len(self.fit.slots) - 1
        column = self.fit.triangle[: s + 1, s]  # R_ts
        mine = self.inverse[s]
        if s:
            mine[:s] = (self.inverse[:s, :s] * column[:s].unsqueeze(1)).sum(dim=0).div_(column[s]).neg_()
        mine[s] = 1 / column[s]
        weights = torch.where(self.fit.used[s], mine[: s + 1], 0.0).t().contiguous()  # (n, s + 1)
        slots = torch.stack(self.fit.slots, dim=1)
        new = F.embedding_bag(slots, self.gram, per_sample_weights=weights, mode="sum")
        worst = (weights.abs().sum(dim=1) > _WORST_ROUNDING).nonzero().squeeze(1)
        if len(worst):
            new[worst] = direction[:, worst].t() @ self.atoms
        return new

    def refresh(self, correlations: torch.Tensor) -> None:
        """Computes the rows of α `(n, K)` afresh whose residual has become short since that was last done."""
        length = _norm(self.fit.residual)
        short = (self.fit.active & (length < _SHORT * self.direct)).nonzero().squeeze(1)
        if len(short):
            correlations[short] = self.fit.residual[:, short].t() @ self.atoms
            self.direct = self.direct.index_copy(0, short, length[short])


def _row_maximum(values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Largest value `(n,)` of each row of `values (n, K)` and where it stands, the first on ties; K is a multiple of `_RUN`.

    `max` with indices runs at a tenth of the speed of `amax` on a CPU. So the maximum of each run of `_RUN` values is found by `amax`, and
    only the runs' maxima and the best run are searched with indices.
    """
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
