"""Indices `(B, c̄, h, w)` of the models that have some: what diffusion on codebook indices needs of a codec, or of an autoencoder with a vector quantiser."""

from __future__ import annotations

import torch

from ...coding.codes import IndexCode
from ...utils.config_checks import described
from ..autoencoders.autoencoder_dl import AutoencoderDL
from .model_based_vq import ModelBasedVQCodec


__all__ = ["decode_indices", "encode_indices", "index_layout"]


def _check_bottleneck(model: AutoencoderDL) -> None:
    if not isinstance(model, AutoencoderDL):
        raise ValueError(f"`model` must be a ModelBasedVQCodec or an AutoencoderDL, got {type(model).__name__}.")
    if model.config.bottleneck_type not in ("vq", "residual_vq"):
        raise ValueError(
            f"The autoencoder's `bottleneck_type` must be 'vq' or 'residual_vq' to have indices, got {model.config.bottleneck_type!r}."
        )


def index_layout(model: ModelBasedVQCodec | AutoencoderDL) -> tuple[int, int, int]:
    """
    How a model's indices are laid out.

    Args:
        model ([`ModelBasedVQCodec`] or [`AutoencoderDL`]): A codec, or an autoencoder with VQ or residual VQ.

    Returns:
        `tuple[int, int, int]`: Slots c̄, codewords |C| of each, and pixels of a site's side.

    Raises:
        ValueError: If the slots have codebooks of different sizes (the paper assumes one), or there are no indices.
    """
    if isinstance(model, ModelBasedVQCodec):
        if len(set(model.slot_bits)) > 1:
            raise ValueError(f"All slots must have as many codewords, got {model.slot_bits} bits.")
        return len(model.slot_bits), model.num_codewords, model.config.patch_size
    _check_bottleneck(model)
    bottleneck = model.bottleneck
    return bottleneck.depth, bottleneck.config.num_codewords, model.downsampling_factor * bottleneck.patch_size


@torch.no_grad()
def encode_indices(model: ModelBasedVQCodec | AutoencoderDL, images: torch.Tensor) -> torch.Tensor:
    """
    Indices of images.

    Args:
        model ([`ModelBasedVQCodec`] or [`AutoencoderDL`]): A codec, or an autoencoder with VQ or residual VQ.
        images (`torch.Tensor` of shape `(B, 3, H, W)`): RGB in [-1, 1].

    Returns:
        `torch.Tensor` of shape `(B, c̄, h, w)`: Indices, int64.
    """
    if isinstance(model, ModelBasedVQCodec):
        return model.encode(images).codes
    _check_bottleneck(model)
    return model.encode_to_code(images).indices.permute(0, 3, 1, 2).contiguous()


def decode_indices(model: ModelBasedVQCodec | AutoencoderDL, codes: torch.Tensor) -> torch.Tensor:
    """
    Images of indices.

    Args:
        model ([`ModelBasedVQCodec`] or [`AutoencoderDL`]): A codec, or an autoencoder with VQ or residual VQ.
        codes (`torch.Tensor` of shape `(B, c̄, h, w)`): Indices, int64.

    Returns:
        `torch.Tensor` of shape `(B, 3, H, W)`: RGB in about [-1, 1], not clamped.

    Raises:
        ValueError: If the model has no indices, or codes are none of it.
    """
    if isinstance(model, ModelBasedVQCodec):
        return model.decode(codes).sample
    _check_bottleneck(model)
    slots, codewords, _ = index_layout(model)
    if not torch.is_tensor(codes) or codes.ndim != 4 or codes.shape[1] != slots or codes.dtype != torch.int64:
        raise ValueError(f"`codes` must be int64 of shape (batch, {slots}, h, w), got {described(codes)}.")
    side = model.bottleneck.patch_size
    latent_size = (side * codes.shape[-2], side * codes.shape[-1])
    code = IndexCode(codes.permute(0, 2, 3, 1).contiguous(), (codewords,) * slots, latent_size)
    return model.decode_from_code(code).sample
