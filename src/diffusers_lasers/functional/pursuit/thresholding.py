r"""Sparse coding by thresholding, batched: normalised iterative hard thresholding (IHT) and FISTA.

A greedy pursuit chooses one atom at a time. These two methods change all coefficients at once: they take a step along
Dᵀ(y − Dγ) and cut small entries, for a fixed number of iterations. The final support is then fitted by least squares.
With unit atoms Φ:

* IHT (Blumensath & Davies, 2010) keeps the S largest entries: γ ← H_S(γ + μ g), g = Φᵀ(y − Φγ). Its step is the best
  one as long as the support Γ does not change,

      μ = ‖g_Γ‖² / ‖Φ_Γ g_Γ‖² ;        at γ = 0, Γ is the support of H_S(g).

* FISTA (Beck & Teboulle, 2009, eqs 4.1–4.3) minimises ½‖y − Φγ‖² + λ‖γ‖₁ with λ = `penalty` · ‖Φᵀy‖_∞, above which γ =
  0:

      γ_k = shrink(z_k + Φᵀ(y − Φ z_k) / Λ, λ / Λ),   z_{k+1} = γ_k + (t_k − 1)/t_{k+1} · (γ_k − γ_{k−1}),   Λ ≥ ‖Φ‖₂²,

  and its S largest entries are the support.

What we change. Where Γ changes, the step of IHT may be too long. Blumensath and Davies shorten it until a bound
guarantees descent. We halve it until ‖y − Φγ‖ decreases by more than rounding. This is simpler, and its final residuals
were shorter in every case that we measured. An iteration tries one step, which is accepted or not, so that signals in
different states share a block.

FISTA takes Λ from the bound ‖Φ‖₂² ≤ ‖(ΦΦᵀ)^m‖_F^{1/m} with m = 64, six squarings of the smaller Gram matrix. It needs
no eigenvalues and is within 5 % for 256 features. The problem is scaled to Λ = 1 and ‖Φᵀy‖_∞ = 1. Step and threshold
are then the same for all signals, and the support does not depend on the length of a signal.

The fit adds the atoms of the support in order of decreasing magnitude. It leaves out atoms that nearly depend on the
ones before: thresholding divides one coefficient among such atoms, and least squares would give them large coefficients
of opposite signs. A block is coded in a fixed number of tensor operations on every device. Nothing is decided on the
host, so that it compiles to one graph.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
from torch.nn import functional as F

from ..unit_atoms import unit_atoms
from .inputs import pursuit_arguments
from .support_fit import SupportFit


__all__ = ["fista", "iht"]

# Entries of γ held at a time (signals × atoms); FISTA has five such arrays.
_BLOCK_ELEMENTS = {"cpu": 2**19, "accelerator": 2**24}
_SQUARINGS = 6  # of the Gram matrix, for the bound on ‖Φ‖₂²
# An atom whose part outside the span of those before it is shorter than this is left out of the fit.
_RELATIVE_INDEPENDENCE = {torch.float32: 1e-3, torch.float64: 1e-7}
_ROUNDING = 8.0  # a squared length must fall by so many units in the last place to count as shorter

# (targets (n, features), unit atoms (features, K), sparsity) -> slots and values (n, sparsity), largest value first
_Selection = Callable[[torch.Tensor, torch.Tensor, int], tuple[torch.Tensor, torch.Tensor]]


def iht(
    signals: torch.Tensor,
    dictionary: torch.Tensor,
    sparsity: int,
    tolerance: float | None = None,
    *,
    check_finite: bool = True,
    iterations: int = 50,
) -> tuple[torch.Tensor, torch.Tensor]:
    r"""
    Codes each signal with at most `sparsity` atoms by normalised iterative hard thresholding (Blumensath & Davies,
    2010) and a least-squares fit on the support.

    The residual never grows from one iteration to the next. The code does not depend on the other signals of the
    batch, up to the rounding of BLAS. The computation runs in float32 (float64 for float64 signals), also under
    autocast, and without gradient. Supports of different `sparsity` are not nested. Only the direction of an atom
    counts, not its length. Of nearly dependent atoms only the first is kept.

    Args:
        signals (`torch.Tensor` or `numpy.ndarray` of shape `(N, features)`): Signals to code; N may be 0.
        dictionary (`torch.Tensor` or `numpy.ndarray` of shape `(features, atoms)`): Atoms as columns, of any length.
            Zero columns are never chosen.
        sparsity (`int`): Number of atoms S a signal may use, `1 <= sparsity <= atoms`.
        tolerance (`float`, *optional*): The fit adds atoms of the support, the largest first, only until the residual
            norm ‖y − Dγ‖₂ is at most this, in the units of the signals. Defaults to `None`: until rounding sets the
            limit.
        check_finite (`bool`, defaults to `True`): Whether to refuse NaN and infinite values. On an accelerator the
            check waits for the device once. Without the check, a non-finite signal gets indices −1 and NaN
            coefficients; with a non-finite dictionary, all signals do.
        iterations (`int`, defaults to 50): Steps that are tried, at least 1.

    Returns:
        `tuple[torch.Tensor, torch.Tensor]`: `indices (N, sparsity)` (int64, in order of decreasing magnitude before the
        fit; −1 in unused slots, which come last) and `coefficients (N, sparsity)` (float32 or float64, with respect to
        the given atoms, 0 in unused slots).

    Raises:
        ValueError: On shapes that do not fit, a sparsity or number of iterations out of range, a negative tolerance, or
            non-finite input.
    """
    _check_iterations(iterations)
    select = partial(_hard_thresholding, iterations=iterations)
    return _code(signals, dictionary, sparsity, tolerance, check_finite, select)


def fista(
    signals: torch.Tensor,
    dictionary: torch.Tensor,
    sparsity: int,
    tolerance: float | None = None,
    *,
    check_finite: bool = True,
    penalty: float = 0.05,
    iterations: int = 100,
) -> tuple[torch.Tensor, torch.Tensor]:
    r"""
    Codes each signal with the `sparsity` largest atoms of its lasso solution, found by FISTA (Beck & Teboulle, 2009),
    and a least-squares fit on them.

    Precision, the batch and the lengths of atoms are treated as in [`iht`].

    Args:
        signals (`torch.Tensor` or `numpy.ndarray` of shape `(N, features)`): Signals to code; N may be 0.
        dictionary (`torch.Tensor` or `numpy.ndarray` of shape `(features, atoms)`): Atoms as columns, of any length.
            Zero columns are never chosen.
        sparsity (`int`): Number of atoms S a signal may use, `1 <= sparsity <= atoms`. Fewer are used where the lasso
            has fewer.
        tolerance (`float`, *optional*): Residual norm, in the units of the signals, at which a signal takes no further
            atom; see [`iht`].
        check_finite (`bool`, defaults to `True`): Whether to refuse NaN and infinite values; see [`iht`].
        penalty (`float`, defaults to 0.05): Weight λ of the ℓ₁ norm as a share of the signal's largest correlation with
            a unit atom, in `(0, 1)`. A larger one leaves fewer atoms and needs fewer iterations.
        iterations (`int`, defaults to 100): Iterations, at least 1.

    Returns:
        `tuple[torch.Tensor, torch.Tensor]`: `indices (N, sparsity)` and `coefficients (N, sparsity)`, as those of
        [`iht`].

    Raises:
        ValueError: On shapes that do not fit, a sparsity, penalty or number of iterations out of range, a negative
            tolerance, or non-finite input.
    """
    _check_iterations(iterations)
    if not 0 < penalty < 1:
        raise ValueError(f"`penalty` must be between 0 and 1, both excluded, got {penalty!r}.")
    select = partial(_largest_of_lasso, penalty=penalty, iterations=iterations)
    return _code(signals, dictionary, sparsity, tolerance, check_finite, select)


def _check_iterations(iterations: int) -> None:
    if isinstance(iterations, bool) or not isinstance(iterations, int) or iterations < 1:
        raise ValueError(f"`iterations` must be an integer of at least 1, got {iterations!r}.")


def _code(signals, dictionary, sparsity, tolerance, check_finite, select: _Selection):
    """Codes the signals in blocks: `select` chooses the supports, then they are fitted."""
    # outside no_grad: an error that compiled code raises inside it would leave autograd off
    signals, dictionary, tolerance = pursuit_arguments(signals, dictionary, sparsity, tolerance, check_finite)
    with torch.no_grad(), torch.autocast(signals.device.type, enabled=False):
        atoms, scale = unit_atoms(dictionary)
        features, count = atoms.shape
        block = _BLOCK_ELEMENTS["cpu" if signals.device.type == "cpu" else "accelerator"]
        rows = max(1, block // max(count, 2 * sparsity * max(features, sparsity)))
        parts = [_code_block(part, atoms, scale, sparsity, tolerance, select) for part in signals.split(rows)]
        return torch.cat([indices for indices, _ in parts]), torch.cat([coefficients for _, coefficients in parts])


def _code_block(signals, atoms, scale, sparsity, tolerance, select: _Selection):
    """Least squares on the chosen support. Its atoms are added, the largest first, until the residual is within
    `tolerance`."""
    fit = SupportFit(signals, atoms, scale, sparsity)
    fit.independence = _RELATIVE_INDEPENDENCE[signals.dtype]
    slots, values = select(fit.residual.t().contiguous(), atoms, sparsity)
    goal = fit.smallest if tolerance is None else torch.maximum(fit.smallest, tolerance / fit.unit)
    fit.active = fit.active & torch.isfinite(scale).all()
    for slot, value in zip(slots.unbind(1), values.unbind(1)):
        fit.active = fit.active & (fit.residual.norm(dim=0) > goal)
        fit.add(slot, value != 0, greedy=False)
    indices, coefficients = fit.code()
    order = (indices < 0).int().argsort(dim=1, stable=True)  # dependent atoms left gaps
    return indices.gather(1, order), coefficients.gather(1, order)


def _hard_thresholding(targets, atoms, sparsity, iterations):
    """Slots and values `(n, sparsity)` of IHT for `targets (n, features)`."""
    rows = atoms.t().contiguous()
    slots = (targets @ atoms).abs().topk(sparsity, dim=1).indices
    values = torch.zeros_like(slots, dtype=targets.dtype)
    residual, energy = targets, _energy(targets)
    epsilon = torch.finfo(targets.dtype).eps
    least = epsilon**2 * energy  # a smaller gradient on the support is rounding
    step, fresh = torch.ones_like(energy), torch.ones_like(energy, dtype=torch.bool)
    for _ in range(iterations):
        gradient = residual @ atoms
        on_support = gradient.gather(1, slots)
        slope = _energy(on_support)
        best = slope / _energy(_combine(slots, on_support, rows))
        step = torch.where(fresh & (slope > least), best, step)
        moved = gradient.mul_(step).scatter_add_(1, slots, values)
        trial = moved.abs().topk(sparsity, dim=1).indices
        trial_values = moved.gather(1, trial)
        trial_residual = targets - _combine(trial, trial_values, rows)
        trial_energy = _energy(trial_residual)
        fresh = trial_energy < energy * (1.0 - _ROUNDING * epsilon)
        slots, values = torch.where(fresh, trial, slots), torch.where(fresh, trial_values, values)
        residual, energy = torch.where(fresh, trial_residual, residual), torch.where(fresh, trial_energy, energy)
        step = torch.where(fresh, step, step / 2)
    return slots, values


def _energy(rows: torch.Tensor) -> torch.Tensor:
    """Squared length of each row, `(n, 1)`."""
    return rows.square().sum(dim=1, keepdim=True)


def _combine(slots: torch.Tensor, values: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """Φγ, `(n, features)`, of codes `(n, sparsity)`; `rows (K, features)` are the atoms."""
    return F.embedding_bag(slots, rows, per_sample_weights=values, mode="sum")


def _largest_of_lasso(targets, atoms, sparsity, penalty, iterations):
    """Slots and magnitudes `(n, sparsity)` of the lasso's largest entries for `targets (n, features)`."""
    contraction = atoms / _spectral_bound(atoms).sqrt()
    largest = (targets @ contraction).abs().amax(dim=1, keepdim=True)
    targets = targets / torch.where(largest > 0, largest, 1.0)
    magnitudes, slots = _lasso(targets, contraction, penalty, iterations).abs().topk(sparsity, dim=1)
    return slots, magnitudes


def _lasso(targets, contraction, penalty, iterations):
    """FISTA: γ `(n, K)` near the minimum of ½‖y − Ψγ‖² + penalty · ‖γ‖₁ for each row y of `targets`; Ψ = `contraction`,
    ‖Ψ‖₂ ≤ 1."""
    code = targets.new_zeros(targets.shape[0], contraction.shape[1])
    ahead, transposed, t = code, contraction.t(), 1.0
    for _ in range(iterations):
        residual = torch.addmm(targets, ahead, transposed, alpha=-1.0)
        latest = F.softshrink(torch.addmm(ahead, residual, contraction), penalty)
        following = (1.0 + math.sqrt(1.0 + 4.0 * t * t)) / 2.0
        ahead = torch.lerp(code, latest, 1.0 + (t - 1.0) / following)
        code, t = latest, following
    return code


def _spectral_bound(atoms: torch.Tensor) -> torch.Tensor:
    """Λ: at least the largest eigenvalue of ΦᵀΦ, and at most that times min(features, K)^(1/128); see the module's
    text."""
    power = atoms @ atoms.t() if atoms.shape[0] <= atoms.shape[1] else atoms.t() @ atoms
    bound, exponent = 1.0, 1.0
    for _ in range(_SQUARINGS):
        norm = power.norm().clamp_min(1e-30)
        bound, exponent = bound * norm**exponent, exponent / 2
        power = power / norm
        power = power @ power
    return bound * power.norm().clamp_min(1e-30) ** exponent
