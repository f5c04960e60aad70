"""Image files of other formats at a given size: JPEG, WebP, AVIF and JPEG XL, as Pillow writes them."""

from __future__ import annotations

import importlib
import io
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image, features


#: Name -> Pillow's format, its options besides `quality`, the range of `quality`, and how colours may be sampled.
FORMATS = {
    "jpeg": ("JPEG", {"optimize": True, "progressive": True}, (1, 100), ("4:2:0", "4:4:4")),
    "webp": ("WEBP", {"method": 6}, (0, 100), (None,)),
    "avif": ("AVIF", {"speed": 6}, (0, 100), ("4:2:0", "4:4:4")),
    "jxl": ("JXL", {"effort": 7}, (1, 99), (None,)),
}


class PictureFile(NamedTuple):
    """
    A picture as a file.

    Args:
        quality (`int`): Its quality, in the range of the format.
        subsampling (`str`, *optional*): How its colours are sampled, where the format leaves the choice.
        data (`bytes`): The file.
    """

    quality: int
    subsampling: str | None
    data: bytes


def available_formats(names: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """Of some keys of `FORMATS` those that Pillow can write here, and why each other one cannot be written."""
    found, missing = [], {}
    for name in names:
        if name == "jxl":
            try:
                importlib.import_module("pillow_jxl")
            except ImportError:
                missing[name] = "install `pillow-jxl-plugin`, or diffusers_lasers[benchmark]"
                continue
        elif name in ("webp", "avif") and not features.check(name):
            missing[name] = "this Pillow was built without it"
            continue
        found.append(name)
    return found, missing


def encode_picture(image: Image.Image, name: str, quality: int, subsampling: str | None = None) -> bytes:
    """A picture as a file of a format, one of the keys of `FORMATS`, at a quality in its range."""
    kind, options, _, _ = FORMATS[name]
    chosen = {} if subsampling is None else {"subsampling": subsampling}
    buffer = io.BytesIO()
    image.save(buffer, kind, quality=quality, **options, **chosen)
    return buffer.getvalue()


def best_file(image: Image.Image, name: str, limit: int) -> PictureFile:
    """
    Of the files of at most `limit` bytes in a format, one of the keys of `FORMATS`, the one of the highest quality.
    Where colours may be sampled in two ways, the one with the lesser squared error over RGB. The shortest file of all
    if none is so short.
    """
    found = [_highest(image, name, limit, subsampling) for subsampling in FORMATS[name][3]]
    short = [file for file in found if len(file.data) <= limit]
    if len(short) < 2:
        return short[0] if short else min(found, key=lambda file: len(file.data))
    return min(short, key=lambda file: _squared_error(image, file.data))


def _highest(image: Image.Image, name: str, limit: int, subsampling: str | None) -> PictureFile:
    """The highest quality whose file has at most `limit` bytes, by bisection; or the lowest of all."""
    low, high = FORMATS[name][2]
    best = PictureFile(low, subsampling, encode_picture(image, name, low, subsampling))
    if len(best.data) > limit:
        return best
    low += 1
    while low <= high:
        middle = (low + high) // 2
        data = encode_picture(image, name, middle, subsampling)
        if len(data) <= limit:
            best, low = PictureFile(middle, subsampling, data), middle + 1
        else:
            high = middle - 1
    return best


def _squared_error(image: Image.Image, data: bytes) -> int:
    decoded = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"), dtype=np.int64)
    return int(((decoded - np.asarray(image.convert("RGB"))) ** 2).sum())
