"""What the pipeline returns."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from diffusers.utils import BaseOutput
from PIL import Image


__all__ = ["ModelBasedLatentDiffusionOutput"]


@dataclass
class ModelBasedLatentDiffusionOutput(BaseOutput):
    """
    Output of [`ModelBasedLatentDiffusionPipeline`].

    Args:
        images (`list[PIL.Image.Image]`, `numpy.ndarray` of shape `(B, H, W, 3)` or `torch.Tensor` of shape
            `(B, 3, H, W)`): Images, as `output_type` says; for `"latent"` the latents of the loop and for `"code"` the
            codes, `(B, c̄, h, w)`.
        codes (`torch.Tensor` of shape `(B, c̄, h, w)`): Indices, int64.
    """

    images: list[Image.Image] | np.ndarray | torch.Tensor
    codes: torch.Tensor | None = None
