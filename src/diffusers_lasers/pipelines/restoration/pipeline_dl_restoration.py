r"""Restoration by an autoencoder that was trained from degraded to clean images (LASERS, 2024, sections 12.1 and 12.2).

    super-resolution: x̂ = decode(bottleneck(encode(bicubic(x_low))))
    inpainting:       x̂ = decode(bottleneck(encode((1 − m) ∘ x)))

Inpainting pastes the known pixels back, (1 − m) ∘ x + m ∘ x̂, unless told not to.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from diffusers import DiffusionPipeline
from diffusers.image_processor import PipelineImageInput, VaeImageProcessor
from diffusers.utils import BaseOutput
from PIL import Image

from ...coding import IndexCode, SparseCode
from ...functional.images.degradations import hide, upscale_bicubic
from ...models.autoencoders.autoencoder_dl import AutoencoderDL
from ...utils import config_checks as checks
from ...utils.hub import LasersHubMixin
from ...utils.image_inputs import preprocess_images, preprocess_masks


__all__ = ["DLRestorationPipeline", "DLRestorationPipelineOutput"]

TASKS = ("reconstruction", "super_resolution", "inpainting")


@dataclass
class DLRestorationPipelineOutput(BaseOutput):
    """
    Output of [`DLRestorationPipeline`].

    Args:
        images (`list[PIL.Image.Image]`, `numpy.ndarray` of shape `(B, H, W, 3)` or `torch.Tensor` of shape
            `(B, 3, H, W)`): Images, as `output_type` says.
        code ([`SparseCode`] or [`IndexCode`], *optional*): The code that they were decoded from.
    """

    images: list[Image.Image] | np.ndarray | torch.Tensor
    code: SparseCode | IndexCode | None = None


class DLRestorationPipeline(LasersHubMixin, DiffusionPipeline):
    r"""
    Creates a pipeline that restores images with an autoencoder trained by `examples/train_dlgan.py --task …`, which
    writes it to `pipeline/` of its folder.

    Args:
        vae ([`AutoencoderDL`]): The autoencoder.
        task (`str`, defaults to `"reconstruction"`): What it was trained for: `"reconstruction"`, `"super_resolution"`
            or `"inpainting"`.
        scale (`int`, defaults to 4): Factor of super-resolution.

    Raises:
        ValueError: If the task is unknown or the scale below 1.
    """

    model_cpu_offload_seq = "vae"
    _config_fields = {"task": checks.Word(*TASKS), "scale": checks.Integer(1, 64)}

    def __init__(self, vae: AutoencoderDL, task: str = "reconstruction", scale: int = 4):
        super().__init__()
        self.register_to_config(task=task, scale=scale)
        self.register_modules(vae=vae)
        self.image_processor = VaeImageProcessor(do_resize=False)

    @torch.no_grad()
    def __call__(
        self,
        image: PipelineImageInput,
        mask_image: PipelineImageInput | None = None,
        paste_known: bool = True,
        output_type: str = "pil",
        return_dict: bool = True,
    ) -> DLRestorationPipelineOutput | tuple:
        """
        Restores images.

        Args:
            image (`PIL.Image.Image`, `numpy.ndarray`, `torch.Tensor` or a list of them): Images of one size, as
                diffusers takes them: pictures of any mode; arrays `(B, H, W, 3)` and tensors `(B, 3, H, W)` of uint8
                or in [0, 1], or in [-1, 1] where a value is negative. For super-resolution the small ones.
            mask_image (like `image`, *optional*): For inpainting, and only for it: white (above one half) where pixels
                are to be filled in, of the images' size; one, or one an image.
            paste_known (`bool`, defaults to `True`): Whether inpainting returns the pixels outside the mask exactly as
                they were given.
            output_type (`str`, defaults to `"pil"`): `"pil"`, `"np"` or `"pt"`.
            return_dict (`bool`, defaults to `True`): Whether to return an output class instead of a tuple.

        Returns:
            [`DLRestorationPipelineOutput`] or `tuple`: Images and their code.

        Raises:
            ValueError: If an argument does not fit the task.
        """
        if output_type not in ("pil", "np", "pt"):
            raise ValueError(f"`output_type` must be 'pil', 'np' or 'pt', got {output_type!r}.")
        if (mask_image is not None) != (self.config.task == "inpainting"):
            need = "must be given" if mask_image is None else "must be None"
            raise ValueError(f"`mask_image` {need} for the task {self.config.task!r}.")
        pixel_values = preprocess_images(image, self.vae.config.in_channels).to(self._execution_device)
        mask = None
        given = pixel_values
        if self.config.task == "super_resolution":
            given = upscale_bicubic(pixel_values, self.config.scale)
        elif mask_image is not None:
            mask = preprocess_masks(mask_image).to(self._execution_device)
            sizes = (tuple(mask.shape[-2:]), tuple(pixel_values.shape[-2:]))
            if sizes[0] != sizes[1] or mask.shape[0] not in (1, pixel_values.shape[0]) or mask.shape[1] != 1:
                raise ValueError(
                    f"`mask_image` must be one grey mask, or one an image, of {sizes[1]} pixels, got shape "
                    f"{tuple(mask.shape)}."
                )
            given = hide(pixel_values, mask)
        output = self.vae(given.to(self.vae.dtype))
        images = output.sample.float().clamp(-1, 1)
        if mask is not None and paste_known:
            images = torch.where(mask > 0.5, images, pixel_values)
        images = self.image_processor.postprocess(images, output_type=output_type)
        self.maybe_free_model_hooks()
        if not return_dict:
            return images, output.code
        return DLRestorationPipelineOutput(images=images, code=output.code)
