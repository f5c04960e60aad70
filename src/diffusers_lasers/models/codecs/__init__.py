"""Codecs: images to indices by codebooks that are fitted, not trained."""

from .model_based_vq import ModelBasedVQCodec, ModelBasedVQCodecOutput


__all__ = ["ModelBasedVQCodec", "ModelBasedVQCodecOutput"]
