"""Pipelines: what a user calls to make images."""

from .model_based_latent_diffusion import ModelBasedLatentDiffusionOutput, ModelBasedLatentDiffusionPipeline


__all__ = ["ModelBasedLatentDiffusionOutput", "ModelBasedLatentDiffusionPipeline"]
