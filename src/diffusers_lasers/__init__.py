"""Structured latent codes for diffusers: sparse dictionary codes and the baselines beside them, each with its bits."""

__version__ = "0.1.0.dev0"

from typing import TYPE_CHECKING

from diffusers.utils.import_utils import _LazyModule

from .utils.registration import register_in_diffusers


# Submodule -> public names in it. A submodule is imported when one of its names is asked for, and not before.
_import_structure = {
    "coding": ["IndexCode", "SparseCode"],
    "commands": [],
    "functional": [],
    "learning": ["OnlineDictionaryLearner"],
    "metrics": [],
    "models": [],
    "models.autoencoders.autoencoder_dl": ["AutoencoderDL", "AutoencoderDLEncoderOutput", "AutoencoderDLOutput"],
    "models.autoencoders.coded_autoencoder": ["CodedAutoencoder"],
    "models.bottlenecks": [
        "Bottleneck",
        "BottleneckOutput",
        "DictionaryBottleneck",
        "EntropyScalarBottleneck",
        "ExternalQuantizerBottleneck",
        "FSQBottleneck",
        "IdentityBottleneck",
        "IndexBottleneck",
        "ResidualVQBottleneck",
        "ScalarQuantizerBottleneck",
        "VectorQuantizerBottleneck",
    ],
    "models.categorical_unet": ["CategoricalUNet2DModel", "CategoricalUNet2DOutput"],
    "models.codecs.model_based_vq": ["ModelBasedVQCodec", "ModelBasedVQCodecOutput"],
    "models.latent_refiner": ["LatentRefiner"],
    "models.patch_discriminator": ["PatchDiscriminator", "PatchDiscriminatorOutput"],
    "models.perceptual": ["PerceptualSimilarity", "PerceptualSimilarityOutput"],
    "models.priors": ["FactorizedPrior", "PriorOutput"],
    "pipelines.latent_dl": [
        "LatentDLImg2ImgPipeline",
        "LatentDLPipeline",
        "LatentDLPipelineOutput",
        "LatentDLXLImg2ImgPipeline",
        "LatentDLXLPipeline",
    ],
    "pipelines.modular_blocks": ["CodeRoundTrip", "DecodeFromCode", "EncodeToCode"],
    "pipelines.model_based_latent_diffusion": ["ModelBasedLatentDiffusionPipeline", "ModelBasedLatentDiffusionOutput"],
    "pipelines.restoration": ["DLRestorationPipeline", "DLRestorationPipelineOutput"],
    "schedulers": [
        "AbsorbingD3PMScheduler",
        "AbsorbingD3PMSchedulerOutput",
        "CategoricalDDPMScheduler",
        "CategoricalDDPMSchedulerOutput",
        "UniformD3PMScheduler",
    ],
    "training": [],
    "utils": [],
    "utils.bases": ["DiffusionPipeline", "ModelMixin", "SchedulerMixin"],
    "visualization": [],
}

if TYPE_CHECKING:
    from . import coding, commands, functional, learning, metrics, models, training, utils, visualization
    from .coding import IndexCode, SparseCode
    from .learning import OnlineDictionaryLearner
    from .models.autoencoders.autoencoder_dl import AutoencoderDL, AutoencoderDLEncoderOutput, AutoencoderDLOutput
    from .models.autoencoders.coded_autoencoder import CodedAutoencoder
    from .models.bottlenecks import (
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
    from .models.categorical_unet import CategoricalUNet2DModel, CategoricalUNet2DOutput
    from .models.codecs.model_based_vq import ModelBasedVQCodec, ModelBasedVQCodecOutput
    from .models.latent_refiner import LatentRefiner
    from .models.patch_discriminator import PatchDiscriminator, PatchDiscriminatorOutput
    from .models.perceptual import PerceptualSimilarity, PerceptualSimilarityOutput
    from .models.priors import FactorizedPrior, PriorOutput
    from .pipelines.latent_dl import (
        LatentDLImg2ImgPipeline,
        LatentDLPipeline,
        LatentDLPipelineOutput,
        LatentDLXLImg2ImgPipeline,
        LatentDLXLPipeline,
    )
    from .pipelines.model_based_latent_diffusion import (
        ModelBasedLatentDiffusionOutput,
        ModelBasedLatentDiffusionPipeline,
    )
    from .pipelines.modular_blocks import CodeRoundTrip, DecodeFromCode, EncodeToCode
    from .pipelines.restoration import DLRestorationPipeline, DLRestorationPipelineOutput
    from .schedulers import (
        AbsorbingD3PMScheduler,
        AbsorbingD3PMSchedulerOutput,
        CategoricalDDPMScheduler,
        CategoricalDDPMSchedulerOutput,
        UniformD3PMScheduler,
    )
    from .utils.bases import DiffusionPipeline, ModelMixin, SchedulerMixin
else:
    import sys

    sys.modules[__name__] = _LazyModule(
        __name__,
        globals()["__file__"],
        _import_structure,
        module_spec=__spec__,
        extra_objects={"__version__": __version__},
    )
    register_in_diffusers(
        __name__,
        [
            name
            for module, names in _import_structure.items()
            if module.split(".")[0] in ("models", "schedulers", "pipelines")
            for name in names
        ],
        {
            "TEXT2IMAGE": {"latent-dl": "LatentDLPipeline", "latent-dl-xl": "LatentDLXLPipeline"},
            "IMAGE2IMAGE": {"latent-dl": "LatentDLImg2ImgPipeline", "latent-dl-xl": "LatentDLXLImg2ImgPipeline"},
        },
    )
