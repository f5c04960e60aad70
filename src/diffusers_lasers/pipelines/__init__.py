"""Pipelines: what a user calls to make images. Each is imported when one of its names is asked for."""

from typing import TYPE_CHECKING

from diffusers.utils.import_utils import _LazyModule


_import_structure = {
    "latent_dl": [
        "LatentDLImg2ImgPipeline",
        "LatentDLPipeline",
        "LatentDLPipelineOutput",
        "LatentDLXLImg2ImgPipeline",
        "LatentDLXLPipeline",
    ],
    "model_based_latent_diffusion": ["ModelBasedLatentDiffusionOutput", "ModelBasedLatentDiffusionPipeline"],
    "modular_blocks": ["CodeRoundTrip", "DecodeFromCode", "EncodeToCode"],
    "restoration": ["DLRestorationPipeline", "DLRestorationPipelineOutput"],
}
__all__ = [
    "CodeRoundTrip",
    "DLRestorationPipeline",
    "DLRestorationPipelineOutput",
    "DecodeFromCode",
    "EncodeToCode",
    "LatentDLImg2ImgPipeline",
    "LatentDLPipeline",
    "LatentDLPipelineOutput",
    "LatentDLXLImg2ImgPipeline",
    "LatentDLXLPipeline",
    "ModelBasedLatentDiffusionOutput",
    "ModelBasedLatentDiffusionPipeline",
]

if TYPE_CHECKING:
    from .latent_dl import (
        LatentDLImg2ImgPipeline,
        LatentDLPipeline,
        LatentDLPipelineOutput,
        LatentDLXLImg2ImgPipeline,
        LatentDLXLPipeline,
    )
    from .model_based_latent_diffusion import ModelBasedLatentDiffusionOutput, ModelBasedLatentDiffusionPipeline
    from .modular_blocks import CodeRoundTrip, DecodeFromCode, EncodeToCode
    from .restoration import DLRestorationPipeline, DLRestorationPipelineOutput
else:
    import sys

    sys.modules[__name__] = _LazyModule(__name__, globals()["__file__"], _import_structure, module_spec=__spec__)
