"""The images of a latent cache with the caller's columns: captions, labels and ids, of parquet or of a metadata file.

Beside a folder of images `metadata.jsonl`, `metadata.csv` or `metadata.parquet` names the columns, as `datasets` reads
them: `file_name` is an image's path from the metadata file's folder.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ...utils.import_utils import requires


__all__ = ["ImageRows"]

NAME = "file_name"
_NAMES = ("metadata.jsonl", "metadata.csv", "metadata.parquet")


class ImageRows:
    """
    Images and their columns, by row.

    Args:
        source (`Sequence[PIL.Image.Image]`): Images of [`load_image_dataset`].
        root (`str`, *optional*): The folder that image files are in; their names are told from there.
        metadata (`str`, *optional*): A file of columns for image files. Defaults to that of their folder, if any.
        columns (`Sequence[str]`, *optional*): The columns to take. Defaults to all.

    Raises:
        ValueError: If a column is missing, the metadata do not name every image, or are given for parquet files, which
            have columns of their own.
    """

    def __init__(
        self,
        source: Sequence,
        root: str | None = None,
        metadata: str | None = None,
        columns: Sequence[str] | None = None,
    ):
        self.source = source
        paths = getattr(source, "paths", None)
        if paths is None:
            if metadata is not None:
                raise ValueError(f"`metadata` must be None for a table, which has its own columns, got {metadata!r}.")
            self._table = source.others
        else:
            self._table = _of_files(paths, root, metadata)
        known = self._table.column_names
        missing = [name for name in columns or () if name not in known]
        if missing:
            raise ValueError(f"`columns` must be some of {known}, got {missing[0]!r}.")
        self.columns = list(known if columns is None else columns)

    def __len__(self) -> int:
        return len(self.source)

    def content(self, row: int) -> bytes:
        """The bytes of an image's file."""
        return self.source.content(row)

    def name(self, row: int) -> str:
        """What an error calls an image."""
        paths = getattr(self.source, "paths", None)
        return f"row {row}" if paths is None else paths[row]

    def values(self, start: int, stop: int) -> Any:
        """The columns of some rows, as a `pyarrow.Table`."""
        table = self._table
        if hasattr(table, "with_format"):
            table = table.with_format("arrow")[start:stop]
        else:
            table = table.slice(start, stop - start)
        return table.select(self.columns)


def _of_files(paths: list[str], root: str | None, metadata: str | None) -> Any:
    """The table of columns of image files, one row for each path: its name, and the metadata."""
    pyarrow = requires("pyarrow", "training")
    if root is None or not os.path.isdir(root):
        root = os.path.commonpath([os.path.dirname(os.path.abspath(path)) for path in paths])
    names = pyarrow.table({NAME: [os.path.relpath(path, root) for path in paths]})
    if metadata is None:
        metadata = next((place for name in _NAMES if os.path.isfile(place := os.path.join(root, name))), None)
        if metadata is None:
            return names
    table = _read(metadata)
    if NAME not in table.column_names:
        raise ValueError(f"`metadata` must have a column {NAME!r}, {metadata} has {table.column_names}.")
    folder = Path(metadata).parent
    places = {os.path.realpath(folder / name): row for row, name in enumerate(table[NAME].to_pylist())}
    rows = [places.get(os.path.realpath(path)) for path in paths]
    if None in rows:
        raise ValueError(f"`metadata` must name every image, {metadata} does not name {paths[rows.index(None)]}.")
    table = table.take(np.asarray(rows, dtype=np.int64)).combine_chunks()
    return table.set_column(table.column_names.index(NAME), NAME, names[NAME])


def _read(metadata: str) -> Any:
    readers = {".jsonl": ("json", "read_json"), ".csv": ("csv", "read_csv"), ".parquet": ("parquet", "read_table")}
    module, function = readers.get(Path(metadata).suffix.lower(), (None, None))
    if module is None:
        raise ValueError(f"`metadata` must be a .jsonl, .csv or .parquet file, got {metadata!r}.")
    pyarrow = requires("pyarrow", "training")
    try:
        return getattr(requires(f"pyarrow.{module}", "training"), function)(metadata)
    except (pyarrow.ArrowException, OSError) as error:
        raise ValueError(f"`metadata` must be a file of rows, {metadata} cannot be read: {error}.") from error
