r"""Image arguments of pipelines as tensors, by the conventions of diffusers' `VaeImageProcessor`.

    picture of Pillow, any mode                 as `to_rgb` reads it: 16 bits scaled, transparency on white, upright
    array (H, W), (H, W, C), (B, H, W, C)       uint8 over 255, uint16 over 65535, bool, floats in [0, 1]
    tensor (H, W), (C, H, W), (B, C, H, W)      uint8 over 255, bool, floats in [0, 1]
    floats with negative values                 in [-1, 1]
    list                                        of the above, all of one size

Values outside these ranges are refused. `VaeImageProcessor` accepts more, with wrong results: it does not scale an
array of uint8, and treats pictures of every mode as colours.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from diffusers.image_processor import VaeImageProcessor
from PIL import Image

from .image_sources import to_rgb


_TOLERANCE = 0.01  # by which values may exceed a range after resampling or in half precision
_ALLOWED = "Pillow pictures, arrays (H, W, C) or (B, H, W, C), or tensors (C, H, W) or (B, C, H, W)"


def _shaped(values: np.ndarray | torch.Tensor, channels: int, name: str) -> torch.Tensor:
    """Converts an array or a tensor of images to float32 `(B, channels, H, W)`. Integers are divided by the largest
    value of their type."""
    array = isinstance(values, np.ndarray)
    if array and values.dtype == np.uint16:
        values = values.astype(np.float32) / 65535
    found, shape = values.dtype, tuple(values.shape)
    tensor = torch.from_numpy(np.array(values)) if array and values.dtype.kind in "fub" else values
    known = torch.is_tensor(tensor) and (tensor.is_floating_point() or tensor.dtype in (torch.uint8, torch.bool))
    if not known:
        raise ValueError(f"`{name}` must be uint8, bool, uint16 arrays or floating point, got {found}.")
    if tensor.dtype == torch.uint8:
        tensor = tensor.float() / 255
    tensor = tensor.float()
    if tensor.ndim == 2:
        tensor = tensor[None, None]
    elif tensor.ndim == 3:
        tensor = tensor.permute(2, 0, 1)[None] if array else tensor[None]
    elif tensor.ndim == 4 and array:
        tensor = tensor.permute(0, 3, 1, 2)
    if tensor.ndim != 4 or tensor.shape[1] not in (1, channels) or 0 in tensor.shape:
        of = "grey, of 1 channel" if channels == 1 else f"of {channels} channels or grey"
        raise ValueError(f"`{name}` must be {_ALLOWED}, {of}, got shape {shape}.")
    return tensor.expand(-1, channels, -1, -1)


def _one(image: Any, channels: int, name: str, index: int) -> torch.Tensor:
    """Converts one entry to float32 `(B, channels, H, W)`."""
    if isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.ndim == 3 and image.shape[-1] in (2, 4):
        image = Image.fromarray(image)  # with transparency
    if isinstance(image, Image.Image):
        if channels not in (1, 3):
            raise ValueError(f"`{name}` must be tensors or arrays of {channels} channels, got a picture.")
        picture = to_rgb(image, f"{name} {index}")
        image = np.asarray(picture if channels == 3 else picture.convert("L"))
    if not isinstance(image, (np.ndarray, torch.Tensor)):
        raise ValueError(f"`{name}` must be {_ALLOWED}, got {type(image).__name__}.")
    return _shaped(image, channels, name)


def _batch(images: Any, channels: int, name: str, least: float) -> torch.Tensor:
    """Converts all entries to float32 `(B, channels, H, W)` with values from `least` to 1."""
    images = list(images) if isinstance(images, (list, tuple)) else [images]
    if not images:
        raise ValueError(f"`{name}` must hold at least one image, got an empty list.")
    tensors = [_one(image, channels, name, index) for index, image in enumerate(images)]
    sizes = {tuple(tensor.shape[-2:]) for tensor in tensors}
    if len(sizes) > 1:
        raise ValueError(f"`{name}` must be of one size, got {', '.join(f'{h} × {w}' for h, w in sorted(sizes))}.")
    batch = torch.cat(tensors)
    low, high = (end.item() for end in batch.aminmax())
    if not (low >= least - _TOLERANCE and high <= 1 + _TOLERANCE):  # also refuses NaN
        signed = " (or in [-1, 1], with negative ones)" if least < 0 else ""
        raise ValueError(f"`{name}` must have values in [0, 1]{signed} or be uint8, got {low:.4g} to {high:.4g}.")
    return batch


def preprocess_images(image: Any, channels: int = 3, name: str = "image", signed: bool = True) -> torch.Tensor:
    """
    Converts images to the input of an autoencoder of diffusers.

    Args:
        image (`PIL.Image.Image`, `numpy.ndarray`, `torch.Tensor` or a list of them): Images of one size; see the table
            of this module. Grey images are repeated in all channels.
        channels (`int`, defaults to 3): Channels of the result.
        name (`str`, defaults to `"image"`): Name of the argument in errors.
        signed (`bool`, defaults to `True`): Whether values in [-1, 1] are accepted. They are recognised by a negative
            value.

    Returns:
        `torch.Tensor` of shape `(B, channels, H, W)`: float32 in [-1, 1], on the device of a given tensor.

    Raises:
        ValueError: If there is no image, or its type, shape or range does not fit.
    """
    batch = _batch(image, channels, name, least=-1.0 if signed else 0.0)
    return batch if signed and batch.min() < 0 else VaeImageProcessor.normalize(batch)


def preprocess_masks(mask: Any, name: str = "mask_image") -> torch.Tensor:
    """
    Converts masks to tensors of zeros and ones.

    Args:
        mask (like `image`): Grey masks of one size, with values in [0, 1]. Pictures of Pillow are converted to grey.
            Three dimensions without a channel are `(B, H, W)`.
        name (`str`, defaults to `"mask_image"`): Name of the argument in errors.

    Returns:
        `torch.Tensor` of shape `(B, 1, H, W)`: float32; 1 where the mask is at least 0.5, 0 elsewhere.

    Raises:
        ValueError: If there is no mask, or its type, shape or range does not fit.
    """
    if isinstance(mask, np.ndarray) and mask.ndim == 3 and mask.shape[-1] != 1:
        mask = mask[..., None]
    if torch.is_tensor(mask) and mask.ndim == 3:
        mask = mask[:, None]
    return (_batch(mask, 1, name, least=0.0) >= 0.5).float()
