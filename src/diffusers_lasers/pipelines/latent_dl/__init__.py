"""Stable Diffusion with a bottleneck between denoiser and decoder."""

from .pipeline_latent_dl import LatentDLPipeline
from .pipeline_latent_dl_img2img import LatentDLImg2ImgPipeline, LatentDLXLImg2ImgPipeline
from .pipeline_latent_dl_xl import LatentDLXLPipeline
from .pipeline_output import LatentDLPipelineOutput


__all__ = [
    "LatentDLImg2ImgPipeline",
    "LatentDLPipeline",
    "LatentDLPipelineOutput",
    "LatentDLXLImg2ImgPipeline",
    "LatentDLXLPipeline",
]
