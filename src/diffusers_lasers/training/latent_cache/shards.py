"""The parquet files of a latent cache: what their rows are, their names, and how damage is found.

A shard holds the windows of a run of images. Its name is its number and a digest of all that it is made from, so that
a file of a wanted name is what is wanted, and old and new shards stand beside each other until the cache is whole.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ...utils.files import atomic_file
from ...utils.import_utils import requires


__all__ = ["DATA", "OWN_COLUMNS", "SHARD_NAME", "read_shard", "shard_name", "write_shard"]

DATA = "data"  # folder of the shards
SHARD_NAME = re.compile(r"[0-9]{5,}-[0-9a-f]{16}\.parquet")
#: Columns of a cache by name, with their types. Those of the caller come after them.
OWN_COLUMNS = {
    "key": "string",
    "code": "binary",
    "deviation": "binary",
    "height": "int32",  # of the window, in pixels
    "width": "int32",
    "original_height": "int32",  # of the image
    "original_width": "int32",
    "crop_top": "int32",  # of the window in the image
    "crop_left": "int32",
    "crop_height": "int32",
    "crop_width": "int32",
    "crop": "int32",  # number of the window
    "flip": "bool",
    "signal": "float32",  # Σ‖z − m‖² of the latents z, with the mean m of the sample
    "noise": "float32",  # Σ‖z − ẑ‖²
}


def shard_name(number: int, keys: Iterable[str], values: Any) -> str:
    """
    The name of a shard.

    Args:
        number (`int`): Number of the shard, from 0.
        keys (`Iterable[str]`): Keys of its rows.
        values (`pyarrow.Table`): The caller's columns of its images.
    """
    digest = hashlib.sha256(json.dumps([list(keys), values.column_names]).encode())
    digest.update(repr(values.to_pydict()).encode())
    return f"{number:05d}-{digest.hexdigest()[:16]}.parquet"


def write_shard(path: Path, rows: list[dict[str, Any]], values: Any, images: list[int]) -> None:
    """
    Writes a shard, completely or not at all.

    Args:
        path (`Path`): The file.
        rows (`list[dict[str, Any]]`): The rows, with those of `OWN_COLUMNS` that the cache has.
        values (`pyarrow.Table`): The caller's columns, a row for each image.
        images (`list[int]`): Row in `values` of each row.
    """
    pyarrow, parquet = requires("pyarrow", "training"), requires("pyarrow.parquet", "training")
    names = [name for name in OWN_COLUMNS if name != "deviation" or any("deviation" in row for row in rows)]
    types = {"string": pyarrow.string(), "binary": pyarrow.binary(), "bool": pyarrow.bool_()}
    types |= {"int32": pyarrow.int32(), "float32": pyarrow.float32()}
    columns = {name: pyarrow.array([row[name] for row in rows], types[OWN_COLUMNS[name]]) for name in names}
    table = pyarrow.table(columns)
    taken = values.take(pyarrow.array(images, pyarrow.int64()))
    for name in values.column_names:
        table = table.append_column(name, taken[name])
    kept = json.loads((values.schema.metadata or {}).get(b"huggingface", b"{}")).get("info", {}).get("features")
    metadata = None
    if kept is not None:  # names of classes, for `datasets`
        features = {name: {"dtype": OWN_COLUMNS[name], "_type": "Value"} for name in names}
        features |= {name: kept[name] for name in values.column_names}
        metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    with atomic_file(path) as file:
        parquet.write_table(
            table.replace_schema_metadata(metadata),
            file,
            compression="ZSTD",
            compression_level=1,
            use_dictionary=[name for name, kind in OWN_COLUMNS.items() if kind in ("int32", "bool") and name in names],
            write_statistics=False,
            write_page_checksum=True,
        )


def read_shard(path: Path, columns: list[str] | None = None) -> Any:
    """
    A shard's rows, with the checksums of their pages compared.

    Args:
        path (`Path`): The file.
        columns (`list[str]`, *optional*): Columns to read. Defaults to all.

    Returns:
        `pyarrow.Table`: The rows.

    Raises:
        ValueError: If the file is damaged; the error names it.
    """
    pyarrow, parquet = requires("pyarrow", "training"), requires("pyarrow.parquet", "training")
    try:
        return parquet.ParquetFile(path, page_checksum_verification=True).read(columns)
    except (pyarrow.ArrowException, OSError) as error:
        raise ValueError(f"The shard {path} is damaged: {' '.join(str(error).split())}.") from error
