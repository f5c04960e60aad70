"""What the pipelines return."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from diffusers.utils import BaseOutput
from PIL import Image

from ...coding import IndexCode, SparseCode


__all__ = ["LatentDLPipelineOutput"]


@dataclass
class LatentDLPipelineOutput(BaseOutput):
    """
    Output of [`LatentDLPipeline`] and [`LatentDLXLPipeline`].

    Args:
        images (`list[PIL.Image.Image]`, `numpy.ndarray` of shape `(B, H, W, 3)`, `torch.Tensor` of shape
            `(B, 3, H, W)`, [`SparseCode`] or [`IndexCode`]): What `output_type` asks for; for `"latent"` the denoiser's
            latents.
        nsfw_content_detected (`list[bool]`, *optional*): What the safety checker found, where there is one.
        code ([`SparseCode`] or [`IndexCode`], *optional*): The code that the images were decoded from; `None` where the
            safety checker blocked one of them.
    """

    images: list[Image.Image] | np.ndarray | torch.Tensor | SparseCode | IndexCode
    nsfw_content_detected: list[bool] | None = None
    code: SparseCode | IndexCode | None = None
