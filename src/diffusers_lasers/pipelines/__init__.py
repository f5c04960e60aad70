"""Pipelines: what a user calls to make images."""

from .latent_dl import LatentDLPipeline, LatentDLPipelineOutput, LatentDLXLPipeline
from .model_based_latent_diffusion import ModelBasedLatentDiffusionOutput, ModelBasedLatentDiffusionPipeline
from .restoration import DLRestorationPipeline, DLRestorationPipelineOutput


__all__ = [
    "DLRestorationPipeline",
    "DLRestorationPipelineOutput",
    "LatentDLPipeline",
    "LatentDLPipelineOutput",
    "LatentDLXLPipeline",
    "ModelBasedLatentDiffusionOutput",
    "ModelBasedLatentDiffusionPipeline",
]
