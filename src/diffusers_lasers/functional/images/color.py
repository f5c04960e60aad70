r"""RGB and YCbCr, exactly (JFIF 1.02, ITU-R BT.601 luma), without rounding or clamping.

Colours are in [-1, 1], with the middle of the range at 0. JFIF's offsets then vanish and

    Y  = 0.299 R + 0.587 G + 0.114 B,     Cb = (B − Y) / 1.772,     Cr = (R − Y) / 1.402,

which are again in [-1, 1]. The inverse is that of this matrix in double precision. Many libraries use four rounded
constants instead, which do not invert each other (kornia: 0.564, 0.713, 1.403, 1.773).
"""

from __future__ import annotations

import torch


__all__ = ["rgb_to_ycbcr", "ycbcr_to_rgb"]

_RED, _BLUE = 0.299, 0.114
_GREEN = 1.0 - _RED - _BLUE
_TO_BLUE, _TO_RED = 2.0 * (1.0 - _BLUE), 2.0 * (1.0 - _RED)  # 1.772, 1.402
_FORWARD = (
    (_RED, _GREEN, _BLUE),
    (-_RED / _TO_BLUE, -_GREEN / _TO_BLUE, 0.5),
    (0.5, -_GREEN / _TO_RED, -_BLUE / _TO_RED),
)
_INVERSE = (
    (1.0, 0.0, _TO_RED),
    (1.0, -_BLUE * _TO_BLUE / _GREEN, -_RED * _TO_RED / _GREEN),
    (1.0, _TO_BLUE, 0.0),
)


def _apply(matrix: tuple[tuple[float, ...], ...], images: torch.Tensor, name: str) -> torch.Tensor:
    if images.ndim < 3 or images.shape[-3] != 3 or not images.is_floating_point():
        raise ValueError(
            f"`{name}` must be floating point of shape (..., 3, height, width), got {images.dtype} of shape "
            f"{tuple(images.shape)}."
        )
    weights = torch.tensor(matrix, dtype=images.dtype, device=images.device)
    return torch.einsum("dc,...chw->...dhw", weights, images)


def rgb_to_ycbcr(rgb: torch.Tensor) -> torch.Tensor:
    """
    Luma and colour differences of RGB images (JFIF).

    Args:
        rgb (`torch.Tensor` of shape `(..., 3, H, W)`): R, G, B in [-1, 1].

    Returns:
        `torch.Tensor` of shape `(..., 3, H, W)`: Y, Cb, Cr in [-1, 1]. 127.5 (v + 1) are JFIF's values, up to half a
        step, because JFIF has its middle at 128.

    Raises:
        ValueError: If `rgb` does not have three channels or is not floating point.
    """
    return _apply(_FORWARD, rgb, "rgb")


def ycbcr_to_rgb(ycbcr: torch.Tensor) -> torch.Tensor:
    """
    RGB images from luma and colour differences; the inverse of [`rgb_to_ycbcr`]. Nothing is clamped.

    Args:
        ycbcr (`torch.Tensor` of shape `(..., 3, H, W)`): Y, Cb, Cr in [-1, 1].

    Returns:
        `torch.Tensor` of shape `(..., 3, H, W)`: R, G, B.

    Raises:
        ValueError: If `ycbcr` does not have three channels or is not floating point.
    """
    return _apply(_INVERSE, ycbcr, "ycbcr")
