"""Pictures of tensors: single images and labelled rows of images.

A pixel x in [-1, 1] becomes the byte ⌊127.5 (x + 1)⌉; values outside are clamped. Small images are enlarged by
repeating pixels, so that a picture shows the values of the tensor without interpolation.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence

import torch
from PIL import Image, ImageDraw, ImageFont


__all__ = ["image_grid", "to_image"]

_MARGIN = 4
_FONT_SIZE = 13
_LABEL_CHARACTERS = 24  # in a line


def to_image(pixels: torch.Tensor) -> Image.Image:
    """
    Converts one image to a picture with 8 bits per channel.

    Args:
        pixels (`torch.Tensor` of shape `(3, H, W)` or `(1, H, W)`): RGB or grey levels in [-1, 1], floating point, on
            any device. Values outside are clamped; NaN becomes black.

    Returns:
        `PIL.Image.Image`: The picture, of mode `"RGB"` or `"L"`.

    Raises:
        ValueError: If `pixels` is not floating point or has another shape.
    """
    if pixels.ndim != 3 or pixels.shape[0] not in (1, 3) or not pixels.is_floating_point() or pixels.numel() == 0:
        raise ValueError(
            f"`pixels` must be floating point of shape (3, H, W) or (1, H, W), got {pixels.dtype} of shape "
            f"{tuple(pixels.shape)}."
        )
    pixels = pixels.detach().float()
    levels = torch.where(pixels.isnan(), -1.0, pixels).clamp(-1, 1).add(1).mul(127.5).round().to(torch.uint8)
    array = levels.permute(1, 2, 0).contiguous().cpu().numpy()
    return Image.fromarray(array[..., 0] if array.shape[-1] == 1 else array)


def image_grid(rows: Sequence[tuple[str, torch.Tensor]], cell: int = 96, margin: int = 4) -> Image.Image:
    """
    Draws labelled rows of images on white.

    All images are enlarged to one common size by repeating pixels. For each row, the smallest integer factor is taken
    that makes the shorter side at least `cell`. The common size is that of the largest images after this. So a map of
    8 × 8 latents is drawn as large as its image.

    Args:
        rows (`Sequence[tuple[str, torch.Tensor]]`): Label and images `(n, 3, H, W)` or `(n, 1, H, W)` in [-1, 1] of
            each row. Rows may differ in number and size of images.
        cell (`int`, defaults to 96): Smallest side of an image in the picture, in pixels. With 1, images are not
            enlarged if all have the same size.
        margin (`int`, defaults to 4): White pixels between images; at least 0.

    Returns:
        `PIL.Image.Image`: The picture, RGB.

    Raises:
        ValueError: If there is no image, `cell` is below 1, `margin` is negative, or the images of a row have another
            shape or type.
    """
    rows = list(rows)
    if cell < 1:
        raise ValueError(f"`cell` must be at least 1, got {cell}.")
    if margin < 0:
        raise ValueError(f"`margin` must not be negative, got {margin}.")
    for label, images in rows:
        if images.ndim != 4 or images.shape[1] not in (1, 3) or 0 in images.shape[2:]:
            raise ValueError(
                f"`rows` must hold images of shape (n, 3, H, W) or (n, 1, H, W), got {tuple(images.shape)} in the row "
                f"{label!r}."
            )
    columns = max((len(images) for _, images in rows), default=0)
    if columns == 0:
        raise ValueError("`rows` must hold at least one image, got none.")
    sizes = [(images.shape[2], images.shape[3]) for _, images in rows]
    factors = [math.ceil(cell / min(size)) for size in sizes]
    height, width = (max(factor * size[axis] for factor, size in zip(factors, sizes)) for axis in (0, 1))

    font = ImageFont.load_default(_FONT_SIZE)
    labels = ["\n".join(textwrap.wrap(label, _LABEL_CHARACTERS)) for label, _ in rows]
    measure = ImageDraw.Draw(Image.new("RGB", (1, 1)))
    boxes = [measure.multiline_textbbox((0, 0), label, font=font) for label in labels]
    left = margin // 2 + (_MARGIN + math.ceil(max(box[2] for box in boxes)) if any(labels) else 0)
    size = (left + columns * (width + margin) - margin // 2, len(rows) * (height + margin))
    grid = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(grid)
    for row, ((_, images), label, box) in enumerate(zip(rows, labels, boxes)):
        top = row * (height + margin) + margin // 2
        draw.multiline_text((_MARGIN, top + (height - box[3]) // 2), label, fill="black", font=font)
        factor = min(height / images.shape[2], width / images.shape[3])
        enlarged = (round(factor * images.shape[3]), round(factor * images.shape[2]))
        for column, pixels in enumerate(images):
            picture = to_image(pixels).resize(enlarged, Image.Resampling.NEAREST)
            grid.paste(picture, (left + column * (width + margin), top))
    return grid
