r"""Images for training: where they come from, how they become tensors, and in which order they are seen.

A *source* is anything with a length whose items are RGB `PIL.Image`s: a Hub data set, a folder of images, parquet
files, or the colour photographs that scikit-image installs. [`ImageDataset`] turns a source into float tensors in [-1,
1], the range of diffusers' `VaeImageProcessor`.

A sample is asked for by a key (epoch, index), as [`StreamSampler`] gives them: its crop and flip are entry `index` of
a table of uniforms seeded by (seed, epoch), and so the same in every process, in every worker and after a resume.
"""

from __future__ import annotations

import glob
import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch.utils.data import Dataset

from ..utils.import_utils import requires
from .sampling import epoch_seed


__all__ = ["BUNDLED_PHOTOS", "ImageDataset", "bundled_photos", "load_image_dataset", "take_batch"]

#: The colour photographs in the scikit-image wheel. `motorcycle_right` is left out: it is nearly a copy of `motorcycle_left`.
BUNDLED_PHOTOS = {
    "train": (
        "astronaut.png",
        "coffee.png",
        "hubble_deep_field.jpg",
        "ihc.png",
        "motorcycle_left.png",
        "retina.jpg",
    ),
    "validation": ("chelsea.png", "rocket.jpg"),
}
_SPLIT_NAMES = {"train": ("train",), "validation": ("validation", "valid", "val", "test"), "test": ("test",)}
_IMAGE_SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"}


def _to_rgb(image: Any) -> Image.Image:
    """An RGB picture, upright, from a `PIL.Image`, a path, an array or a parquet cell `{bytes, path}`."""
    if isinstance(image, dict):
        image = io.BytesIO(image["bytes"]) if image.get("bytes") is not None else image["path"]
    if isinstance(image, bytes):
        image = io.BytesIO(image)
    if isinstance(image, np.ndarray):
        image = Image.fromarray(image)
    if not isinstance(image, Image.Image):
        image = Image.open(image)
    return ImageOps.exif_transpose(image).convert("RGB")


class _FileSource(Sequence):
    """Image files, opened when they are asked for."""

    def __init__(self, paths: list[str]):
        self.paths = paths

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Image.Image:
        return _to_rgb(self.paths[index])


class _ColumnSource(Sequence):
    """One column of a `datasets.Dataset`, decoded here so that every kind of image cell is treated alike."""

    def __init__(self, table: Any, column: str):
        datasets = requires("datasets", "training")
        if isinstance(table.features[column], datasets.Image):
            table = table.cast_column(column, datasets.Image(decode=False))
        self.table, self.column = table, column

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, index: int) -> Image.Image:
        return _to_rgb(self.table[int(index)][self.column])


def bundled_photos(split: str = "train") -> Sequence:
    """
    The colour photographs that the scikit-image wheel itself ships (nothing is downloaded), RGB, 451 × 300 to 1411 ×
    1411.

    Args:
        split (`str`, defaults to `"train"`):
            `"train"` (six photographs) or `"validation"` (two others, of other scenes).

    Returns:
        `Sequence[PIL.Image.Image]`: The photographs.

    Raises:
        ValueError: If `split` is another word. ImportError: If scikit-image is missing (`pip install
        diffusers_lasers[training]`).
    """
    if split not in BUNDLED_PHOTOS:
        raise ValueError(
            f"`split` must be one of {sorted(BUNDLED_PHOTOS)} for the bundled photographs, got {split!r}."
        )
    folder = Path(requires("skimage", "training").__file__).parent / "data"
    return _FileSource([str(folder / name) for name in BUNDLED_PHOTOS[split]])


def _of_split(paths: list[str], root: str, split: str) -> list[str]:
    """The paths in a folder, or with a name, that starts with the split's; all of them where no path names any split."""

    def names(path: str, words: Sequence[str]) -> bool:
        parts = Path(os.path.relpath(path, root)).parts
        return parts[0].lower() in words or any(
            parts[-1].lower().startswith((f"{w}-", f"{w}.", f"{w}_")) for w in words
        )

    every = [word for words in _SPLIT_NAMES.values() for word in words]
    named = [path for path in paths if names(path, _SPLIT_NAMES.get(split, (split,)))]
    return named if named or any(names(path, every) for path in paths) else paths


def _list_files(location: str, split: str) -> list[str]:
    """The image or parquet files of a folder (recursively, of one split where it has splits), of a pattern, or one file."""
    if os.path.isdir(location):
        files = sorted(str(path) for path in Path(location).rglob("*") if path.is_file())
        known = [path for path in files if Path(path).suffix.lower() in _IMAGE_SUFFIXES | {".parquet"}]
        return _of_split(known, location, split)
    return (
        [location]
        if os.path.isfile(location)
        else sorted(path for path in glob.glob(location) if os.path.isfile(path))
    )


def load_image_dataset(
    dataset_name: str | None = None,
    dataset_config_name: str | None = None,
    train_data_dir: str | None = None,
    split: str = "train",
    image_column: str = "image",
    max_samples: int | None = None,
    cache_dir: str | None = None,
) -> Sequence:
    """
    Opens a source of images: a data set of the Hub, local files, or the bundled photographs.

    Args:
        dataset_name (`str`, *optional*):
            Name of a data set on the Hub, or a folder that `datasets.load_dataset` understands.
        dataset_config_name (`str`, *optional*): Its configuration.
        train_data_dir (`str`, *optional*):
            A folder of images (searched recursively) or of parquet files, one file of either kind, or a pattern such
            as `"data/train-*.parquet"`. Where folders or file names begin with `train`, `validation`, `val` or `test`,
            only those of `split` are taken. Neither this nor `dataset_name`: the bundled photographs.
        split (`str`, defaults to `"train"`): The split; `"validation"` also takes local files named `test`.
        image_column (`str`, defaults to `"image"`):
            The column with the images, in parquet as `{bytes, path}` or bytes.
        max_samples (`int`, *optional*): Take only the first so many images.
        cache_dir (`str`, *optional*): Where `datasets` keeps what it prepares.

    Returns:
        `Sequence[PIL.Image.Image]`: RGB images, decoded when they are asked for.

    Raises:
        ValueError: If both a name and a folder are given, no image is found, kinds are mixed, or the column is
        missing.
    """
    if dataset_name is not None and train_data_dir is not None:
        raise ValueError("Give `dataset_name` or `train_data_dir`, not both.")
    if max_samples is not None and max_samples < 1:
        raise ValueError(f"`max_samples` must be at least 1, got {max_samples!r}.")
    if dataset_name is None and train_data_dir is None:
        source = bundled_photos(split)
        return source if max_samples is None else _FileSource(source.paths[:max_samples])
    if dataset_name is not None:
        load = requires("datasets", "training").load_dataset
        table = load(dataset_name, dataset_config_name, split=split, cache_dir=cache_dir)
    else:
        files = _list_files(train_data_dir, split)
        if not files:
            raise ValueError(f"No image or parquet file of split {split!r} found at {train_data_dir!r}.")
        parquet = [path for path in files if path.endswith(".parquet")]
        if not parquet:
            return _FileSource(files[:max_samples])
        if len(parquet) != len(files):
            raise ValueError(f"{train_data_dir!r} mixes parquet files with images; give one kind.")
        load = requires("datasets", "training").load_dataset
        table = load("parquet", data_files={split: parquet}, split=split, cache_dir=cache_dir)
    if image_column not in table.column_names:
        raise ValueError(f"`image_column` must be one of {table.column_names}, got {image_column!r}.")
    if max_samples is not None:
        table = table.select(range(min(max_samples, len(table))))
    return _ColumnSource(table, image_column)


class ImageDataset(Dataset):
    r"""
    Creates a data set of square crops as float tensors in [-1, 1] from a source of images, without torchvision.

    An item is asked for by a key (epoch, index); a bare index means epoch 0. The same key gives the same crop and flip
    in any process. An image is first resized so that its short side is `resize`, if given, or where it is smaller than
    the crop.

    Args:
        source (`Sequence[PIL.Image.Image]`): The images, see [`load_image_dataset`].
        resolution (`int`): Side of the crops in pixels.
        resize (`int`, *optional*):
            Length in pixels to which the short side is brought before cropping (Lanczos); at least `resolution`.
            `None` keeps the image's own scale.
        center_crop (`bool`, defaults to `False`): Crop at the centre instead of at random.
        random_flip (`bool`, defaults to `False`): Mirror half of the crops left to right.
        crops_per_image (`int`, defaults to 1): Crops of each image an epoch.
        seed (`int`, defaults to 0): Seed of crops and flips.
        cache_in_memory (`bool`, defaults to `False`): Decode and resize everything once, to uint8.

    Raises:
        ValueError: If `resolution`, `resize` or `crops_per_image` is out of range or the source is empty.
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
        self._table: tuple[int, torch.Tensor] | None = None
        self._cache: list[np.ndarray] | None = None
        if cache_in_memory:
            self._cache = [self._pixels(index) for index in range(len(source))]

    def __len__(self) -> int:
        return len(self.source) * self.crops_per_image

    def _pixels(self, index: int) -> np.ndarray:
        """Image `index` as uint8 `(H, W, 3)`, resized, with both sides at least `resolution`."""
        if self._cache is not None:
            return self._cache[index]
        image = self.source[index]
        short = min(image.size)
        target = self.resize if self.resize is not None else max(short, self.resolution)
        if short != target:
            size = tuple(max(target, round(side * target / short)) for side in image.size)
            image = image.resize(size, Image.Resampling.LANCZOS)
        return np.asarray(image)

    def _draws(self, epoch: int) -> torch.Tensor:
        """The uniforms `(len(self), 3)` of an epoch: top, left and flip of each index."""
        if self._table is None or self._table[0] != epoch:
            generator = torch.Generator().manual_seed(epoch_seed(self.seed, epoch, stream=1))
            self._table = (epoch, torch.rand(len(self), 3, generator=generator))
        return self._table[1]

    def _crop(self, key: int | tuple[int, int]) -> np.ndarray:
        """The crop of a key, uint8 `(resolution, resolution, 3)`."""
        epoch, index = key if isinstance(key, tuple) else (0, key)
        pixels = self._pixels(index % len(self.source))
        spare = [side - self.resolution for side in pixels.shape[:2]]
        top, left, flip = self._draws(epoch)[index].tolist()
        if self.center_crop:
            corner = [side // 2 for side in spare]
        else:
            corner = [min(int(u * (side + 1)), side) for u, side in zip((top, left), spare)]
        crop = pixels[corner[0] : corner[0] + self.resolution, corner[1] : corner[1] + self.resolution]
        return crop[:, ::-1] if self.random_flip and flip < 0.5 else crop

    def __getitems__(self, keys: Sequence[int | tuple[int, int]]) -> dict[str, torch.Tensor]:
        """A whole batch, already collated: `{"pixel_values": (B, 3, resolution, resolution)}` in [-1, 1]."""
        crops = torch.from_numpy(np.stack([self._crop(key) for key in keys]))  # (B, H, W, 3)
        return {"pixel_values": crops.permute(0, 3, 1, 2).to(torch.float32).div_(127.5).sub_(1.0).contiguous()}

    def __getitem__(self, key: int | tuple[int, int]) -> dict[str, torch.Tensor]:
        """One sample: `{"pixel_values": (3, resolution, resolution)}` in [-1, 1]."""
        return {"pixel_values": self.__getitems__([key])["pixel_values"][0]}


def take_batch(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The `collate_fn` for [`ImageDataset`], whose `__getitems__` gives whole batches already."""
    return batch
