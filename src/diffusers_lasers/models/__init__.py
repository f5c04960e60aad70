"""Models: bottlenecks, autoencoders and the perceptual network."""

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


__all__ = [
    "AutoencoderDL",
    "AutoencoderDLEncoderOutput",
    "AutoencoderDLOutput",
    "Bottleneck",
    "BottleneckOutput",
    "DictionaryBottleneck",
    "FSQBottleneck",
    "IdentityBottleneck",
    "ResidualVQBottleneck",
    "VectorQuantizerBottleneck",
]
