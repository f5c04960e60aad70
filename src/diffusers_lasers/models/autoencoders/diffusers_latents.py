r"""Latents of diffusers' autoencoders, on the scale that their denoisers see.

Autoencoders of diffusers differ in how they return latents and in how pipelines scale them. Where the pipeline scales,
from the autoencoder's config or buffers, a denoiser sees

    (z − m) / s           with `latents_mean` m and `latents_std` s, times `scaling_factor`,
    (z − b) · a           with `shift_factor` b (or 0) and `scaling_factor` a (or 1) otherwise,

and the denoiser of Flux.2 patches of 2 × 2 latents, each feature with the mean and deviation of a batch norm. A
bottleneck that stands between denoiser and decoder codes those. An autoencoder with a bottleneck of its own (`VQModel`,
[`AutoencoderDL`]) is read before it and, where another one takes its place, decoded without it. `AutoencoderRAE` scales
by itself. Tested with `AutoencoderKL`, `AutoencoderTiny`, `AutoencoderDC`, `VQModel`, [`AutoencoderDL`],
`AutoencoderKLFlux2`, `AutoencoderKLQwenImage`, `AutoencoderKLWan` and `AutoencoderKLLTXVideo`; Stable Diffusion's own
pipeline ignores `shift_factor`, which its checkpoints do not have.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from diffusers import ModelMixin
from torch.nn import functional as F


__all__ = ["decode_latents", "encode_latents", "for_bottleneck", "from_denoiser", "to_denoiser"]


def _is_scaled(autoencoder: ModelMixin) -> bool:
    """Whether `encode` gives latents on the denoiser's scale already."""
    return hasattr(autoencoder, "_normalize_latents")


def _has_patches(autoencoder: ModelMixin) -> bool:
    """Whether the denoiser sees patches of latents, each feature with the statistics of a running batch norm."""
    return isinstance(getattr(autoencoder, "bn", None), torch.nn.BatchNorm2d)


def _scale(
    autoencoder: ModelMixin, latents: torch.Tensor
) -> tuple[torch.Tensor | float, torch.Tensor | float, torch.Tensor | float]:
    """Offset, deviation and factor of the denoiser's scale, (z − offset) · factor / deviation."""
    config = autoencoder.config
    factor = config.get("scaling_factor")
    factor = 1.0 if factor is None else factor
    statistics = [config.get(name) for name in ("latents_mean", "latents_std")]
    if None in statistics:  # some have them as buffers
        buffers = getattr(autoencoder, "_buffers", {})
        statistics = [buffers.get(name) for name in ("latents_mean", "latents_std")]
    if None not in statistics:
        shape = (1, -1, *[1] * (latents.ndim - 2))
        mean, deviation = (torch.as_tensor(part).to(latents).view(shape) for part in statistics)
        return mean, deviation, factor
    return config.get("shift_factor") or 0.0, 1.0, factor


def to_denoiser(autoencoder: ModelMixin, latents: torch.Tensor) -> torch.Tensor:
    """
    Latents on the scale that denoisers see, of those that the autoencoder's `encode` gives.

    Args:
        autoencoder (`ModelMixin`): The autoencoder.
        latents (`torch.Tensor` of shape `(B, L, h, w)` or `(B, L, t, h, w)`): Its latents.

    Returns:
        `torch.Tensor`: Latents of the same shape, or of `(B, 4 L, h/2, w/2)` where denoisers see patches of 2 × 2, as
        those of Flux.2 do.
    """
    if _is_scaled(autoencoder):
        return latents
    if _has_patches(autoencoder):
        mean, deviation = _patch_statistics(autoencoder, latents)
        return (F.pixel_unshuffle(latents, 2) - mean) / deviation
    offset, deviation, factor = _scale(autoencoder, latents)
    return (latents - offset) * factor / deviation


def from_denoiser(autoencoder: ModelMixin, latents: torch.Tensor) -> torch.Tensor:
    """
    Latents as the autoencoder's `decode` takes them; the inverse of [`to_denoiser`].

    Args:
        autoencoder (`ModelMixin`): The autoencoder.
        latents (`torch.Tensor`): Latents on the denoiser's scale.

    Returns:
        `torch.Tensor` of shape `(B, L, h, w)` or `(B, L, t, h, w)`: Latents.
    """
    if _is_scaled(autoencoder):
        return latents
    if _has_patches(autoencoder):
        mean, deviation = _patch_statistics(autoencoder, latents)
        return F.pixel_shuffle(latents * deviation + mean, 2)
    offset, deviation, factor = _scale(autoencoder, latents)
    return latents * deviation / factor + offset


def latent_channels(autoencoder: ModelMixin) -> tuple[int, ...] | None:
    """
    Channels that a bottleneck may have.

    Args:
        autoencoder (`ModelMixin`): The autoencoder.

    Returns:
        `tuple[int, ...]` or `None`: L, and 4 L where denoisers see patches of 2 × 2; `None` where the configuration
        does not tell.
    """
    names = ("latent_channels", "z_dim")
    channels = next((autoencoder.config[name] for name in names if autoencoder.config.get(name) is not None), None)
    if channels is None:
        return None
    return (channels, 4 * channels) if _has_patches(autoencoder) else (channels,)


def is_of_video(autoencoder: ModelMixin) -> bool:
    """Whether its images have a dimension of time: `(B, 3, T, H, W)`."""
    return any(isinstance(module, torch.nn.Conv3d) for module in autoencoder.modules())


def for_bottleneck(autoencoder: ModelMixin, latents: torch.Tensor, channels: int) -> torch.Tensor:
    """
    Latents on the denoiser's scale as a bottleneck codes them.

    Args:
        autoencoder (`ModelMixin`): The autoencoder.
        latents (`torch.Tensor` of shape `(B, L, h, w)` or `(B, L, t, h, w)`): Latents.
        channels (`int`): Channels of the bottleneck.

    Returns:
        `torch.Tensor` of shape `(B, L, h, w)`: The same; of video its frames `(B · t, L, h, w)`; of patches of 2 × 2,
        where L is four times `channels`, their latents `(B, L/4, 2 h, 2 w)`.
    """
    if latents.ndim == 5:
        return latents.transpose(1, 2).flatten(0, 1)
    split = _has_patches(autoencoder) and latents.shape[1] == 4 * channels
    return F.pixel_shuffle(latents, 2) if split else latents


def _patch_statistics(autoencoder: ModelMixin, latents: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    norm = autoencoder.bn
    deviation = (norm.running_var + autoencoder.config.get("batch_norm_eps", norm.eps)).sqrt()
    return tuple(part.to(latents).view(1, -1, 1, 1) for part in (norm.running_mean, deviation))


def encoder_latents(output: Any) -> torch.Tensor:
    """
    The latents in what an autoencoder's `encode` returned; of a distribution its mode.

    Args:
        output (`torch.Tensor`, `tuple` or an output class): What it returned.

    Returns:
        `torch.Tensor`: Latents.

    Raises:
        ValueError: If there are none.
    """
    if isinstance(output, torch.Tensor):
        return output
    if getattr(output, "latent_dist", None) is not None:
        return output.latent_dist.mode()
    for name in ("latents", "latent"):
        if getattr(output, name, None) is not None:
            return getattr(output, name)
    raise ValueError(
        f"`autoencoder` must give latents or a distribution of them, its `encode` gave {type(output).__name__}."
    )


def encode_latents(autoencoder: ModelMixin, pixel_values: torch.Tensor) -> torch.Tensor:
    """
    Latents of images, on the denoiser's scale. Of a distribution they are its mode.

    Args:
        autoencoder (`ModelMixin`): An autoencoder of images: `AutoencoderKL`, `AutoencoderTiny`, `VQModel`,
            `AutoencoderDC`, [`AutoencoderDL`], …
        pixel_values (`torch.Tensor` of shape `(B, 3, H, W)`): Images in [−1, 1]; or `(B, 3, T, H, W)` for autoencoders
            of video, to which an image is a video of one frame.

    Returns:
        `torch.Tensor` of shape `(B, L, h, w)` or `(B, L, t, h, w)`: Latents.

    Raises:
        ValueError: If the autoencoder does not give latents of such a shape.
    """
    single = pixel_values.ndim == 4 and is_of_video(autoencoder)
    latents = encoder_latents(autoencoder.encode(pixel_values[:, :, None] if single else pixel_values))
    if latents.ndim not in (4, 5):
        raise ValueError(
            f"`autoencoder` must give latents of shape (B, L, h, w) or (B, L, t, h, w), got {tuple(latents.shape)}."
        )
    return to_denoiser(autoencoder, latents[:, :, 0] if single else latents)


def spatial_factor(autoencoder: ModelMixin) -> int:
    """
    Image pixels a latent position, along each side, as pipelines compute it.

    Args:
        autoencoder (`ModelMixin`): The autoencoder.

    Returns:
        `int`: Pixels.

    Raises:
        ValueError: If neither an attribute nor the configuration tells.
    """
    config = autoencoder.config
    for name in ("downsampling_factor", "spatial_compression_ratio"):
        if isinstance(getattr(autoencoder, name, None), int):
            return getattr(autoencoder, name)
    if config.get("scale_factor_spatial") is not None:
        return config["scale_factor_spatial"]
    if config.get("temperal_downsample") is not None:  # as diffusers spells it
        return 2 ** len(config["temperal_downsample"])
    for name in ("block_out_channels", "encoder_block_out_channels"):
        if config.get(name) is not None:
            return 2 ** (len(config[name]) - 1)
    raise ValueError(
        f"`autoencoder` must tell its factor between images and latents, got {type(autoencoder).__name__}."
    )


def without_own_bottleneck(autoencoder: ModelMixin) -> dict[str, bool]:
    """The argument of `decode` by which an autoencoder passes over its own bottleneck; none where it has none."""
    known = inspect.signature(autoencoder.decode).parameters
    own = "force_not_quantize" in known and not autoencoder.config.get("lookup_from_codebook", False)
    return {"force_not_quantize": True} if own else {}


def decode_latents(
    autoencoder: ModelMixin,
    latents: torch.Tensor,
    generator: torch.Generator | None = None,
    force_not_quantize: bool = True,
) -> torch.Tensor:
    """
    Images of latents; the inverse of the scaling of [`encode_latents`], then the decoder.

    Args:
        autoencoder (`ModelMixin`): The autoencoder.
        latents (`torch.Tensor` of shape `(B, L, h, w)` or `(B, L, t, h, w)`): Latents on the denoiser's scale.
        generator (`torch.Generator`, *optional*): For decoders that draw.
        force_not_quantize (`bool`, defaults to `True`): Whether an autoencoder's own bottleneck is passed over.

    Returns:
        `torch.Tensor` of shape `(B, 3, H, W)` or `(B, 3, T, H, W)`: Images, about [−1, 1].
    """
    arguments = without_own_bottleneck(autoencoder) if force_not_quantize else {}
    if generator is not None and "generator" in inspect.signature(autoencoder.decode).parameters:
        arguments["generator"] = generator
    latents = from_denoiser(autoencoder, latents)
    if latents.ndim == 4 and is_of_video(autoencoder):
        return autoencoder.decode(latents[:, :, None], return_dict=False, **arguments)[0][:, :, 0]
    return autoencoder.decode(latents, return_dict=False, **arguments)[0]
