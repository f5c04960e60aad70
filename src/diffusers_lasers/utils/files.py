"""Files that are whole or the old ones: written under another name first, and renamed."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    from PIL import Image


__all__ = ["save_image", "write_bytes", "write_json", "write_text"]


def write_bytes(path: str | os.PathLike, data: bytes) -> None:
    """
    Writes a file of bytes.

    Args:
        path (`str` or `os.PathLike`): The file; its folder exists. `path` + `.tmp` is overwritten on the way.
        data (`bytes`): What it shall hold.
    """
    scratch = Path(f"{os.fspath(path)}.tmp")
    scratch.write_bytes(data)
    os.replace(scratch, path)


def write_text(path: str | os.PathLike, text: str) -> None:
    """
    Writes a text file, UTF-8.

    Args:
        path (`str` or `os.PathLike`): The file; its folder exists. `path` + `.tmp` is overwritten on the way.
        text (`str`): What it shall hold.
    """
    write_bytes(path, text.encode("utf-8"))


def write_json(path: str | os.PathLike, value: Any) -> None:
    """
    Writes a JSON file. Infinities and NaN, which JSON does not have as numbers, become strings, and so does what it does not know.

    Args:
        path (`str` or `os.PathLike`): The file; its folder exists.
        value: What it shall hold.
    """
    text = json.dumps(_finite(value), indent=2, ensure_ascii=False, allow_nan=False, default=str)
    write_text(path, text + "\n")


def save_image(path: str | os.PathLike, image: Image.Image) -> None:
    """
    Writes a picture.

    Args:
        path (`str` or `os.PathLike`): The file, whose suffix says the format; its folder exists.
        image (`PIL.Image.Image`): The picture.
    """
    path = Path(path)
    scratch = path.with_name(f"{path.stem}.tmp{path.suffix}")
    image.save(scratch)
    os.replace(scratch, path)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(entry) for entry in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
