r"""Where images come from: a data set of the Hub, a folder of images, parquet files, or the colour photographs that scikit-image installs.

A *source* is anything with a length whose items are RGB `PIL.Image`s, decoded when they are asked for. An image that cannot be decoded raises
[`UnreadableImageError`], which names the file or the row.
"""

from __future__ import annotations

import glob
import io
import os
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from .import_utils import requires


__all__ = ["BUNDLED_PHOTOS", "UnreadableImageError", "bundled_photos", "load_image_dataset", "open_image_stream"]

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


# What Pillow raises on files that are no images, truncated, damaged, or too large.
_DECODING_ERRORS = (OSError, SyntaxError, ValueError, TypeError, EOFError, struct.error, Image.DecompressionBombError)


class UnreadableImageError(ValueError):
    """An image could not be decoded; the message is one sentence that names it."""


def to_rgb(image: Any, name: str) -> Image.Image:
    """
    An upright RGB picture.

    Args:
        image (`PIL.Image.Image`, `str`, `bytes`, `numpy.ndarray` or `dict`): A picture, a path, a file's contents, an array or a parquet cell
            `{bytes, path}`.
        name (`str`): How an error names it where it has no path of its own.

    Returns:
        `PIL.Image.Image`: The picture.

    Raises:
        UnreadableImageError: If it cannot be decoded.
    """
    if isinstance(image, dict):
        name = image.get("path") or name
        image = image["bytes"] if image.get("bytes") is not None else image.get("path")
    if image is None:
        raise UnreadableImageError(f"The image {name!r} cannot be read: its cell is empty.")
    if isinstance(image, str):
        name = image
    try:
        if isinstance(image, bytes):
            image = io.BytesIO(image)
        if isinstance(image, np.ndarray):
            image = Image.fromarray(image)
        if not isinstance(image, Image.Image):
            image = Image.open(image)
        return ImageOps.exif_transpose(image).convert("RGB")
    except _DECODING_ERRORS as error:
        what = " ".join(str(error).split())
        raise UnreadableImageError(f"The image {name!r} cannot be read: {what or type(error).__name__}.") from error


class _FileSource(Sequence):
    """Image files, opened when they are asked for."""

    def __init__(self, paths: list[str]):
        self.paths = paths

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Image.Image:
        return to_rgb(self.paths[index], self.paths[index])


def _undecoded(table: Any, column: str) -> Any:
    """The data set with image cells as `{bytes, path}`."""
    datasets = requires("datasets", "training")
    if table.features is not None and isinstance(table.features.get(column), datasets.Image):
        return table.cast_column(column, datasets.Image(decode=False))
    return table


class _ColumnSource(Sequence):
    """One column of a `datasets.Dataset`, decoded here so that every kind of image cell is treated alike."""

    def __init__(self, table: Any, column: str):
        self.table, self.column = _undecoded(table, column), column

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, index: int) -> Image.Image:
        return to_rgb(self.table[int(index)][self.column], f"row {int(index)}")


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
    if train_data_dir is not None:
        files = _list_files(train_data_dir, split)
        if files and not any(path.endswith(".parquet") for path in files):
            return _FileSource(files[:max_samples])
    table = _open_table(dataset_name, dataset_config_name, train_data_dir, split, image_column, cache_dir, False)
    if max_samples is not None:
        table = table.select(range(min(max_samples, len(table))))
    return _ColumnSource(table, image_column)


def _open_table(
    dataset_name: str | None,
    dataset_config_name: str | None,
    train_data_dir: str | None,
    split: str,
    image_column: str,
    cache_dir: str | None,
    streaming: bool,
) -> Any:
    """A `datasets.Dataset`, or an `IterableDataset`, that has the column."""
    load = requires("datasets", "training").load_dataset
    if dataset_name is not None:
        table = load(dataset_name, dataset_config_name, split=split, cache_dir=cache_dir, streaming=streaming)
    else:
        files = _list_files(train_data_dir, split)
        if not files:
            raise ValueError(f"No image or parquet file of split {split!r} found at {train_data_dir!r}.")
        kind = "parquet" if files[0].endswith(".parquet") else "imagefolder"
        if any(path.endswith(".parquet") != (kind == "parquet") for path in files):
            raise ValueError(f"{train_data_dir!r} mixes parquet files with images; give one kind.")
        table = load(kind, data_files={split: files}, split=split, cache_dir=cache_dir, streaming=streaming)
    names = table.column_names if table.column_names is not None else list(next(iter(table)))
    if image_column not in names:
        raise ValueError(f"`image_column` must be one of {names}, got {image_column!r}.")
    return table


def open_image_stream(
    dataset_name: str | None = None,
    dataset_config_name: str | None = None,
    train_data_dir: str | None = None,
    split: str = "train",
    image_column: str = "image",
    max_samples: int | None = None,
) -> Any:
    """
    Opens images as a stream: nothing is downloaded or prepared beforehand.

    Args:
        dataset_name (`str`, *optional*): Name of a data set on the Hub, or a folder that `datasets.load_dataset` understands.
        dataset_config_name (`str`, *optional*): Its configuration.
        train_data_dir (`str`, *optional*): Local images or parquet files, as in [`load_image_dataset`].
        split (`str`, defaults to `"train"`): The split.
        image_column (`str`, defaults to `"image"`): The column with the images.
        max_samples (`int`, *optional*): Take only the first so many images.

    Returns:
        `datasets.IterableDataset`: Rows whose image cell is undecoded, for [`ImageStream`].

    Raises:
        ValueError: If not exactly one place is given, no image is found, kinds are mixed, or the column is missing.
    """
    if (dataset_name is None) == (train_data_dir is None):
        raise ValueError("Give `dataset_name` or `train_data_dir` to stream from, one of them.")
    table = _open_table(dataset_name, dataset_config_name, train_data_dir, split, image_column, None, True)
    table = _undecoded(table, image_column)
    return table if max_samples is None else table.take(max_samples)
