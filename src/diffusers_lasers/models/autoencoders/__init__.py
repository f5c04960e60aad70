"""Autoencoders."""

from .autoencoder_dl import AutoencoderDL, AutoencoderDLEncoderOutput, AutoencoderDLOutput
from .diffusers_latents import decode_latents, encode_latents


__all__ = ["AutoencoderDL", "AutoencoderDLEncoderOutput", "AutoencoderDLOutput", "decode_latents", "encode_latents"]
