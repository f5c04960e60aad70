"""No bottleneck: the autoencoder's upper bound, at the rate of half-precision latents."""

from __future__ import annotations

from typing import Any

import torch
from diffusers.configuration_utils import register_to_config

from .bottleneck import Bottleneck, BottleneckOutput


__all__ = ["IdentityBottleneck"]


class IdentityBottleneck(Bottleneck):
    """
    Passes latents unchanged. Its rate is that of storing them in half precision, 16 bits a channel.

    Args:
        latent_channels (`int`, defaults to 16): Channels L of the latents.
    """

    @register_to_config
    def __init__(self, latent_channels: int = 16):
        super().__init__()

    @property
    def bits_per_site(self) -> float:
        """Bits of one site: 16 a channel."""
        return 16.0 * self.config.latent_channels

    def encode(self, latents: torch.Tensor, rate_weight: float | None = None, prior: Any = None) -> None:
        """
        There is no code.

        Args:
            latents (`torch.Tensor` of shape `(B, L, H, W)`): Latents.
            rate_weight (`float`, *optional*): Not read.
            prior ([`FactorizedPrior`], *optional*): Not read.

        Raises:
            ValueError: Always.
        """
        raise ValueError("A model with `bottleneck_type='none'` has no code: use `encode(...).latents` instead.")

    def decode(self, code: None) -> torch.Tensor:
        """
        There is no code; see [`IdentityBottleneck.encode`].

        Raises:
            ValueError: Always.
        """
        return self.encode(code)

    def unpack(self, data: bytes, max_sites: int | None = None) -> None:
        """
        There is no code; see [`IdentityBottleneck.encode`].

        Raises:
            ValueError: Always.
        """
        return self.encode(data)

    def bits(self, code: None) -> float:
        """
        There is no code; see [`IdentityBottleneck.encode`].

        Raises:
            ValueError: Always.
        """
        return self.encode(code)

    def _check_kind(self, code: None) -> None:
        self.encode(code)

    def forward(self, latents: torch.Tensor, return_dict: bool = True) -> BottleneckOutput | tuple:
        """
        Returns the latents as they are, with zero losses.

        Args:
            latents (`torch.Tensor` of shape `(B, L, H, W)`): Latents.
            return_dict (`bool`, defaults to `True`): Whether to return an output class instead of a tuple.

        Returns:
            [`BottleneckOutput`] or `tuple`: The latents; `code` is `None`.
        """
        zero = latents.new_zeros((), dtype=torch.float32)
        output = BottleneckOutput(latents=latents, loss=zero, commitment_loss=zero, codebook_loss=zero)
        return output if return_dict else output.to_tuple()
