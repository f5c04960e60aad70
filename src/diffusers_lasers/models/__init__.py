"""Models: bottlenecks, autoencoders, codecs and the perceptual network."""

from .autoencoders import AutoencoderDL, AutoencoderDLEncoderOutput, AutoencoderDLOutput
from .bottlenecks import (
    Bottleneck,
    BottleneckOutput,
    DictionaryBottleneck,
    FSQBottleneck,
    IdentityBottleneck,
    ResidualVQBottleneck,
    VectorQuantizerBottleneck,
)
from .codecs import ModelBasedVQCodec, ModelBasedVQCodecOutput


__all__ = [
    "AutoencoderDL",
    "AutoencoderDLEncoderOutput",
    "AutoencoderDLOutput",
    "Bottleneck",
    "BottleneckOutput",
    "DictionaryBottleneck",
    "FSQBottleneck",
    "IdentityBottleneck",
    "ModelBasedVQCodec",
    "ModelBasedVQCodecOutput",
    "ResidualVQBottleneck",
    "VectorQuantizerBottleneck",
]
