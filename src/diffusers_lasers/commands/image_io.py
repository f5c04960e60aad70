"""What `encode` and `decode` share: images as tensors, names of several outputs, and what a code file costs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING


if TYPE_CHECKING:
    import torch
    from PIL import Image

RGB_BITS = 24  # of a pixel of 8 bits a channel


def to_tensor(image: Image.Image) -> torch.Tensor:
    """An RGB picture as `(1, 3, H, W)` in [-1, 1]."""
    return _levels(image).float() / 127.5 - 1


@dataclass(frozen=True)
class Pictures:
    """
    RGB pictures as tensors `(1, 3, H, W)` in [-1, 1], one after another, as often as wanted.

    Args:
        source (`Sequence[PIL.Image.Image]`): The pictures.
    """

    source: Sequence[Image.Image]

    def __iter__(self) -> Iterator[torch.Tensor]:
        return (to_tensor(self.source[index]) for index in range(len(self.source)))


def read_image(path: str | Path) -> torch.Tensor:
    """
    An image file as `(1, 3, H, W)` in [-1, 1].

    Raises:
        ValueError: If it cannot be decoded, see [`to_rgb`].
    """
    from ..utils.image_decoding import to_rgb

    return to_tensor(to_rgb(path, str(path)))


def picture_levels(sample: torch.Tensor) -> torch.Tensor:
    """The 8 bits a channel `(1, 3, H, W)` that a picture of an image `(1, 3, H, W)` in about [-1, 1] holds."""
    from ..visualization.image_grids import to_image

    return _levels(to_image(sample[0]))


def _levels(image: Image.Image) -> torch.Tensor:
    import numpy as np
    import torch

    return torch.from_numpy(np.array(image)).permute(2, 0, 1)[None]


def output_paths(inputs: Sequence[str], target: str, suffix: str) -> list[Path]:
    """
    Where the results of several files go: to `target`, or, where it is a folder, under their own names into it.

    Args:
        inputs (`Sequence[str]`): The files.
        target (`str`): A file, or a folder that is there.
        suffix (`str`): Suffix in a folder.

    Returns:
        `list[Path]`: A path for each input.

    Raises:
        ValueError: If a folder is missing, or two results would have one name.
    """
    for path in inputs:
        if not Path(path).is_file():
            raise ValueError(f"There is no file {path}.")
    target = Path(target)
    if target.is_dir():
        paths = [target / f"{Path(path).stem}{suffix}" for path in inputs]
    elif len(inputs) > 1:
        raise ValueError(f"{target} must be a folder that is there for {len(inputs)} files, it is not.")
    elif not target.parent.is_dir():
        raise ValueError(f"There is no folder {target.parent} to write {target.name} to.")
    else:
        paths = [target]
    doubled = next((path for number, path in enumerate(paths) if path in paths[:number]), None)
    if doubled is not None:
        raise ValueError(f"Two of the files would be written to {doubled}: give them one by one.")
    same = next((path for path, source in zip(paths, inputs) if path.exists() and path.samefile(source)), None)
    if same is not None:
        raise ValueError(f"{same} would be overwritten by what is made of it.")
    return paths


def psnr_metric() -> torch.nn.Module:
    """A new PSNR. It is made before anything else, so that a missing package is missed before the work is done."""
    from ..metrics import PSNR

    return PSNR()


def cost_lines(size: tuple[int, int], file_bytes: int, nominal_bits: float) -> list[str]:
    """Lines on the cost of an image's code file."""
    height, width = size
    pixels = height * width
    return [
        f"  image: {width} × {height} pixels",
        f"  file: {file_bytes} bytes, {8 * file_bytes / pixels:.4f} bits a pixel",
        f"  nominal: {nominal_bits:.0f} bits, {nominal_bits / pixels:.4f} bits a pixel",
        f"  compression: {RGB_BITS * pixels / (8 * file_bytes):.2f} times against {RGB_BITS} bits a pixel",
    ]
