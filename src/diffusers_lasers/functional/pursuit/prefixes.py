r"""Least-squares coefficients of the first atoms of a code, for all numbers of atoms at once.

With \(D_τ = Q R\) and \(p = Q^⊤ \hat y\), the coefficients of the first s atoms solve \(R_{:s,:s}\, γ = p_{:s}\). R is
a triangle, so that the inverse of its leading part is the leading part of its inverse. So γ is the sum of the first s
columns of \(R^{-1} \operatorname{diag}(p)\), and one cumulative sum gives all of them.
"""

from __future__ import annotations

import torch
from torch.nn import functional as F


__all__ = ["prefix_coefficients"]


@torch.no_grad()
def prefix_coefficients(indices: torch.Tensor, coefficients: torch.Tensor, dictionary: torch.Tensor) -> torch.Tensor:
    r"""
    Coefficients of the first 1, 2, … S atoms of least-squares codes.

    The signal itself is not needed: its projection on fewer atoms is the projection of its projection on all.

    Args:
        indices (`torch.Tensor` of shape `(N, S)`): Independent atoms of each signal, int64; −1 in unused slots, which
            come last.
        coefficients (`torch.Tensor` of shape `(N, S)`): Their least-squares coefficients.
        dictionary (`torch.Tensor` of shape `(features, atoms)`): Atoms as columns.

    Returns:
        `torch.Tensor` of shape `(S, N, S)`: Coefficients, with those of the first s atoms at s − 1; 0 in all later
        slots and in unused ones.
    """
    used, sparsity = indices >= 0, indices.shape[1]
    atoms = dictionary.detach().t()[indices.clamp_min(0)] * used.unsqueeze(-1)  # (N, S, L)
    signals = (atoms * coefficients.unsqueeze(-1)).sum(dim=1)
    # Zero rows below make the matrix tall; the zero column of an unused slot gets a unit diagonal and weight 0.
    missing = (0, max(0, sparsity - atoms.shape[-1]))
    basis, triangle = torch.linalg.qr(F.pad(atoms, missing).transpose(1, 2))
    projections = (basis * F.pad(signals, missing).unsqueeze(-1)).sum(dim=1) * used  # (N, S)
    triangle = triangle + torch.diag_embed((~used).to(triangle.dtype))
    one = torch.eye(sparsity, dtype=triangle.dtype, device=triangle.device).expand_as(triangle)
    inverse = torch.linalg.solve_triangular(triangle, one, upper=True)
    return (inverse * projections.unsqueeze(1)).cumsum(dim=2).permute(2, 0, 1) * used
