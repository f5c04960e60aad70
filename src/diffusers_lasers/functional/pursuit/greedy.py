r"""Greedy pursuits, batched: orthogonal matching pursuit (OMP) and orthogonal least squares (OLS).

For a signal \(y \in \mathbb{R}^L\) and a dictionary \(D \in \mathbb{R}^{L \times K}\), both approximate

    min ‖y − D γ‖₂  subject to  ‖γ‖₀ ≤ S

by adding one atom at a time and refitting all coefficients by least squares on the support (LASERS, 2024, eqs 20–22).
Let r be the residual and P the projection on the atoms chosen so far. The next atom is

    OMP:  argmax |d_jᵀ r| / ‖d_j‖                       (LASERS, 2024, Algorithm 1, eq 19)
    OLS:  argmax |d_jᵀ r| / ‖(I − P) d_j‖               (Chen et al., 1989)

OLS adds the atom after which the residual is shortest. SPAMS computes OLS under the name `omp`. With one atom, OMP and
OLS are the same.

The paper's Algorithm 1 keeps a growing Cholesky factor of the Gram matrix. Its corner √(1 − ωᵀω) becomes NaN for a
dependent atom. We instead keep the residual and an orthonormal basis Q of the chosen atoms (Gram–Schmidt in two
passes): r ← r − q qᵀr. At the end, the coefficients solve the triangular system R γ = Qᵀ y. This never forms an N × K
code, and it recognises a dependent atom by the length of its part outside the span.

The paper leaves some cases open. Here, an atom is chosen at most once. A signal stops when its residual is within
`tolerance`, or when no remaining atom can reduce it in the working precision. Unused slots hold index −1 and
coefficient 0. Atoms may have any length; zero atoms are never chosen.

There are two implementations with the same results up to rounding: tensor operations for every device and precision
(`greedy_torch.py`), and a compiled kernel for float32 on the CPU (`functional/kernels/`). Only `_greedy_pursuit` below
decides which one runs. It depends on device, precision, size and `set_backend`.
"""

from __future__ import annotations

import torch

from ..kernels.operators import fused_greedy_pursuit, holds_pursuit, uses_fused
from .greedy_torch import greedy_pursuit_torch
from .inputs import pursuit_arguments


__all__ = ["ols", "omp"]


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

    The supports are nested: the first s slots hold the support that `sparsity=s` finds. Its coefficients differ, since
    they are refitted. A signal's code does not depend on the other signals of the batch. Both properties hold exactly
    with the compiled kernels. In tensor operations they hold up to rounding, because BLAS rounds differently for
    another number of signals.

    The computation runs in float32 (float64 for float64 signals), also under autocast, without gradient, and in a fixed
    number of steps.

    Args:
        signals (`torch.Tensor` or `numpy.ndarray` of shape `(N, features)`): Signals to code; N may be 0.
        dictionary (`torch.Tensor` or `numpy.ndarray` of shape `(features, atoms)`): Atoms as columns, of any length.
            Zero columns are never chosen.
        sparsity (`int`): Number of atoms S a signal may use, `1 <= sparsity <= atoms`. It may exceed `features`; the
            slots that cannot help stay unused.
        tolerance (`float`, *optional*): A signal takes no further atom once its residual norm ‖y − Dγ‖₂ is at most
            this, in the units of the signals. Defaults to `None`: a signal stops only where rounding sets the limit.
        check_finite (`bool`, defaults to `True`): Whether to refuse NaN and infinite values. On an accelerator the
            check waits for the device once. Without the check, a non-finite signal gets indices −1 and NaN
            coefficients; with a non-finite dictionary, all signals do.

    Returns:
        `tuple[torch.Tensor, torch.Tensor]`: `indices (N, sparsity)` (int64, in order of selection, −1 in unused slots)
        and `coefficients (N, sparsity)` (float32 or float64, with respect to the given atoms, 0 in unused slots).

    Raises:
        ValueError: On shapes that do not fit, a sparsity out of range, a negative tolerance, or non-finite input.
    """
    return _greedy_pursuit(signals, dictionary, sparsity, tolerance, check_finite, orthogonal=False)


def ols(
    signals: torch.Tensor,
    dictionary: torch.Tensor,
    sparsity: int,
    tolerance: float | None = None,
    *,
    check_finite: bool = True,
) -> tuple[torch.Tensor, torch.Tensor]:
    r"""
    Codes each signal with at most `sparsity` atoms by orthogonal least squares (Chen et al., 1989): every step adds the
    atom that leaves the shortest residual.

    At the same number of atoms the residual is usually shorter than that of [`omp`]. The gain is larger with few
    features and coherent atoms. A step costs up to twice as much. An atom counts as dependent if its squared length
    outside the span of the chosen ones is below 1e-5 of its own (1e-10 in float64). Everything else is as in [`omp`];
    the supports are nested too.

    Args:
        signals (`torch.Tensor` or `numpy.ndarray` of shape `(N, features)`): Signals to code; N may be 0.
        dictionary (`torch.Tensor` or `numpy.ndarray` of shape `(features, atoms)`): Atoms as columns, of any length.
            Zero columns are never chosen.
        sparsity (`int`): Number of atoms S a signal may use, `1 <= sparsity <= atoms`.
        tolerance (`float`, *optional*): Residual norm, in the units of the signals, at which a signal takes no further
            atom.
        check_finite (`bool`, defaults to `True`): Whether to refuse NaN and infinite values; see [`omp`].

    Returns:
        `tuple[torch.Tensor, torch.Tensor]`: `indices (N, sparsity)` and `coefficients (N, sparsity)`, as those of
        [`omp`].

    Raises:
        ValueError: On shapes that do not fit, a sparsity out of range, a negative tolerance, or non-finite input.
    """
    return _greedy_pursuit(signals, dictionary, sparsity, tolerance, check_finite, orthogonal=True)


def _greedy_pursuit(signals, dictionary, sparsity, tolerance, check_finite, orthogonal):
    # outside no_grad: an error that compiled code raises inside it would leave autograd off
    signals, dictionary, tolerance = pursuit_arguments(signals, dictionary, sparsity, tolerance, check_finite)
    with torch.no_grad(), torch.autocast(signals.device.type, enabled=False):
        if uses_fused(signals) and holds_pursuit(*dictionary.shape, sparsity):
            return fused_greedy_pursuit(signals, dictionary, sparsity, tolerance, orthogonal)
        return greedy_pursuit_torch(signals, dictionary, sparsity, tolerance, orthogonal)
