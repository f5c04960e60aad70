r"""The error of a bottleneck, relative to the variance of the latents:

    NMSE = Σ ‖z − ẑ‖² / Σ ‖z − z̄‖²,

over all latents z of a data set, with z̄ the mean of each channel. It is 0 for an identity, and 1 if every position is
coded by the mean. The MSE of latents cannot be compared between models, since each encoder chooses its own scale.
"""

from __future__ import annotations

from typing import Any

import torch

from ..utils.import_utils import requires
from .states import keep_apart


requires("torchmetrics", extra="metrics")

from torchmetrics import Metric  # noqa: E402


__all__ = ["LatentNMSE"]


class LatentNMSE(Metric):
    """
    Creates a normalised mean squared error of latents.

    `update(quantized_latents, latents)` takes latents after and before the bottleneck. `compute()` returns a 0-dim
    float64 tensor.

    Args:
        num_channels (`int`): Number L of channels of the latents `(B, L, H, W)`.
        kwargs: Passed on to `torchmetrics.Metric`.
    """

    full_state_update = False
    is_differentiable = False
    higher_is_better = False

    def __init__(self, num_channels: int, **kwargs: Any):
        super().__init__(**kwargs)
        keep_apart(self)
        for name in ("error", "squares", "count"):
            self.add_state(name, torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("sums", torch.zeros(num_channels, dtype=torch.float64), dist_reduce_fx="sum")

    @torch.no_grad()
    def update(self, quantized_latents: torch.Tensor, latents: torch.Tensor) -> None:
        """
        Adds the latents of a batch.

        Args:
            quantized_latents (`torch.Tensor` of shape `(B, L, H, W)`): Latents after the bottleneck.
            latents (`torch.Tensor` of shape `(B, L, H, W)`): Latents before the bottleneck.

        Raises:
            ValueError: If the shapes differ or do not have `num_channels` channels.
        """
        if quantized_latents.shape != latents.shape or latents.ndim != 4 or latents.shape[1] != self.sums.numel():
            raise ValueError(
                f"`quantized_latents` and `latents` must both be (B, {self.sums.numel()}, H, W), got "
                f"{tuple(quantized_latents.shape)} and {tuple(latents.shape)}."
            )
        latents = latents.double()
        self.error += (quantized_latents.double() - latents).square().sum()
        self.squares += latents.square().sum()
        self.sums += latents.sum(dim=(0, 2, 3))
        self.count += latents.numel() / latents.shape[1]

    def compute(self) -> torch.Tensor:
        """The ratio, or NaN if the latents do not vary."""
        return self.error / (self.squares - self.sums.square().sum() / self.count)
