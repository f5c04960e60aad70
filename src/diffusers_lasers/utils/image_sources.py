r"""Sources of images: a data set of the Hub, a folder of images, parquet files, or the colour photographs that
scikit-image installs.

A *source* is a sequence of RGB `PIL.Image`s, which are decoded when they are accessed. An image that cannot be decoded
raises [`UnreadableImageError`], which names the file or the row.
"""

from __future__ import annotations

import glob
import itertools
import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from .distributed import rank_and_world_size
from .image_decoding import UnreadableImageError, to_rgb
from .image_files import ImageFiles, find_image_files
from .import_utils import requires


__all__ = [
    "BUNDLED_PHOTOS",
    "UnreadableImageError",
    "bundled_photos",
    "load_image_dataset",
    "open_image_stream",
    "to_rgb",
]

#: The colour photographs in the scikit-image wheel, without `motorcycle_right`, which is nearly the same as
#: `motorcycle_left`.
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
_CELL_TYPES = ("binary", "large_binary", "string", "large_string")  # of a cell with the content or path of a file
_MOST_SHARDS = 1024  # in a stream of files
_logger = logging.getLogger(__name__)


class _FileSource(Sequence):
    """Image files, which are opened when they are accessed."""

    def __init__(self, paths: list[str]):
        self.paths = paths

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Image.Image:
        return to_rgb(self.paths[index], self.paths[index])

    def content(self, index: int) -> bytes:
        """The file's bytes."""
        return Path(self.paths[index]).read_bytes()


def undecoded(table: Any, column: str) -> Any:
    """
    Selects the column with the images and turns off its decoding by `datasets`, so that only [`to_rgb`] decodes images.

    Args:
        table (`datasets.Dataset` or `datasets.IterableDataset`): The data set.
        column (`str`): The column with the images.

    Returns:
        `datasets.Dataset` or `datasets.IterableDataset`: The data set with this column only. Its image cells are
        `{bytes, path}`.

    Raises:
        ValueError: If there is no such column, or if it has none of the types of images: image, binary, path and
            `{bytes, path}`.
    """
    datasets = requires("datasets", "training")
    names = table.column_names if table.column_names is not None else list(next(iter(table), {}))
    if column not in names:
        raise ValueError(f"`image_column` must be one of {names}, got {column!r}.")
    table = table.select_columns([column])
    kind = None if table.features is None else table.features[column]
    if isinstance(kind, datasets.Image):
        return table.cast_column(column, datasets.Image(decode=False))
    is_cell = isinstance(kind, dict) and {"bytes", "path"} & set(kind)
    if kind is not None and not is_cell and getattr(kind, "dtype", None) not in _CELL_TYPES:
        raise ValueError(f"`image_column` must name a column of images, {column!r} holds {_in_words(kind)}.")
    if getattr(kind, "dtype", "").endswith("string"):  # these must be paths, not captions
        first = [str(row[column]) for row in itertools.islice(table, 8)]
        if first and not any(os.path.isfile(path) for path in first):
            raise ValueError(
                f"`image_column` must name a column of images, {column!r} holds texts such as {first[0][:80]!r}."
            )
    return table


def _in_words(kind: Any) -> str:
    return getattr(kind, "dtype", None) or type(kind).__name__


class _ColumnSource(Sequence):
    """One column of a `datasets.Dataset`. All kinds of image cells are decoded by `to_rgb`."""

    def __init__(self, table: Any, column: str):
        self.table, self.column = undecoded(table, column), column
        self.others = table.remove_columns(column)  # of the caller: captions, labels

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, index: int) -> Image.Image:
        return to_rgb(self.table[int(index)][self.column], f"row {int(index)}")

    def content(self, index: int) -> bytes:
        """The bytes of the image's file."""
        cell = self.table[int(index)][self.column]
        if isinstance(cell, dict):
            cell = cell["path"] if cell.get("bytes") is None else cell["bytes"]
        return Path(cell).read_bytes() if isinstance(cell, str) else bytes(cell)


def bundled_photos(split: str = "train") -> Sequence:
    """
    The colour photographs that are part of the scikit-image package. Nothing is downloaded.

    Args:
        split (`str`, defaults to `"train"`):
            `"train"` (six photographs) or `"validation"` (two photographs of other scenes).

    Returns:
        `Sequence[PIL.Image.Image]`: The photographs, RGB, of 451 × 300 to 1411 × 1411 pixels.

    Raises:
        ValueError: If `split` is unknown.
        ImportError: If scikit-image is missing (`pip install diffusers_lasers[training]`).
    """
    if split not in BUNDLED_PHOTOS:
        raise ValueError(
            f"`split` must be one of {sorted(BUNDLED_PHOTOS)} for the bundled photographs, got {split!r}."
        )
    folder = Path(requires("skimage", "training").__file__).parent / "data"
    return _FileSource([str(folder / name) for name in BUNDLED_PHOTOS[split]])


def _report(sentence: str) -> None:
    """Logs on rank 0 which images were found. Without a configuration of logging, this goes to stderr."""
    if rank_and_world_size()[0] == 0:
        _logger.warning(sentence)


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

    One line is logged as a warning: the number of images that were found, and what was left out and why. Without a
    configuration of logging, it goes to stderr.

    Args:
        dataset_name (`str`, *optional*):
            Name of a data set on the Hub, or a folder that `datasets.load_dataset` understands.
        dataset_config_name (`str`, *optional*): Its configuration.
        train_data_dir (`str`, *optional*):
            A folder of images (searched recursively) or of parquet files, one file of either kind, or a pattern such
            as `"data/train-*.parquet"`. All files of a folder are taken, with two exceptions: if it has folders
            `train/` and `validation/` (or `valid/`, `val/`, `test/`) at its top, or parquet files named like
            `train-00000-of-00003.parquet`, only those of `split` are taken. Without this and without `dataset_name`,
            the bundled photographs are taken.
        split (`str`, defaults to `"train"`):
            The split. For local files, `"validation"` is the first of `validation`, `valid`, `val` and `test` that
            exists.
        image_column (`str`, defaults to `"image"`):
            The column with the images, in parquet as `{bytes, path}` or bytes.
        max_samples (`int`, *optional*): Number of images to take from the start, at least 1. Defaults to all.
        cache_dir (`str`, *optional*): Cache folder of `datasets`.

    Returns:
        `Sequence[PIL.Image.Image]`: RGB images, which are decoded when they are accessed.

    Raises:
        ValueError: If both a name and a folder are given, if no image is found, if images and parquet files are mixed,
            or if the column is missing or holds no images.
    """
    if dataset_name is not None and train_data_dir is not None:
        raise ValueError("Give `dataset_name` or `train_data_dir`, not both.")
    if max_samples is not None and max_samples < 1:
        raise ValueError(f"`max_samples` must be at least 1, got {max_samples!r}.")
    if dataset_name is None and train_data_dir is None:
        source = _FileSource(bundled_photos(split).paths[:max_samples])
        _report(f"Photographs of scikit-image: {len(source)} images taken, split {split!r}.")
        return source
    files = _find(train_data_dir, split) if train_data_dir is not None else None
    if files is not None and not files.are_parquet:
        return _FileSource(files.paths[:max_samples])
    table = _open_table(dataset_name, dataset_config_name, files, split, cache_dir, False)
    if max_samples is not None:
        table = table.select(range(min(max_samples, len(table))))
    source = _ColumnSource(table, image_column)
    if len(source) == 0:
        raise ValueError(f"{dataset_name or train_data_dir!r} holds no image of split {split!r}.")
    _report(
        f"{dataset_name or train_data_dir!r}: {len(source)} images taken, split {split!r}, column {image_column!r}."
    )
    return source


def _find(location: str, split: str) -> ImageFiles:
    """Finds files and reports them. Raises a `ValueError` if there are none."""
    files = find_image_files(location, split)
    if not files.paths:
        raise ValueError(f"No image or parquet file of split {split!r} found at {location!r}, {files.left_out}.")
    _report(str(files))
    return files


def _open_table(
    dataset_name: str | None,
    dataset_config_name: str | None,
    files: ImageFiles | None,
    split: str,
    cache_dir: str | None,
    streaming: bool,
) -> Any:
    """Opens a named data set or parquet files as a `datasets.Dataset` or an `IterableDataset`."""
    load = requires("datasets", "training").load_dataset
    if files is not None:
        # `datasets` treats paths as patterns
        data_files = {split: [glob.escape(os.path.abspath(path)) for path in files.paths]}
        return load("parquet", data_files=data_files, split=split, cache_dir=cache_dir, streaming=streaming)
    if os.path.isdir(dataset_name) and glob.has_magic(os.path.abspath(dataset_name)):
        raise ValueError(
            "`dataset_name` must be a folder without *, ? and [ in its path, which `datasets` treats as patterns, got "
            f"{dataset_name!r}: give it as `train_data_dir`."
        )
    return load(dataset_name, dataset_config_name, split=split, cache_dir=cache_dir, streaming=streaming)


def open_image_stream(
    dataset_name: str | None = None,
    dataset_config_name: str | None = None,
    train_data_dir: str | None = None,
    split: str = "train",
    image_column: str = "image",
    max_samples: int | None = None,
) -> Any:
    """
    Opens images as a stream. Nothing is downloaded or prepared beforehand.

    Args:
        dataset_name (`str`, *optional*): Name of a data set on the Hub, or a folder that `datasets.load_dataset`
            understands.
        dataset_config_name (`str`, *optional*): Its configuration.
        train_data_dir (`str`, *optional*): Local images or parquet files, as in [`load_image_dataset`].
        split (`str`, defaults to `"train"`): The split.
        image_column (`str`, defaults to `"image"`): The column with the images.
        max_samples (`int`, *optional*): Number of images to take from the start. Defaults to all.

    Returns:
        `datasets.IterableDataset`: Rows with undecoded image cells, for [`ImageStream`]. Image files come in the order
        of their names. If there are more than 1,024, they are dealt to 1,024 shards, which are read one after the
        other.

    Raises:
        ValueError: If not exactly one of `dataset_name` and `train_data_dir` is given, if no image is found, if images
            and parquet files are mixed, or if the column is missing or holds no images.
    """
    if (dataset_name is None) == (train_data_dir is None):
        raise ValueError("Give `dataset_name` or `train_data_dir` to stream from, exactly one of them.")
    files = _find(train_data_dir, split) if train_data_dir is not None else None
    if files is not None and not files.are_parquet:
        datasets = requires("datasets", "training")
        features = datasets.Features({image_column: datasets.Image(decode=False)})
        paths = files.paths[:max_samples]
        # each shard takes files at a regular distance, so that a few shards of a sorted folder hold all its classes
        shards = [paths[start::_MOST_SHARDS] for start in range(min(len(paths), _MOST_SHARDS))]
        arguments = {"shards": shards, "column": image_column}
        return datasets.IterableDataset.from_generator(_file_cells, features=features, gen_kwargs=arguments)
    table = undecoded(_open_table(dataset_name, dataset_config_name, files, split, None, True), image_column)
    if dataset_name is not None:
        _report(f"{dataset_name!r}: streamed, split {split!r}, column {image_column!r}.")
    return table if max_samples is None else table.take(max_samples)


def _file_cells(shards: list[list[str]], column: str) -> Iterator[dict[str, Any]]:
    """The undecoded rows of files. `datasets` shuffles the shards and deals them to ranks and workers."""
    for path in itertools.chain.from_iterable(shards):
        yield {column: {"bytes": None, "path": path}}
