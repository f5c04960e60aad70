"""Atoms scaled to unit length for pursuits and kernels, and the factors back to the caller's atoms."""

from __future__ import annotations

import torch


def unit_atoms(dictionary: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Scales columns to unit norm, whatever their lengths.

    Args:
        dictionary (`torch.Tensor` of shape `(features, atoms)`): Atoms as columns; zero columns stay zero.

    Returns:
        `tuple[torch.Tensor, torch.Tensor]`: The unit columns, and factors `(atoms,)` that turn their coefficients into
        those of the given columns. A factor is 0 for a zero column and NaN for one that is not finite.
    """
    peak = dictionary.abs().amax(dim=0)
    safe = torch.where(peak > 0, peak, torch.ones_like(peak))
    scaled = dictionary / safe  # largest entry 1: squares neither overflow nor vanish
    norm = scaled.square().sum(dim=0).sqrt()
    unit = scaled / norm.clamp_min(1e-30)
    scale = torch.where(peak > 0, 1 / norm.clamp_min(1e-30) / safe, 0.0)
    return unit, torch.where(torch.isfinite(peak), scale, float("nan"))
