"""Autoencoders."""

from .autoencoder_dl import AutoencoderDL, AutoencoderDLEncoderOutput, AutoencoderDLOutput


__all__ = ["AutoencoderDL", "AutoencoderDLEncoderOutput", "AutoencoderDLOutput"]
