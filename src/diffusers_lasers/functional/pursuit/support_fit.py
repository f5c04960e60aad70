r"""Least squares on a growing support: atoms D_τ = Q R, Q orthonormal and R a triangle, and the residual r = y − QQᵀy.

A new atom d gives the next direction q ∝ (I − QQᵀ) d by Gram–Schmidt, and r ← r − q qᵀr. At the end, the coefficients
solve R γ = Qᵀy. All arrays have the layout `(…, n)`, so that every operation runs along the n signals.
"""

from __future__ import annotations

import torch


# A step must explain at least this share of a signal's length. Less is rounding. For squared lengths, it is squared.
RELATIVE_CORRELATION = {torch.float32: 1e-6, torch.float64: 1e-13}
# An atom counts as dependent if its part outside the span of the chosen ones is shorter than this share of its length.
RELATIVE_INDEPENDENCE = {torch.float32: 1e-5, torch.float64: 1e-11}


class SupportFit:
    r"""
    Least squares on a support that grows by one atom at a time, for n signals at once.

    Holds the orthonormal basis Q of the atoms so far, the triangle R with D_τ = Q R, and the residuals.

    Args:
        signals (`torch.Tensor` of shape `(n, features)`): Signals y.
        atoms (`torch.Tensor` of shape `(features, K)`): Atoms of unit norm, or zero.
        scale (`torch.Tensor` of shape `(K,)`): Factors from coefficients of these atoms to the caller's; see
            `unit_atoms`.
        sparsity (`int`): Largest size of a support.
        rows (`torch.Tensor` of shape `(K, features)`, *optional*): The same atoms as rows, which a CPU gathers faster.

    Attributes:
        residual (`torch.Tensor` of shape `(features, n)`): y − QQᵀy, in units of each signal's largest entry.
        unit (`torch.Tensor` of shape `(n,)`): The magnitude of each signal's largest entry, or 1 for a zero signal.
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
        self.length = column_norms(self.residual)
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
        Adds atom `slot (n,)` to the supports of the signals that are active and `eligible (n,)`.

        Where an atom cannot be added, the new direction and the projection on it are 0. If `greedy`, that signal stops
        being active, and an atom must explain a part of the residual by itself. Otherwise the support was chosen
        beforehand: the signal stays active, and any independent atom is added.
        """
        s = len(self.slots)
        basis, overlaps = self.basis[:s], self.triangle[:s, s]
        if self.rows is None:
            atom = self.atoms.index_select(1, slot)  # (features, n)
        else:
            atom = self.rows.index_select(0, slot).t().contiguous()
        if s:  # classical Gram–Schmidt; two passes are enough, and on the CPU one where little was cancelled
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
        height = column_norms(atom)
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
        """Indices and coefficients `(n, s)`, by back substitution in R γ = Qᵀ y. An unused slot has projection 0 and so
        coefficient 0."""
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


def column_norms(columns: torch.Tensor) -> torch.Tensor:
    """Euclidean lengths `(n,)` of `columns (features, n)`. `torch.linalg.vector_norm` is ten times slower along this
    dimension."""
    return columns.square().sum(dim=0).sqrt()
