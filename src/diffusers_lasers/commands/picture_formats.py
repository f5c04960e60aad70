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


def encode_picture(image: Image.Image, name: str, quality: int) -> bytes:
    """A picture as a file of a format, one of the keys of `FORMATS`, at a quality in its range."""
    kind, options, _ = FORMATS[name]
    buffer = io.BytesIO()
    image.save(buffer, kind, quality=quality, **options)
    return buffer.getvalue()


def best_file(image: Image.Image, name: str, limit: int) -> tuple[int, bytes]:
    """
    The highest quality in a format, one of the keys of `FORMATS`, whose file has at most `limit` bytes, and that file.
    The lowest quality if even its file is longer. Found by bisection.
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
