r"""The reconstruction loss of LASERS (2024), eq 6: a mixture of a pixel and a perceptual distance,

    ℓ_recon(x, x̂) = η ‖x − x̂‖²₂ + (1 − η) ℓ_perceptual(x, x̂).

What we change: ‖·‖²₂ is the *mean* squared error over batch, channels and pixels of images in [-1, 1], so that η means
the same at every resolution (the paper prints a norm, its authors' code takes the mean), and both terms are computed
in fp32 whatever the precision of the model, because LPIPS overflows in half precision.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn


__all__ = ["ReconstructionLoss"]


class ReconstructionTerms(NamedTuple):
    """
    The value of eq 6 and its two distances before weighting.

    Args:
        loss (`torch.Tensor`): η · mse + (1 − η) · perceptual, 0-dim, fp32; the one to differentiate.
        mse (`torch.Tensor`): Mean squared error of the images in [-1, 1], 0-dim, detached.
        perceptual (`torch.Tensor` or `None`): Mean perceptual distance, 0-dim, detached; `None` without a network.
    """

    loss: torch.Tensor
    mse: torch.Tensor
    perceptual: torch.Tensor | None


class ReconstructionLoss(nn.Module):
    r"""
    Creates the reconstruction loss of LASERS (2024), eq 6, η · MSE + (1 − η) · LPIPS.

    Args:
        eta (`float`, defaults to 0.5):
            Weight η of the mean squared error, in [0, 1]; 0.5 is the paper's. Without `perceptual` it must be 1.
        perceptual (`torch.nn.Module`, *optional*):
            Maps two batches of images `(B, 3, H, W)` in [-1, 1] to distances `(B,)`, as [`PerceptualSimilarity`] does.
            It is frozen and kept in evaluation mode.

    Raises:
        ValueError: If `eta` is outside [0, 1], or below 1 without `perceptual`.
    """

    def __init__(self, eta: float = 0.5, perceptual: nn.Module | None = None):
        super().__init__()
        if not 0.0 <= eta <= 1.0:
            raise ValueError(f"`eta` must lie in [0, 1], got {eta!r}.")
        if perceptual is None and eta != 1.0:
            raise ValueError(
                f"`eta` must be 1 (mean squared error alone) without a `perceptual` network, got {eta!r}."
            )
        self.eta = float(eta)
        self.perceptual = perceptual
        if perceptual is not None:
            perceptual.requires_grad_(False)
        self.train(False)

    def train(self, mode: bool = True) -> ReconstructionLoss:
        """Stays in evaluation mode: a perceptual network has no training mode here."""
        return super().train(False)

    def forward(self, sample: torch.Tensor, target: torch.Tensor) -> ReconstructionTerms:
        """
        Compares reconstructions with the images that they should be.

        Args:
            sample (`torch.Tensor` of shape `(B, C, H, W)`): Reconstructions, of any floating dtype.
            target (`torch.Tensor` of shape `(B, C, H, W)`): Images in [-1, 1].

        Returns:
            [`ReconstructionTerms`]: The loss and its two distances.

        Raises:
            ValueError: If the shapes differ.
        """
        if sample.shape != target.shape:
            raise ValueError(
                f"`sample` must have the shape of `target`, {tuple(target.shape)}, got {tuple(sample.shape)}."
            )
        with torch.autocast(device_type=sample.device.type, enabled=False):
            sample, target = sample.float(), target.float()
            mse = F.mse_loss(sample, target)
            if self.perceptual is None:
                return ReconstructionTerms(mse, mse.detach(), None)
            distances = self.perceptual(sample, target)
            distances = distances if torch.is_tensor(distances) else distances.distances
            perceptual = distances.float().mean()
            loss = self.eta * mse + (1.0 - self.eta) * perceptual
        return ReconstructionTerms(loss, mse.detach(), perceptual.detach())
