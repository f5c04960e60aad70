"""Image files of other formats at a given size: JPEG, WebP, AVIF and JPEG XL, as Pillow writes them."""

from __future__ import annotations

import importlib
import io
from collections.abc import Sequence

from PIL import Image, features


#: Name -> Pillow's format, its options besides `quality`, and the range of `quality`.
FORMATS = {
    "jpeg": ("JPEG", {"optimize": True, "progressive": True}, (1, 100)),
    "webp": ("WEBP", {"method": 6}, (0, 100)),
    "avif": ("AVIF", {"speed": 6}, (0, 100)),
    "jxl": ("JXL", {"effort": 7}, (1, 99)),
}


def available_formats(names: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """
    The formats that Pillow writes here.

    Args:
        names (`Sequence[str]`): Formats, among the keys of `FORMATS`.

    Returns:
        `tuple[list[str], dict[str, str]]`: Those that can be written, and why each other one cannot.
    """
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


def encode_picture(image: Image.Image, name: str, quality: int) -> bytes:
    """A picture as a file of a format, one of the keys of `FORMATS`, at a quality in its range."""
    kind, options, _ = FORMATS[name]
    buffer = io.BytesIO()
    image.save(buffer, kind, quality=quality, **options)
    return buffer.getvalue()


def best_file(image: Image.Image, name: str, limit: int) -> tuple[int, bytes]:
    """
    The file of the highest quality of at most `limit` bytes, found by bisection.

    Args:
        image (`PIL.Image.Image`): The picture.
        name (`str`): A format, one of the keys of `FORMATS`.
        limit (`int`): Bytes.

    Returns:
        `tuple[int, bytes]`: Quality and file; those of the lowest quality where even its file is longer.
    """
    low, high = FORMATS[name][2]
    best = low, encode_picture(image, name, low)
    if len(best[1]) > limit:
        return best
    low += 1
    while low <= high:
        middle = (low + high) // 2
        data = encode_picture(image, name, middle)
        if len(data) <= limit:
            best, low = (middle, data), middle + 1
        else:
            high = middle - 1
    return best
