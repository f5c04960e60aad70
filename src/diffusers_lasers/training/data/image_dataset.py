r"""How images become tensors for training.

[`ImageDataset`] turns a source (`utils.image_sources`) into float tensors in [-1, 1], the range of diffusers'
`VaeImageProcessor`. A sample is asked for by a key (epoch, index), as [`StreamSampler`] gives them: its crop and flip
are entry `index` of a table of uniforms seeded by (seed, epoch), and so the same in every process, in every worker and
after a resume.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset

from ...utils.image_decoding import UnreadableImageError, to_rgb
from ...utils.seeding import seeded_generator


__all__ = ["ImageDataset"]

_logger = logging.getLogger(__name__)
#: How many times its short side the long side of a picture may be to be enlarged as a whole.
LONGEST = 16


def fit_pixels(image: Image.Image, resolution: int, resize: int | None) -> np.ndarray:
    """
    A picture as uint8, both sides at least `resolution`; one that is more than `LONGEST` times as long as wide and
    would be enlarged keeps its own size, and [`crop_pixels`] enlarges the piece that it needs.

    Args:
        image (`PIL.Image.Image`): The picture.
        resolution (`int`): Side of the crops to come.
        resize (`int`, *optional*): Length of the short side (Lanczos); `None` enlarges only what is too small.

    Returns:
        `numpy.ndarray` of shape `(H, W, 3)`: The pixels.
    """
    short, long = sorted(image.size)
    target = resize if resize is not None else max(short, resolution)
    if short != target and not (short < target and long > LONGEST * short):
        size = tuple(max(target, round(side * target / short)) for side in image.size)
        image = image.resize(size, Image.Resampling.LANCZOS)
    return np.asarray(image)


def _window(sides: Sequence[int], size: Sequence[int], uniforms: Sequence[float], center: bool) -> tuple[slice, slice]:
    """Rows and columns of a window of `size` in a picture of `sides`, drawn or in the middle."""
    spare = [side - taken for side, taken in zip(sides, size)]
    corner = [side // 2 if center else min(int(u * (side + 1)), side) for u, side in zip(uniforms, spare)]
    return tuple(slice(start, start + taken) for start, taken in zip(corner, size))


def crop_pixels(
    pixels: np.ndarray,
    resolution: int,
    uniforms: Sequence[float],
    center_crop: bool,
    random_flip: bool,
    resize: int | None = None,
) -> np.ndarray:
    """
    A square window of a picture.

    Args:
        pixels (`numpy.ndarray` of shape `(H, W, 3)`): The picture, from [`fit_pixels`].
        resolution (`int`): Side of the window.
        uniforms (`Sequence[float]`): Three numbers in [0, 1): top, left, flip.
        center_crop (`bool`): Whether the window is in the middle instead.
        random_flip (`bool`): Whether it is mirrored where the third number is below one half.
        resize (`int`, *optional*): As given to [`fit_pixels`].

    Returns:
        `numpy.ndarray` of shape `(resolution, resolution, 3)`: The window.
    """
    sides = pixels.shape[:2]
    if min(sides) < (resize or resolution):  # very long: only a piece of it is enlarged, with the window's place in it
        piece = pixels[_window(sides, [min(side, LONGEST * min(sides)) for side in sides], uniforms, center_crop)]
        pixels = fit_pixels(Image.fromarray(piece), resolution, resize)
    crop = pixels[_window(pixels.shape[:2], (resolution, resolution), uniforms, center_crop)]
    return crop[:, ::-1] if random_flip and uniforms[2] < 0.5 else crop


def to_batch(crops: Sequence[np.ndarray]) -> torch.Tensor:
    """Windows `(resolution, resolution, 3)` of uint8 as one tensor `(B, 3, resolution, resolution)` in [-1, 1]."""
    pixels = torch.from_numpy(np.stack(crops))  # (B, H, W, 3)
    return pixels.permute(0, 3, 1, 2).to(torch.float32).div_(127.5).sub_(1.0).contiguous()


class ImageDataset(Dataset):
    r"""
    Creates a data set of square crops as float tensors in [-1, 1] from a source of images, without torchvision.

    An item is asked for by a key (epoch, index); a bare index means epoch 0. The same key gives the same crop and flip
    in any process. An image is first resized so that its short side is `resize`, if given, or where it is smaller than
    the crop. One that is more than 16 times as long as wide and would grow is first cut to a piece of that shape around
    the crop, so that memory stays bounded.

    Args:
        source (`Sequence[PIL.Image.Image]`): The images, see [`load_image_dataset`]; of any mode, see [`to_rgb`].
        resolution (`int`): Side of the crops in pixels.
        resize (`int`, *optional*):
            Length in pixels to which the short side is brought before cropping (Lanczos); at least `resolution`.
            `None` keeps the image's own scale.
        center_crop (`bool`, defaults to `False`): Crop at the centre instead of at random.
        random_flip (`bool`, defaults to `False`): Mirror half of the crops left to right.
        crops_per_image (`int`, defaults to 1): Crops of each image an epoch.
        seed (`int`, defaults to 0): Seed of crops and flips.
        cache_in_memory (`bool`, defaults to `False`): Decode and resize everything once, to uint8.
        skip_unreadable (`bool`, defaults to `False`): Put the next image that can be read in the place of one that
            cannot, warn of each once, and count in the batches (`unreadable`) how many samples were replaced.

    Raises:
        ValueError: If `resolution`, `resize` or `crops_per_image` is out of range or the source is empty.
        UnreadableImageError: When an image is asked for that cannot be decoded, unless `skip_unreadable`; also then if
            none can.
    """

    def __init__(
        self,
        source: Sequence,
        resolution: int,
        resize: int | None = None,
        center_crop: bool = False,
        random_flip: bool = False,
        crops_per_image: int = 1,
        seed: int = 0,
        cache_in_memory: bool = False,
        skip_unreadable: bool = False,
    ):
        if resolution < 1:
            raise ValueError(f"`resolution` must be at least 1 pixel, got {resolution!r}.")
        if resize is not None and resize < resolution:
            raise ValueError(f"`resize` must be at least the resolution, {resolution}, got {resize!r}.")
        if crops_per_image < 1:
            raise ValueError(f"`crops_per_image` must be at least 1, got {crops_per_image!r}.")
        if len(source) == 0:
            raise ValueError("`source` must hold at least one image.")
        self.source = source
        self.resolution = resolution
        self.resize = resize
        self.center_crop = center_crop
        self.random_flip = random_flip
        self.crops_per_image = crops_per_image
        self.seed = seed
        self.skip_unreadable = skip_unreadable
        self.unreadable: set[int] = set()
        self._table: tuple[int, torch.Tensor] | None = None
        self._cache: list[np.ndarray] | None = None
        if cache_in_memory:
            self._cache = [self._pixels(index)[0] for index in range(len(source))]

    def __len__(self) -> int:
        return len(self.source) * self.crops_per_image

    def _pixels(self, index: int) -> tuple[np.ndarray, bool]:
        """Image `index`, or the next that can be read, as uint8 `(H, W, 3)` from [`fit_pixels`]; whether it was
        replaced."""
        if self._cache is not None:
            return self._cache[index], index in self.unreadable
        count, failure = len(self.source), None
        for offset in range(count):
            place = (index + offset) % count
            if place in self.unreadable:
                continue
            try:
                return fit_pixels(
                    to_rgb(self.source[place], f"image {place}"), self.resolution, self.resize
                ), offset > 0
            except UnreadableImageError as error:
                if not self.skip_unreadable:
                    raise
                failure = error
                self.unreadable.add(place)
                _logger.warning(f"{error} It is skipped.")
        raise UnreadableImageError("None of the images can be read.") from failure

    def _draws(self, epoch: int) -> torch.Tensor:
        """The uniforms `(len(self), 3)` of an epoch: top, left and flip of each index."""
        if self._table is None or self._table[0] != epoch:
            generator = seeded_generator(self.seed, epoch, 1)
            self._table = (epoch, torch.rand(len(self), 3, generator=generator))
        return self._table[1]

    def _crop(self, key: int | tuple[int, int]) -> tuple[np.ndarray, bool]:
        """The crop of a key, uint8 `(resolution, resolution, 3)`, and whether it is of another image."""
        epoch, index = key if isinstance(key, tuple) else (0, key)
        pixels, replaced = self._pixels(index % len(self.source))
        uniforms = self._draws(epoch)[index].tolist()
        return crop_pixels(
            pixels, self.resolution, uniforms, self.center_crop, self.random_flip, self.resize
        ), replaced

    def __getitems__(self, keys: Sequence[int | tuple[int, int]]) -> dict[str, torch.Tensor]:
        """
        A whole batch, already collated: `{"pixel_values": (B, 3, resolution, resolution)}` in [-1, 1], with
        `skip_unreadable` also `unreadable`, the number of samples that were replaced.
        """
        crops, replaced = zip(*(self._crop(key) for key in keys))
        batch = {"pixel_values": to_batch(crops)}
        if self.skip_unreadable:
            batch["unreadable"] = torch.tensor(sum(replaced))
        return batch

    def __getitem__(self, key: int | tuple[int, int]) -> dict[str, torch.Tensor]:
        """One sample: `{"pixel_values": (3, resolution, resolution)}` in [-1, 1]."""
        return {"pixel_values": self.take([key])[0]}

    def take(self, keys: Sequence[int | tuple[int, int]]) -> torch.Tensor:
        """
        Images by their keys.

        Args:
            keys (`Sequence[int]` or `Sequence[tuple[int, int]]`): Indices of epoch 0, or pairs (epoch, index).

        Returns:
            `torch.Tensor` of shape `(len(keys), 3, resolution, resolution)`: Floats in [-1, 1].
        """
        return self.__getitems__(keys)["pixel_values"]

    def batches(self, batch_size: int, keys: Sequence[int | tuple[int, int]] | None = None) -> Iterator[torch.Tensor]:
        """
        All images in their order, a batch at a time.

        Args:
            batch_size (`int`): Images a batch; the last one may have fewer.
            keys (`Sequence`, *optional*): What to take in the place of all indices of epoch 0.

        Returns:
            `Iterator[torch.Tensor]`: Batches `(B, 3, resolution, resolution)`, floats in [-1, 1], on the CPU.

        Raises:
            ValueError: If `batch_size` is no positive integer.

        Example:
            ```py
            from diffusers_lasers.training import ImageDataset, bundled_photos

            for images in ImageDataset(bundled_photos("validation"), 64).batches(4):
                images.mean()
            ```
        """
        if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
            raise ValueError(f"`batch_size` must be a positive integer, got {batch_size!r}.")
        keys = range(len(self)) if keys is None else keys
        return (self.take(keys[start : start + batch_size]) for start in range(0, len(keys), batch_size))


def take_batch(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The `collate_fn` for [`ImageDataset`], whose `__getitems__` gives whole batches already."""
    return batch
