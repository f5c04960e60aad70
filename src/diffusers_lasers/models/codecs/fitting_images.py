"""Images as `ModelBasedVQCodec.fit` takes them, as tensors `(3, H, W)` in [-1, 1]."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
from PIL import Image

from ...utils.image_inputs import preprocess_images
from ...utils.image_sources import load_image_dataset, to_rgb, undecoded


LARGEST = 1.01  # magnitude of a colour, with what resampling and half precision may add


def fitting_images(images: Any, column: str) -> Iterable[torch.Tensor]:
    """
    Images from all that [`ModelBasedVQCodec.fit`] takes.

    Args:
        images (`Any`): A folder, file or pattern, a data set, a picture, or an iterable of tensors, pictures or arrays.
        column (`str`): Column of a data set.

    Returns:
        `Iterable[torch.Tensor]`: Images `(3, H, W)`, floating point in [-1, 1], on the CPU.

    Raises:
        ValueError: While the images are read, at the first that is not such an image.
    """
    if isinstance(images, Image.Image):
        images = [images]
    elif isinstance(images, str) or hasattr(images, "__fspath__"):
        images = load_image_dataset(train_data_dir=str(images), image_column=column)
    elif hasattr(images, "column_names"):
        images = (row[column] for row in undecoded(images, column))  # decoded below, as all images are

    def convert() -> Iterator[torch.Tensor]:
        for index, image in enumerate(images):
            if not torch.is_tensor(image):
                image = image if isinstance(image, np.ndarray) else to_rgb(image, f"image {index}")
                image = preprocess_images(image, name="images", signed=False)[0]
            elif image.dtype == torch.uint8:
                image = preprocess_images(image, name="images")[0]
            if image.ndim != 3 or image.shape[0] != 3 or not image.is_floating_point() or not image.numel():
                raise ValueError(
                    f"`images` must hold tensors (3, H, W) in [-1, 1], got {image.dtype} of shape {tuple(image.shape)}."
                )
            low, high = image.aminmax()
            if not (low >= -LARGEST and high <= LARGEST):
                raise ValueError(f"`images` must lie in [-1, 1], got {low.item():.4g} to {high.item():.4g}.")
            yield image.cpu()

    return convert()
