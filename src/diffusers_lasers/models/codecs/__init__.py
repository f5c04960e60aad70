"""Codecs: images to indices by codebooks that are fitted, not trained."""

from .indices import decode_indices, encode_indices, index_layout
from .model_based_vq import ModelBasedVQCodec, ModelBasedVQCodecOutput


__all__ = ["ModelBasedVQCodec", "ModelBasedVQCodecOutput", "decode_indices", "encode_indices", "index_layout"]
