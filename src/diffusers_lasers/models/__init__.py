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
from .categorical_unet import CategoricalUNet2DModel, CategoricalUNet2DOutput
from .codecs import ModelBasedVQCodec, ModelBasedVQCodecOutput
from .latent_refiner import LatentRefiner


__all__ = [
    "AutoencoderDL",
    "AutoencoderDLEncoderOutput",
    "AutoencoderDLOutput",
    "Bottleneck",
    "BottleneckOutput",
    "CategoricalUNet2DModel",
    "CategoricalUNet2DOutput",
    "DictionaryBottleneck",
    "FSQBottleneck",
    "IdentityBottleneck",
    "LatentRefiner",
    "ModelBasedVQCodec",
    "ModelBasedVQCodecOutput",
    "ResidualVQBottleneck",
    "VectorQuantizerBottleneck",
]
