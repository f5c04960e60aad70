"""Unconditional generation by diffusion on codebook indices."""

from .pipeline_model_based_latent_diffusion import ModelBasedLatentDiffusionPipeline
from .pipeline_output import ModelBasedLatentDiffusionOutput


__all__ = ["ModelBasedLatentDiffusionOutput", "ModelBasedLatentDiffusionPipeline"]
