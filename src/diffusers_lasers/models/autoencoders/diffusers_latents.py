r"""Latents of diffusers' autoencoders, on the scale that their denoisers see.

Autoencoders of diffusers differ in how they return latents and in how pipelines scale them. Where the pipeline scales,
from the autoencoder's config, a denoiser sees

    (z − m) / s           with `latents_mean` m and `latents_std` s in the config, times `scaling_factor`,
    (z − b) · a           with `shift_factor` b (or 0) and `scaling_factor` a (or 1) otherwise.

A bottleneck that stands between denoiser and decoder codes those. An autoencoder with a bottleneck of its own
(`VQModel`, [`AutoencoderDL`]) is read before it and, where another one takes its place, decoded without it. Tested with
`AutoencoderKL`, `AutoencoderTiny`, `AutoencoderDC`, `VQModel` and [`AutoencoderDL`]; Stable Diffusion's own pipeline
ignores `shift_factor`, which its checkpoints do not have, and an autoencoder that scales by itself (`AutoencoderRAE`)
would be scaled twice.
"""

from __future__ import annotations

import inspect

import torch
from diffusers import ModelMixin


__all__ = ["decode_latents", "encode_latents"]


def _scale(autoencoder: ModelMixin, latents: torch.Tensor) -> tuple[torch.Tensor | float, torch.Tensor | float]:
    """Offset and factor of the denoiser's scale, (z − offset) · factor."""
    config = autoencoder.config
    factor = config.get("scaling_factor")
    factor = 1.0 if factor is None else factor
    mean, deviation = config.get("latents_mean"), config.get("latents_std")
    if mean is not None and deviation is not None:
        mean, deviation = (latents.new_tensor(part).view(1, -1, 1, 1) for part in (mean, deviation))
        return mean, factor / deviation
    return config.get("shift_factor") or 0.0, factor


def _first(output) -> torch.Tensor:
    """The latents of what `encode` returned."""
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
        pixel_values (`torch.Tensor` of shape `(B, 3, H, W)`): Images in [−1, 1].

    Returns:
        `torch.Tensor` of shape `(B, L, h, w)`: Latents.

    Raises:
        ValueError: If the autoencoder does not give latents of this shape.
    """
    latents = _first(autoencoder.encode(pixel_values))
    if latents.ndim != 4:
        raise ValueError(f"`autoencoder` must give latents of shape (B, L, h, w), got {tuple(latents.shape)}.")
    offset, factor = _scale(autoencoder, latents)
    return (latents - offset) * factor


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
        latents (`torch.Tensor` of shape `(B, L, h, w)`): Latents on the denoiser's scale.
        generator (`torch.Generator`, *optional*): For decoders that draw.
        force_not_quantize (`bool`, defaults to `True`): Whether an autoencoder's own bottleneck is passed over.

    Returns:
        `torch.Tensor` of shape `(B, 3, H, W)`: Images, about [−1, 1].
    """
    offset, factor = _scale(autoencoder, latents)
    known = inspect.signature(autoencoder.decode).parameters
    own = "force_not_quantize" in known and not autoencoder.config.get("lookup_from_codebook", False)
    arguments = {"force_not_quantize": force_not_quantize} if own else {}
    if "generator" in known and generator is not None:
        arguments["generator"] = generator
    return autoencoder.decode(latents / factor + offset, return_dict=False, **arguments)[0]
