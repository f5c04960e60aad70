"""Encoder and decoder of [`AutoencoderDL`] by its configuration: residual, light (LASERS) or diffusers'."""

from __future__ import annotations

from typing import Any

from diffusers.models.autoencoders.vae import Decoder, Encoder
from torch import nn

from ...utils import config_checks as checks
from .light import LightDecoder, LightEncoder
from .residual import STEM, ResidualDecoder, ResidualEncoder


def build_networks(config: Any) -> tuple[nn.Module, nn.Module]:
    """
    Encoder and decoder with random weights.

    Args:
        config (`FrozenDict`): The configuration of an [`AutoencoderDL`].

    Returns:
        `tuple[torch.nn.Module, torch.nn.Module]`: The encoder `(B, in_channels, H, W)` to `(B, latent_channels, h, w)`,
        and the decoder back to `out_channels`.

    Raises:
        ValueError: If the networks would be too large, or an argument does not fit the backbone.
    """
    channels, layers, latents = config.block_out_channels, config.layers_per_block, config.latent_channels
    ends = (max(config.in_channels, latents), max(config.out_channels, latents))
    deciding = ("in_channels", "out_channels", "latent_channels", "block_out_channels")
    factor = STEM * 2 ** (len(channels) - 1) if config.backbone == "residual" else 0
    checks.check_size(
        checks.unet_values(channels, layers, *ends),
        (config.in_channels + config.out_channels) * factor**2 * latents,
        2 * 10 * layers * channels[-1] * config.residual_channels,
        **{name: config[name] for name in (*deciding, "layers_per_block", "residual_channels")},
    )
    if config.backbone != "residual" and len(channels) < 2:
        raise ValueError(
            f"`block_out_channels` must have at least 2 widths for the backbone {config.backbone!r}, got {channels}."
        )
    shape = (channels, layers, config.residual_channels)
    if config.backbone == "residual":
        for fine, coarse in zip(channels[:-1], channels[1:]):
            if coarse % 4 or coarse not in (fine, 2 * fine, 4 * fine):
                raise ValueError(
                    "`block_out_channels` must be multiples of 4, each 1, 2 or 4 times the one before, got "
                    f"{tuple(channels)}."
                )
        return ResidualEncoder(config.in_channels, latents, *shape), ResidualDecoder(
            latents, config.out_channels, *shape
        )
    if config.backbone == "light":
        return LightEncoder(config.in_channels, latents, *shape), LightDecoder(latents, config.out_channels, *shape)
    checks.check_groups(config.norm_num_groups, channels)
    if layers < 1:
        raise ValueError("`layers_per_block` must be at least 1 for the backbone 'diffusers', got 0.")
    shared = {
        "block_out_channels": tuple(channels),
        "layers_per_block": layers,
        "act_fn": config.act_fn,
        "norm_num_groups": config.norm_num_groups,
        "mid_block_add_attention": config.mid_block_add_attention,
    }
    down, up = ("DownEncoderBlock2D",) * len(channels), ("UpDecoderBlock2D",) * len(channels)
    encoder = Encoder(config.in_channels, latents, down_block_types=down, double_z=False, **shared)
    return encoder, Decoder(latents, config.out_channels, up_block_types=up, **shared)
