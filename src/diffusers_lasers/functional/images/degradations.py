r"""Degradations of an image x in [−1, 1] that restoration has to undo (LASERS, 2024, sections 12.1 and 12.2).

*Super-resolution*: x is reduced by an integer factor and enlarged again, both bicubic. Reducing uses antialiasing, as
image libraries do: it averages over the pixels that a cubic kernel of the low resolution covers. *Inpainting*: m ∘ x
with m = 0 inside the mask. Hidden pixels are 0, the middle of the range; the paper says "0" without a range.
"""

from __future__ import annotations

import torch
from torch.nn import functional as F


__all__ = ["center_mask", "hide", "random_masks", "reduce_bicubic", "upscale_bicubic"]


def reduce_bicubic(pixel_values: torch.Tensor, scale: int) -> torch.Tensor:
    """
    Reduces images by an integer factor, bicubic with antialiasing.

    Args:
        pixel_values (`torch.Tensor` of shape `(B, C, H, W)`): Images in [−1, 1].
        scale (`int`): Factor, at least 1; it divides H and W.

    Returns:
        `torch.Tensor` of shape `(B, C, H / scale, W / scale)`: Images in [−1, 1].

    Raises:
        ValueError: If `scale` is below 1 or does not divide the sides.
    """
    if isinstance(scale, bool) or not isinstance(scale, int) or scale < 1:
        raise ValueError(f"`scale` must be a positive integer, got {scale!r}.")
    size = pixel_values.shape[-2:]
    if any(side % scale for side in size):
        raise ValueError(f"`scale` must divide the sides {tuple(size)}, got {scale}.")
    small = [side // scale for side in size]
    return F.interpolate(pixel_values, small, mode="bicubic", antialias=True, align_corners=False).clamp(-1, 1)


def upscale_bicubic(pixel_values: torch.Tensor, scale: int) -> torch.Tensor:
    """
    Enlarges images by an integer factor, bicubic.

    Args:
        pixel_values (`torch.Tensor` of shape `(B, C, H, W)`): Images in [−1, 1].
        scale (`int`): Factor, at least 1.

    Returns:
        `torch.Tensor` of shape `(B, C, scale·H, scale·W)`: Images in [−1, 1].
    """
    large = [side * scale for side in pixel_values.shape[-2:]]
    return F.interpolate(pixel_values, large, mode="bicubic", align_corners=False).clamp(-1, 1)


def center_mask(height: int, width: int, fraction: float = 0.25, device: torch.device | None = None) -> torch.Tensor:
    """
    A mask with a rectangle in the middle.

    Args:
        height (`int`): Pixels down.
        width (`int`): Pixels across.
        fraction (`float`, defaults to 0.25): Sides of the rectangle as a share of the image's, in (0, 1].
        device (`torch.device`, *optional*): Device of the mask.

    Returns:
        `torch.Tensor` of shape `(1, 1, H, W)`: 1 where pixels are hidden, 0 elsewhere.

    Raises:
        ValueError: If `fraction` is out of range.
    """
    if not 0 < fraction <= 1:
        raise ValueError(f"`fraction` must be in (0, 1], got {fraction!r}.")
    mask = torch.zeros(1, 1, height, width, device=device)
    rows, columns = (max(1, round(side * fraction)) for side in (height, width))
    top, left = (height - rows) // 2, (width - columns) // 2
    mask[..., top : top + rows, left : left + columns] = 1
    return mask


def random_masks(
    batch: int, height: int, width: int, generator: torch.Generator | None = None, device: torch.device | None = None
) -> torch.Tensor:
    """
    Masks with one random rectangle each. Its sides are an eighth to a half of the image's, and it may lie anywhere.

    Args:
        batch (`int`): Number of masks B.
        height (`int`): Pixels down.
        width (`int`): Pixels across.
        generator (`torch.Generator`, *optional*): Source of randomness, on the CPU.
        device (`torch.device`, *optional*): Device of the masks.

    Returns:
        `torch.Tensor` of shape `(B, 1, H, W)`: 1 where pixels are hidden, 0 elsewhere.
    """
    draws = torch.rand(batch, 4, generator=generator)
    inside = []
    for side, length, place in ((height, draws[:, 0], draws[:, 1]), (width, draws[:, 2], draws[:, 3])):
        extent = ((0.125 + 0.375 * length) * side).round().clamp_min(1)  # (B,)
        start = (place * (side - extent + 1)).floor()
        position = torch.arange(side)
        inside.append((position >= start[:, None]) & (position < (start + extent)[:, None]))  # (B, side)
    mask = inside[0][:, None, :, None] & inside[1][:, None, None, :]
    return mask.to(torch.float32).to(device)


def hide(pixel_values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """
    Sets the hidden pixels of images to 0.

    Args:
        pixel_values (`torch.Tensor` of shape `(B, C, H, W)`): Images in [−1, 1].
        mask (`torch.Tensor` of shape `(B or 1, 1, H, W)`): 1 where pixels are hidden, 0 elsewhere.

    Returns:
        `torch.Tensor` of shape `(B, C, H, W)`: Images.
    """
    return torch.where(mask > 0.5, 0.0, pixel_values)
