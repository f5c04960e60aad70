"""What every bottleneck of an autoencoder can do: `encode` latents to a code, `decode` a code to latents, and both in `forward`."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.utils import BaseOutput

from ...coding import IndexCode, SparseCode
from ...functional.patches import latents_to_signals, patch_grid, signals_to_latents
from ...utils.hub import LasersHubMixin


__all__ = ["Bottleneck", "BottleneckOutput"]


@dataclass
class BottleneckOutput(BaseOutput):
    """
    Output of a bottleneck's `forward`.

    Args:
        latents (`torch.Tensor` of shape `(B, L, H, W)`): Latents after the bottleneck, through which gradients reach the encoder.
        loss (`torch.Tensor`): Weighted sum of the two losses below, 0-dimensional, to add to the reconstruction loss.
        commitment_loss (`torch.Tensor`): mean (z_e − sg[ẑ_e])², unweighted and without gradient, to log
            (LASERS, 2024, third term of eqs 3 and 13).
        codebook_loss (`torch.Tensor`): mean (sg[z_e] − ẑ_e)², likewise (second term); 0 where running
            means replace it.
        code ([`SparseCode`] or [`IndexCode`], *optional*): The code, without gradient.
    """

    latents: torch.Tensor
    loss: torch.Tensor | None = None
    commitment_loss: torch.Tensor | None = None
    codebook_loss: torch.Tensor | None = None
    code: SparseCode | IndexCode | None = None


class Bottleneck(LasersHubMixin, ModelMixin, ConfigMixin):
    """
    Base of the bottlenecks. A subclass defines `encode`, `decode`, `forward`, `bits_per_site` and `num_symbols`, and
    `initialize` where it learns from data.

    Attributes:
        patch_size (`int`): Side p of a site, in latent positions; a site has p²·`latent_channels` features.
        num_symbols (`int`): Atoms or codewords of each slot; 0 for a bottleneck without.
    """

    _supports_group_offloading = False
    num_symbols: int = 0

    @property
    def patch_size(self) -> int:
        return self.config.get("patch_size", 1)

    @property
    def bits_per_site(self) -> float:
        """Nominal bits of one site's code."""
        raise NotImplementedError

    def bits(self, height: int, width: int) -> float:
        """
        Nominal bits of the code of latents of `height` × `width` positions.

        Args:
            height (`int`): Latent positions down.
            width (`int`): Latent positions across.

        Returns:
            `float`: Bits.
        """
        rows, columns = patch_grid(height, width, self.patch_size)
        return rows * columns * self.bits_per_site

    def signals(self, latents: torch.Tensor) -> torch.Tensor:
        """
        Latents as float32 signals, one a site.

        Args:
            latents (`torch.Tensor` of shape `(B, L, H, W)`): Latents.

        Returns:
            `torch.Tensor` of shape `(B·h·w, p²·L)`: Signals.

        Raises:
            ValueError: If the latents have another number of channels.
        """
        channels = self.config.latent_channels
        if latents.ndim != 4 or latents.shape[1] != channels:
            raise ValueError(
                f"`latents` must have shape (batch, {channels}, height, width), got {tuple(latents.shape)}."
            )
        return latents_to_signals(latents.float(), self.patch_size)

    def latents(self, signals: torch.Tensor, latent_size: tuple[int, int], dtype: torch.dtype) -> torch.Tensor:
        """
        Signals folded back into latents; the inverse of [`signals`].

        Args:
            signals (`torch.Tensor` of shape `(B·h·w, p²·L)`): Signals.
            latent_size (`tuple[int, int]`): Height and width of the latents.
            dtype (`torch.dtype`): Type of the result.

        Returns:
            `torch.Tensor` of shape `(B, L, H, W)`: Latents.
        """
        return signals_to_latents(signals, *latent_size, self.patch_size).to(dtype)

    def initialize(self, latents: torch.Tensor, generator: torch.Generator | None = None) -> None:
        """
        Initialises what is learned from data; call it once, on the first latents, before training. Nothing to do here.

        Args:
            latents (`torch.Tensor` of shape `(B, L, H, W)`): Latents of the untrained encoder.
            generator (`torch.Generator`, *optional*): Source of randomness.
        """


def check_positive(**arguments: int) -> None:
    """Raises a `ValueError` naming the first argument that is not an integer of at most 2³¹ and at least 1."""
    for name, value in arguments.items():
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value < 2**31:
            raise ValueError(f"`{name}` must be a positive integer, got {value!r}.")
