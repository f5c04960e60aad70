r"""The peak signal-to-noise ratio of images in [-1, 1], whose range is 2: PSNR(x, y) = 10 log₁₀ (2² / MSE(x, y))."""

from __future__ import annotations

import torch


def image_psnr(sample: torch.Tensor, target: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
    """
    PSNR of each image, from one mean squared error over all its channels and pixels.

    Args:
        sample (`torch.Tensor` of shape `(B, C, H, W)`): Reconstructions, floating point. They are not clamped.
        target (`torch.Tensor` of the same shape): The original images, in [-1, 1].
        mask (`torch.Tensor` of shape `(B, 1, H, W)`, *optional*): 1 at the pixels that count, 0 elsewhere. Each image
            has at least one pixel that counts.

    Returns:
        `torch.Tensor` of shape `(B,)`: PSNR in dB, infinite for an exact reproduction. In float64 if an argument is
        float64, else in float32.
    """
    errors = mean_squared_errors(sample, target, mask)
    return -10 * torch.log10(errors / 4)


def mean_squared_errors(sample: torch.Tensor, target: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
    """
    The mean squared error of each image.

    Args:
        sample, target, mask: As in [`image_psnr`].

    Returns:
        `torch.Tensor` of shape `(B,)`: Means over channels and pixels, in float32 or float64.
    """
    precise = torch.promote_types(torch.promote_types(sample.dtype, target.dtype), torch.float32)
    squares = (sample.to(precise) - target.to(precise)).square()
    if mask is None:
        return squares.mean(dim=(1, 2, 3))
    weights = mask[:, 0].to(precise)
    return (squares.mean(dim=1) * weights).sum(dim=(1, 2)) / weights.sum(dim=(1, 2))
