"""The base of models that code images: their sites, the rate of an image, and indices channels first `(B, c̄, h, w)`.

Diffusion on codebook indices needs the last of these, of a patch codec as of an autoencoder with a vector quantiser.
"""

from __future__ import annotations

from typing import Any

import torch

from ..coding import Code, Coder, IndexCode
from ..functional.images.patch_signals import patch_grid
from ..utils.config_checks import described


class ImageCoder(Coder):
    """
    Base of the coders of images. A subclass has `downsampling_factor`, pixels of a latent position's side, and
    `pixels_per_site`, pixels of a site's side.
    """

    downsampling_factor: int
    pixels_per_site: int

    def bits_per_pixel(self, height: int, width: int) -> float:
        """
        Nominal rate of an image's code.

        Args:
            height (`int`): Pixels down.
            width (`int`): Pixels across.

        Returns:
            `float`: Bits of the code divided by `height · width`. Padding to whole sites counts; without a bottleneck,
            16 bits a latent value do.
        """
        rows, columns = patch_grid(height, width, self.pixels_per_site)
        return rows * columns * self.bits_per_site / (height * width)

    @property
    def index_layout(self) -> tuple[int, int, int]:
        """
        Slots c̄, codewords |C| of each slot, and pixels of a site's side. A `ValueError` where the slots have codebooks
        of different sizes (Scribano et al., 2023, assume one size), or the model's codes are not indices.
        """
        self._check_has_indices()
        if len(set(self.levels)) > 1:
            raise ValueError(f"All slots must have as many codewords, got slots of {self.levels} codewords.")
        return len(self.levels), self.levels[0], self.pixels_per_site

    @torch.no_grad()
    def encode_indices(self, images: torch.Tensor) -> torch.Tensor:
        """
        Indices of images.

        Args:
            images (`torch.Tensor` of shape `(B, 3, H, W)`): RGB in [-1, 1].

        Returns:
            `torch.Tensor` of shape `(B, c̄, h, w)`: Indices, int64.

        Raises:
            ValueError: If the model's codes are not indices, or as `encode_to_code`.
        """
        self._check_has_indices()
        return self.encode_to_code(images).indices.permute(0, 3, 1, 2).contiguous()

    def decode_indices(self, codes: torch.Tensor) -> torch.Tensor:
        """
        Images of indices.

        Args:
            codes (`torch.Tensor` of shape `(B, c̄, h, w)`): Indices, int64.

        Returns:
            `torch.Tensor` of shape `(B, 3, H, W)`: RGB in about [-1, 1], not clamped.

        Raises:
            ValueError: If the model's codes are not indices, or `codes` are not indices of this model.
        """
        self._check_has_indices()
        slots = len(self.levels)
        if not torch.is_tensor(codes) or codes.ndim != 4 or codes.shape[1] != slots or codes.dtype != torch.int64:
            raise ValueError(f"`codes` must be int64 of shape (batch, {slots}, h, w), got {described(codes)}.")
        side = self.pixels_per_site // self.downsampling_factor  # of a site, in latent positions
        latent_size = (side * codes.shape[-2], side * codes.shape[-1])
        code = IndexCode(codes.permute(0, 2, 3, 1).contiguous(), self.levels, latent_size)
        return self.decode_from_code(code).sample

    def _check_has_indices(self) -> None:
        """Raises a `ValueError` where the model's codes are not indices."""


class BottleneckCoder(ImageCoder):
    """Base of the autoencoders whose codes are those of their `bottleneck`."""

    bottleneck: Any

    @property
    def coder(self) -> Any:
        """The bottleneck, which makes the codes."""
        return self.bottleneck

    @property
    def levels(self) -> tuple[int, ...]:
        """Size of the alphabet of each slot of its codes; empty where the bottleneck makes none."""
        return self.bottleneck.levels

    @property
    def bits_per_site(self) -> float:
        """Nominal bits of one site's code."""
        return self.bottleneck.bits_per_site

    @property
    def pixels_per_site(self) -> int:
        """Image pixels a site of the code, along each side."""
        return self.downsampling_factor * self.bottleneck.patch_size

    def bits(self, code: Code) -> float:
        """Nominal bits of a code of all its images; see [`Coder.bits`]."""
        return self.bottleneck.bits(code)

    def pack(self, code: Code) -> bytes:
        """A code as bytes of its nominal bits; see [`Bottleneck.pack`]."""
        return self.bottleneck.pack(code)

    def unpack(self, data: bytes, max_sites: int | None = None) -> Code:
        """The code of packed bytes; see [`Bottleneck.unpack`]."""
        return self.bottleneck.unpack(data, max_sites)

    def pictures(self, method: str = "pca") -> dict[str, Any]:
        """Those of the bottleneck; see [`Coder.pictures`]."""
        return self.bottleneck.pictures(method)
