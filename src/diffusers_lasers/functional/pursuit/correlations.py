r"""Correlations of all atoms with residuals and directions, from which the greedy pursuits choose the next atom.

This is the part of `greedy_torch.py` that costs most. There are two ways to compute it. The *residual form* multiplies:
Dᵀ r and Dᵀ q, `features` multiply-adds for each atom. The *Gram form* uses the Gram matrix G = DᵀD. The residual is
r = y − Σ γ_j d_j and a direction is q = Σ W_j d_j, with sums over the chosen atoms, so that

    Dᵀ r = Dᵀ y − Σ γ_j G_j ,      Dᵀ q = Σ W_j G_j .

Each atom then costs as many multiply-adds as atoms are chosen. `F.embedding_bag` computes such a sum of weighted rows,
with Dᵀ y as one more row. Its rounding error grows with Σ |γ_j| and Σ |W_j|. It is too large for signals that are
nearly explained and for atoms that are nearly dependent; there the Gram form falls back to the product.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

import torch
from torch.nn import functional as F


if TYPE_CHECKING:
    from .support_fit import SupportFit


# Correlations held at a time (signals × atoms): what fits into a CPU's cache, and what keeps an accelerator busy.
BLOCK_ELEMENTS = {"cpu": 2**20, "accelerator": 2**26}
RUN = 64  # the number of atoms is padded to a multiple of this; see `row_maximum`
# The Gram form is faster from this number of features on, and from this number of features for each atom of a code.
_GRAM_FEATURES = 128
_GRAM_FEATURES_AN_ATOM = 8
_MAX_GRAM_ATOMS = 8192  # the Gram matrix of so many atoms takes 256 MiB
_FEW_FEATURES = 32  # below this, torch's BLAS is faster than oneDNN
_WORST_ROUNDING = 32.0  # largest (‖y‖ + Σ |γ_j|) / ‖r‖, and largest Σ |W_j|, for which the Gram form is used


def faster_form(atoms: torch.Tensor, signals: int, sparsity: int) -> type[ResidualForm]:
    """The faster form for N = `signals`, unit `atoms (L, K)` and S = `sparsity`."""
    looks_at_values = atoms.device.type == "cpu" and not torch.compiler.is_compiling()
    gram = looks_at_values and atoms.dtype == torch.float32 and _gram_is_faster(*atoms.shape, signals, sparsity)
    return GramForm if gram else ResidualForm


def _gram_is_faster(features: int, atoms: int, signals: int, sparsity: int) -> bool:
    many_features = features >= max(_GRAM_FEATURES, _GRAM_FEATURES_AN_ATOM * sparsity) and sparsity > 1
    return many_features and signals >= atoms // 2 and atoms <= _MAX_GRAM_ATOMS


class ResidualForm:
    """
    Computes correlations as matrix products.

    Args:
        atoms (`torch.Tensor` of shape `(L, K)`): Atoms of unit norm, or zero. K is a multiple of `RUN`.
        rows (`int`): Largest number of signals that are coded at a time.
        sparsity (`int`): Largest number of atoms of a signal.
        orthogonal (`bool`): Whether the pursuit is OLS, which needs correlations with directions, and not OMP, which
            needs those with residuals.
    """

    def __init__(self, atoms: torch.Tensor, rows: int, sparsity: int, orthogonal: bool):
        self.atoms = atoms
        self.rows = (
            atoms.t().contiguous() if atoms.device.type == "cpu" else None
        )  # a CPU gathers atoms faster by rows
        self.sparsity, self.orthogonal = sparsity, orthogonal
        self.product = _product(atoms, self.rows, rows)

    def begin(self, fit: SupportFit) -> None:
        """Starts a new block of signals, before its first atom."""

    def advance(self, fit: SupportFit) -> None:
        """Updates what is kept after an atom was added."""

    def with_residual(
        self, fit: SupportFit, part: slice, magnitude: bool, out: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Correlations `(n, K)` with the residuals of a part of the signals, or their absolute values. They are written
        to `out` if it is given."""
        return self.product(fit.residual[:, part], magnitude, out)

    def with_direction(self, fit: SupportFit, part: slice) -> torch.Tensor:
        """Correlations `(n, K)` with the last directions."""
        return self.product(fit.basis[len(fit.slots) - 1, :, part], False)

    def correct(self, fit: SupportFit, part: slice, values: torch.Tensor) -> None:
        """Computes anew the correlations with residuals, in `values`, that are no longer exact after many updates by
        `with_direction`."""


class GramForm(ResidualForm):
    """Computes correlations from rows of the Gram matrix. For float32 on the CPU. It reads values and so cannot be
    compiled."""

    def __init__(self, atoms: torch.Tensor, rows: int, sparsity: int, orthogonal: bool):
        super().__init__(atoms, rows, sparsity, orthogonal)
        count = atoms.shape[1]
        # the Gram matrix; for OMP, Dᵀy of the block of signals stands below it
        self.table = atoms.new_empty(count if orthogonal else count + rows, count)
        for start in range(0, count, rows):
            part = slice(start, min(start + rows, count))
            self.product(atoms[:, part], False, self.table[part])

    def begin(self, fit: SupportFit) -> None:
        n, count = len(fit.length), self.atoms.shape[1]
        self.inverse = fit.residual.new_zeros(self.sparsity, self.sparsity, n)  # R⁻¹, [s, j]: W_j of direction s
        self.left = fit.length.square()  # ‖r‖²
        if self.orthogonal:
            self.rounding = fit.length  # ‖y‖ + Σ ‖p_s W_s‖₁
        else:
            self.signal_products = self.table[count : count + n]  # Dᵀy
            self.places = torch.arange(count, count + n)
            self.coefficients = fit.residual.new_zeros(self.sparsity + 1, n)  # −1, then γ: the weights of −Dᵀr
            self.coefficients[0] = -1.0

    def advance(self, fit: SupportFit) -> None:
        s, projection = len(fit.slots) - 1, fit.projections[-1]
        inverse = torch.where(fit.used[s], fit.triangle[s, s].reciprocal(), fit.zero)
        weights = self.inverse[s, : s + 1]
        if s:
            torch.sum(fit.triangle[:s, s].unsqueeze(1) * self.inverse[:s, :s], dim=0, out=weights[:s])
            weights[:s].mul_(inverse).neg_()
        weights[s] = inverse
        self.left = self.left.addcmul(projection, projection, value=-1.0)
        if self.orthogonal:
            size = weights.abs().sum(dim=0)
            self.poor = size > _WORST_ROUNDING
            self.rounding = self.rounding.addcmul(size, projection.abs())
            self.members, self.weights = torch.stack(fit.slots, dim=1), weights.t().contiguous()
        else:
            coefficients = self.coefficients[: s + 2]
            coefficients[1:].addcmul_(weights, projection)
            self.rounding = fit.length + coefficients[1:].abs().sum(dim=0)  # ‖y‖ + ‖γ‖₁
            self.members = torch.stack([self.places, *fit.slots], dim=1)
            self.weights = coefficients.t().contiguous()
        self.inexact = fit.active & (self.rounding.square() > _WORST_ROUNDING**2 * self.left)

    def with_residual(
        self, fit: SupportFit, part: slice, magnitude: bool, out: torch.Tensor | None = None
    ) -> torch.Tensor:
        if self.orthogonal:
            return super().with_residual(fit, part, magnitude, out)
        if not fit.slots:
            return self.product(fit.residual[:, part], False, self.signal_products[part]).abs()
        return self._replace(self._weighted(part), self.inexact[part], fit.residual[:, part]).abs_()

    def with_direction(self, fit: SupportFit, part: slice) -> torch.Tensor:
        return self._replace(self._weighted(part), self.poor[part], fit.basis[len(fit.slots) - 1, :, part])

    def correct(self, fit: SupportFit, part: slice, values: torch.Tensor) -> None:
        self._replace(values, self.inexact[part], fit.residual[:, part])

    def _weighted(self, part):
        """Sums `(n, K)` of rows of the table."""
        return F.embedding_bag(self.members[part], self.table, per_sample_weights=self.weights[part], mode="sum")

    def _replace(self, values, chosen, columns):
        """Overwrites the rows of `values (n, K)` that are marked in `chosen (n,)` by products with `columns (L, n)`."""
        rows = chosen.nonzero()[:, 0]
        return values.index_copy_(0, rows, self.product(columns.index_select(1, rows), False)) if len(rows) else values


def _product(atoms: torch.Tensor, transposed: torch.Tensor | None, rows: int):
    """
    Returns the function that multiplies columns `(L, n)` with `atoms (L, K)` to `(n, K)`, or to its absolute values.

    For float32 on the CPU this is oneDNN's product, which `torch.compile` uses for linear layers. It is twice as fast
    on processors for which BLAS is not tuned. Absolute values cost nothing there: they are a leaky ReLU of slope −1.
    `transposed (K, L)` are the atoms as rows, which this product needs, and `rows` is the usual n.
    """
    eager = atoms.device.type == "cpu" and not torch.compiler.is_compiling()
    if eager and atoms.dtype == torch.float32 and _has_onednn() and atoms.shape[0] >= _FEW_FEATURES:
        product = torch.ops.mkldnn._linear_pointwise
        packed = torch.ops.mkldnn._reorder_linear_weight(transposed, rows)

        def correlate(columns, magnitude, out=None):
            operation = ("leaky_relu", [-1.0], "") if magnitude else ("none", [], "")
            values = product(columns.t(), packed, None, *operation)
            return values if out is None else out.copy_(values)
    else:

        def correlate(columns, magnitude, out=None):
            values = torch.mm(columns.t(), atoms, out=out)
            return values.abs_() if magnitude else values

    return correlate


@cache
def _has_onednn() -> bool:
    """
    Whether this torch has oneDNN's product.

    The product allocates its result each time. Fresh memory costs a page fault for each page, unless the allocator
    reuses freed blocks. glibc reuses blocks of up to twice the size of the largest one that it has returned to the
    system, at most 32 MiB. So a block of that size is allocated and freed here, once. It is never written to, and so
    costs nothing.
    """
    torch.empty(2**25 - 2**16, dtype=torch.uint8)
    names = ("_linear_pointwise", "_reorder_linear_weight")
    return torch.backends.mkldnn.is_available() and all(hasattr(torch.ops.mkldnn, name) for name in names)


def row_maximum(values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Largest value `(n,)` of each row of `values (n, K)` and its position, the first one on ties.

    K is a multiple of `RUN`. On a CPU the values may be overwritten. There, `max` with indices has a tenth of the speed
    of `amax`. So `amax` finds the maximum of each run of `RUN` values, and only the maxima of the runs and the best run
    are searched with indices.
    """
    if values.device.type != "cpu":
        return values.max(dim=1)
    n, atoms = values.shape
    if atoms == RUN:
        best = values.amax(dim=1)
        return best, _position(values, best)
    count = atoms // RUN
    runs = values.view(n * count, RUN)
    best, run = runs.amax(dim=1).view(n, count).max(dim=1)
    chosen = runs.index_select(0, torch.arange(0, n * count, count) + run)
    return best, _position(chosen, best).add_(run, alpha=RUN)


def _position(values: torch.Tensor, best: torch.Tensor) -> torch.Tensor:
    """
    First column of `values (n, RUN)` that holds its row's maximum `best (n,)`; 0 in rows with NaN.

    Overwrites the values. A CPU vectorises float arithmetic, so the column is found as a maximum of floats: −column
    where the value is the best one, and a very low number elsewhere.
    """
    columns = torch.arange(0, -RUN, -1, dtype=values.dtype)
    values.sub_(best.unsqueeze(1))
    torch.add(columns, values, alpha=1e38, out=values)
    first = values.amax(dim=1).neg_()
    return torch.where(first < RUN, first, 0.0).long()
