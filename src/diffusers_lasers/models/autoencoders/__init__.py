"""Autoencoders."""

from .autoencoder_dl import AutoencoderDL, AutoencoderDLEncoderOutput, AutoencoderDLOutput
from .coded_autoencoder import CodedAutoencoder
from .diffusers_latents import decode_latents, encode_latents


__all__ = [
    "AutoencoderDL",
    "AutoencoderDLEncoderOutput",
    "AutoencoderDLOutput",
    "CodedAutoencoder",
    "decode_latents",
    "encode_latents",
]
