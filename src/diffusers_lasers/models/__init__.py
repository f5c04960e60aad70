"""Models: autoencoders, bottlenecks, codecs, priors, denoisers, refiner, discriminator and perceptual network."""

from .autoencoders import AutoencoderDL, AutoencoderDLEncoderOutput, AutoencoderDLOutput, CodedAutoencoder
from .bottlenecks import (
    Bottleneck,
    BottleneckOutput,
    DictionaryBottleneck,
    EntropyScalarBottleneck,
    ExternalQuantizerBottleneck,
    FSQBottleneck,
    IdentityBottleneck,
    IndexBottleneck,
    ResidualVQBottleneck,
    ScalarQuantizerBottleneck,
    VectorQuantizerBottleneck,
)
from .categorical_unet import CategoricalUNet2DModel, CategoricalUNet2DOutput
from .codecs import ModelBasedVQCodec, ModelBasedVQCodecOutput
from .latent_refiner import LatentRefiner
from .patch_discriminator import PatchDiscriminator, PatchDiscriminatorOutput
from .perceptual import PerceptualSimilarity, PerceptualSimilarityOutput
from .priors import FactorizedPrior, PriorOutput


__all__ = [
    "AutoencoderDL",
    "AutoencoderDLEncoderOutput",
    "AutoencoderDLOutput",
    "Bottleneck",
    "BottleneckOutput",
    "CategoricalUNet2DModel",
    "CategoricalUNet2DOutput",
    "CodedAutoencoder",
    "DictionaryBottleneck",
    "EntropyScalarBottleneck",
    "ExternalQuantizerBottleneck",
    "FSQBottleneck",
    "FactorizedPrior",
    "IdentityBottleneck",
    "IndexBottleneck",
    "LatentRefiner",
    "ModelBasedVQCodec",
    "ModelBasedVQCodecOutput",
    "PatchDiscriminator",
    "PatchDiscriminatorOutput",
    "PerceptualSimilarity",
    "PerceptualSimilarityOutput",
    "PriorOutput",
    "ResidualVQBottleneck",
    "ScalarQuantizerBottleneck",
    "VectorQuantizerBottleneck",
]
