"""The light convolutional encoder and decoder of LASERS (2024), section 5, after VQ-VAE (van den Oord et al., 2017).

Encoder: a 4×4 convolution of stride 2 for each halving, a 3×3 convolution, then residual blocks (ReLU, 3×3, ReLU, 1×1).
The decoder mirrors it with transposed convolutions. There is no normalisation and no attention, so that an output pixel
depends on a bounded neighbourhood of the input and tiled processing can be exact.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F


__all__ = ["LightDecoder", "LightEncoder"]


class ResidualBlock(nn.Module):
    """
    x + conv₁ₓ₁(ReLU(conv₃ₓ₃(ReLU(x)))).

    Args:
        channels (`int`): Channels in and out.
        hidden_channels (`int`): Channels between the convolutions.
    """

    def __init__(self, channels: int, hidden_channels: int):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, hidden_channels, 3, padding=1)
        self.conv2 = nn.Conv2d(hidden_channels, channels, 1)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return hidden + self.conv2(F.relu(self.conv1(F.relu(hidden))))


class Checkpointed(nn.Module):
    """Runs its blocks one after the other, recomputing each in the backward pass where gradient checkpointing is on."""

    gradient_checkpointing = False

    def _run(self, block: nn.Module, hidden: torch.Tensor) -> torch.Tensor:
        if torch.is_grad_enabled() and self.gradient_checkpointing:
            return self._gradient_checkpointing_func(block, hidden)
        return block(hidden)


class LightEncoder(Checkpointed):
    """
    Halves an image once for each of `block_out_channels` but the last, which is the width of the blocks at the final
    resolution.

    Args:
        in_channels (`int`): Channels of the image.
        out_channels (`int`): Channels of the latents.
        block_out_channels (`tuple[int, ...]`): Two or more widths: one a halving, and one for the final resolution.
        layers_per_block (`int`): Residual blocks.
        residual_channels (`int`): Channels inside a residual block.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        block_out_channels: tuple[int, ...],
        layers_per_block: int,
        residual_channels: int,
    ):
        super().__init__()
        widths = [in_channels, *block_out_channels[:-1]]
        self.down = nn.ModuleList([nn.Conv2d(a, b, 4, stride=2, padding=1) for a, b in zip(widths[:-1], widths[1:])])
        self.conv_mid = nn.Conv2d(widths[-1], block_out_channels[-1], 3, padding=1)
        self.residual = nn.ModuleList(
            [ResidualBlock(block_out_channels[-1], residual_channels) for _ in range(layers_per_block)]
        )
        self.conv_out = nn.Conv2d(block_out_channels[-1], out_channels, 1)

    def forward(self, sample: torch.Tensor) -> torch.Tensor:
        """Images `(B, in_channels, H, W)` to latents `(B, out_channels, H / 2ⁿ, W / 2ⁿ)`."""
        for layer in self.down:
            sample = F.relu(self._run(layer, sample))
        sample = self.conv_mid(sample)
        for block in self.residual:
            sample = self._run(block, sample)
        return self.conv_out(F.relu(sample))


class LightDecoder(Checkpointed):
    """
    The mirror of [`LightEncoder`].

    Args:
        in_channels (`int`): Channels of the latents.
        out_channels (`int`): Channels of the image.
        block_out_channels (`tuple[int, ...]`): Widths as in the encoder, from fine to coarse.
        layers_per_block (`int`): Residual blocks.
        residual_channels (`int`): Channels inside a residual block.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        block_out_channels: tuple[int, ...],
        layers_per_block: int,
        residual_channels: int,
    ):
        super().__init__()
        widths = [block_out_channels[-1], *reversed(block_out_channels[:-1])]
        self.conv_in = nn.Conv2d(in_channels, widths[0], 3, padding=1)
        self.residual = nn.ModuleList([ResidualBlock(widths[0], residual_channels) for _ in range(layers_per_block)])
        widths = [*widths[:1], *widths[2:], out_channels]
        self.up = nn.ModuleList(
            [nn.ConvTranspose2d(a, b, 4, stride=2, padding=1) for a, b in zip(widths[:-1], widths[1:])]
        )

    def forward(self, latents: torch.Tensor) -> torch.Tensor:
        """Latents `(B, in_channels, h, w)` to images `(B, out_channels, 2ⁿ h, 2ⁿ w)`."""
        sample = self.conv_in(latents)
        for block in self.residual:
            sample = self._run(block, sample)
        for layer in self.up:
            sample = self._run(layer, F.relu(sample))
        return sample
