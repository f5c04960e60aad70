r"""Encoder and decoder that add a learned residual to a linear transform, after DC-AE (Chen et al., 2025).

    z = W s(x) + E(x),    x̂ = s⁻¹(V z) + D(z)

s moves the f × f pixels of a latent position into channels. W and V are 1 × 1 convolutions. Set to principal components
of image patches they are a transform code by themselves ([`set_transform`]). The branches E and D end in layers that
start at zero, and learn what a linear map cannot do. Inside a branch each change of resolution has a shortcut without
weights: on the way down pixels move into channels, which are averaged in groups; on the way up channels are repeated
and move into pixels. There is no normalisation and no attention, so that an output pixel depends on a bounded
neighbourhood and tiled processing is exact.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from .light import Checkpointed


__all__ = ["STEM", "ResidualDecoder", "ResidualEncoder", "set_transform"]

STEM = 4  # pixels a side that the first layer moves into channels; finer blocks cost four times as much for no gain


def _zero(layer: nn.Conv2d) -> nn.Conv2d:
    """The layer with weights and bias 0: what it ends adds nothing before it is trained."""
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


class ResidualUnit(nn.Module):
    """
    x + conv₁ₓ₁(SiLU(conv₃ₓ₃(SiLU(x)))), the identity before it is trained.

    Args:
        channels (`int`): Channels in and out.
        hidden_channels (`int`): Channels between the convolutions.
    """

    def __init__(self, channels: int, hidden_channels: int):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, hidden_channels, 3, padding=1)
        self.conv2 = _zero(nn.Conv2d(hidden_channels, channels, 1))

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return hidden + self.conv2(F.silu(self.conv1(F.silu(hidden))))


class Halving(nn.Module):
    """
    Half the sides: a 3 × 3 convolution whose pixels move into channels, beside the shortcut.

    Args:
        in_channels (`int`): Channels in; four times them must be a multiple of `out_channels`.
        out_channels (`int`): Channels out, a multiple of 4.
    """

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels // 4, 3, padding=1)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        moved = F.pixel_unshuffle(self.conv(hidden), 2)
        return moved + F.pixel_unshuffle(hidden, 2).unflatten(1, (moved.shape[1], -1)).mean(dim=2)


class Doubling(nn.Module):
    """
    Twice the sides: a 3 × 3 convolution whose channels move into pixels, beside the shortcut.

    Args:
        in_channels (`int`): Channels in, of which four times `out_channels` must be a multiple.
        out_channels (`int`): Channels out.
    """

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.conv = nn.Conv2d(in_channels, 4 * out_channels, 3, padding=1)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        moved = self.conv(hidden)
        return F.pixel_shuffle(moved + hidden.repeat_interleave(moved.shape[1] // hidden.shape[1], dim=1), 2)


class ResidualEncoder(Checkpointed):
    """
    A quarter of the sides at once, then half of them for each width but the first.

    Args:
        in_channels (`int`): Channels of the image.
        out_channels (`int`): Channels L of the latents.
        block_out_channels (`tuple[int, ...]`): One width a resolution, from a quarter of the sides on.
        layers_per_block (`int`): Residual units of each resolution.
        residual_channels (`int`): Channels inside a residual unit.
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
        self.factor = STEM * 2 ** (len(block_out_channels) - 1)
        self.shortcut = nn.Conv2d(in_channels * self.factor**2, out_channels, 1)
        self.conv_in = nn.Conv2d(in_channels * STEM**2, block_out_channels[0], 3, padding=1)
        self.blocks = nn.ModuleList()
        for level, width in enumerate(block_out_channels):
            if level:
                self.blocks.append(Halving(block_out_channels[level - 1], width))
            self.blocks.extend(ResidualUnit(width, residual_channels) for _ in range(layers_per_block))
        self.conv_out = _zero(nn.Conv2d(block_out_channels[-1], out_channels, 1))

    def forward(self, sample: torch.Tensor) -> torch.Tensor:
        """Images `(B, in_channels, f·h, f·w)` to latents `(B, out_channels, h, w)`."""
        hidden = self._run(self.conv_in, F.pixel_unshuffle(sample, STEM))
        for block in self.blocks:
            hidden = self._run(block, hidden)
        return self.shortcut(F.pixel_unshuffle(sample, self.factor)) + self.conv_out(F.silu(hidden))


class ResidualDecoder(Checkpointed):
    """
    The mirror of [`ResidualEncoder`].

    Args:
        in_channels (`int`): Channels L of the latents.
        out_channels (`int`): Channels of the image.
        block_out_channels (`tuple[int, ...]`): Widths as in the encoder, from fine to coarse.
        layers_per_block (`int`): Residual units of each resolution.
        residual_channels (`int`): Channels inside a residual unit.
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
        self.factor = STEM * 2 ** (len(block_out_channels) - 1)
        self.shortcut = nn.Conv2d(in_channels, out_channels * self.factor**2, 1)
        self.conv_in = nn.Conv2d(in_channels, block_out_channels[-1], 3, padding=1)
        self.blocks = nn.ModuleList()
        for level, width in reversed(list(enumerate(block_out_channels))):
            self.blocks.extend(ResidualUnit(width, residual_channels) for _ in range(layers_per_block))
            if level:
                self.blocks.append(Doubling(width, block_out_channels[level - 1]))
        self.conv_out = _zero(nn.Conv2d(block_out_channels[0], out_channels * STEM**2, 3, padding=1))

    def forward(self, latents: torch.Tensor) -> torch.Tensor:
        """Latents `(B, in_channels, h, w)` to images `(B, out_channels, f·h, f·w)`."""
        hidden = self._run(self.conv_in, latents)
        for block in self.blocks:
            hidden = self._run(block, hidden)
        shortcut = F.pixel_shuffle(self.shortcut(latents), self.factor)
        return shortcut + F.pixel_shuffle(self.conv_out(F.silu(hidden)), STEM)


@torch.no_grad()
def set_transform(
    encoder: ResidualEncoder,
    decoder: ResidualDecoder,
    mean: torch.Tensor,
    variances: torch.Tensor,
    axes: torch.Tensor,
    evenness: float,
) -> None:
    r"""
    Sets both shortcuts to principal components, W = S⁻¹Uᵀ with bias −S⁻¹Uᵀμ, and V = U S with bias μ.

    S = diag(c·λ^(e/2)) lies between the components' own scale (e = 0) and unit variance of each (e = 1); c gives the
    latents variance 1 on average. Without a bottleneck the decoded image is the projection on the components, for any
    S.

    Args:
        encoder ([`ResidualEncoder`]): Of images with C channels.
        decoder ([`ResidualDecoder`]): With as many channels out.
        mean (`torch.Tensor` of shape `(f²·C,)`): Mean μ of patches, in the order of `pixel_unshuffle`.
        variances (`torch.Tensor` of shape `(f²·C,)`): Eigenvalues λ of their covariance, descending.
        axes (`torch.Tensor` of shape `(f²·C, f²·C)`): Eigenvectors U as columns.
        evenness (`float`): e, 0 to 1; see [`Bottleneck.latent_evenness`].
    """
    latents = encoder.shortcut.out_channels
    kept = min(latents, len(variances))
    variances, axes = variances[:kept].clamp_min(1e-8), axes[:, :kept]
    scale = variances ** (evenness / 2)
    scale = scale * (variances / scale.square()).mean().sqrt()
    analysis, synthesis = (axes / scale).t(), axes * scale
    for layer in (encoder.shortcut, decoder.shortcut):
        _zero(layer)
    encoder.shortcut.weight[:kept] = analysis[:, :, None, None].to(encoder.shortcut.weight)
    encoder.shortcut.bias[:kept] = -(analysis @ mean).to(encoder.shortcut.bias)
    decoder.shortcut.weight[:, :kept] = synthesis[:, :, None, None].to(decoder.shortcut.weight)
    decoder.shortcut.bias.copy_(mean)
