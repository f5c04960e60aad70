r"""What a restoring autoencoder is given in place of an image (LASERS, 2024, sections 12.1 and 12.2);
see `functional/images/degradations.py`."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ...functional.images.degradations import center_mask, hide, random_masks, reduce_bicubic, upscale_bicubic


__all__ = ["Degradation"]

TASKS = ("reconstruction", "super_resolution", "inpainting")
MASKS = ("center", "random")


@dataclass(frozen=True)
class Degradation:
    """
    Creates the degradation of a task.

    Args:
        task (`str`, defaults to `"reconstruction"`): `"reconstruction"`: none; `"super_resolution"`: bicubic reduction
            and enlargement; `"inpainting"`: hidden pixels.
        scale (`int`, defaults to 4): Factor of super-resolution.
        mask (`str`, defaults to `"center"`): Masks of inpainting: `"center"`, the paper's, or `"random"`, a rectangle
            anywhere for each image.
        mask_fraction (`float`, defaults to 0.25): Sides of the central mask as a share of the image's, in (0, 1].

    Raises:
        ValueError: If an argument is out of its range.

    Example:
        ```py
        inputs, mask = Degradation("inpainting")(torch.rand(2, 3, 32, 32) * 2 - 1)
        ```
    """

    task: str = "reconstruction"
    scale: int = 4
    mask: str = "center"
    mask_fraction: float = 0.25

    def __post_init__(self):
        if self.task not in TASKS:
            raise ValueError(f"`task` must be one of {TASKS}, got {self.task!r}.")
        if self.mask not in MASKS:
            raise ValueError(f"`mask` must be one of {MASKS}, got {self.mask!r}.")
        if isinstance(self.scale, bool) or not isinstance(self.scale, int) or self.scale < 1:
            raise ValueError(f"`scale` must be a positive integer, got {self.scale!r}.")
        if not 0 < self.mask_fraction <= 1:
            raise ValueError(f"`mask_fraction` must be in (0, 1], got {self.mask_fraction!r}.")

    def __call__(
        self, pixel_values: torch.Tensor, generator: torch.Generator | None = None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """
        Degrades images.

        Args:
            pixel_values (`torch.Tensor` of shape `(B, C, H, W)`): Images in [−1, 1].
            generator (`torch.Generator`, *optional*): Source of random masks, on the CPU. Defaults to the global one.

        Returns:
            `tuple[torch.Tensor, torch.Tensor | None]`: What the autoencoder is given, of the images' size, and for
            inpainting the masks `(B, 1, H, W)`, 1 where pixels are hidden.

        Raises:
            ValueError: If the scale does not divide the sides.
        """
        if self.task == "super_resolution":
            return upscale_bicubic(reduce_bicubic(pixel_values, self.scale), self.scale), None
        if self.task == "inpainting":
            batch, _, height, width = pixel_values.shape
            if self.mask == "random":
                mask = random_masks(batch, height, width, generator, pixel_values.device)
            else:
                mask = center_mask(height, width, self.mask_fraction, pixel_values.device).expand(batch, -1, -1, -1)
            return hide(pixel_values, mask), mask
        return pixel_values, None
