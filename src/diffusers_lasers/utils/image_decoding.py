r"""Decoding of images: the formats that are read, and the conversion of any image to an upright RGB picture of 8 bits.

All parts of the package decode images here. An image file is one that a registered reader of Pillow can decode
([`picture_formats`]). [`to_rgb`] converts files, bytes, arrays and pictures of every mode to RGB. Values of 16 bits are
divided by 65535, floats must be in [0, 1], and transparent parts are laid on white. Of the EXIF data only the
orientation is used.
"""

from __future__ import annotations

import io
import os
from typing import Any

import numpy as np
from PIL import Image

from .command_line import one_line


__all__ = ["UnreadableImageError", "picture_formats", "to_rgb"]

# Readers of Pillow that are not used: documents that other programs render, films, and scientific data without a range
# of values.
_NO_PICTURES = {"BUFR", "EPS", "FITS", "GRIB", "HDF5", "IPTC", "MCIDAS", "MPEG", "PDF", "SPIDER", "WMF"}
_ORIENTATION = 0x0112
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class UnreadableImageError(ValueError):
    """An image cannot be decoded. The message is one sentence that names the image."""


def picture_formats() -> dict[str, set[str]]:
    """
    The formats that are read, with the suffixes of their files.

    They are those of Pillow's registered readers, including imported plug-ins.

    Returns:
        `dict[str, set[str]]`: For each format, by Pillow's name, its suffixes in lower case with the dot. The order is
        that in which Pillow tries the formats.
    """
    Image.init()
    formats: dict[str, set[str]] = {
        name: set() for name in Image.ID if name in Image.OPEN and name not in _NO_PICTURES
    }
    for suffix, name in Image.registered_extensions().items():
        # an .mpo file is opened by the reader of JPEG
        name = "JPEG" if name == "MPO" else name
        if name in formats:
            formats[name].add(suffix.lower())
    return formats


def to_rgb(image: Any, name: str) -> Image.Image:
    """
    Converts an image to an upright RGB picture. Of an animation, the first frame is taken.

    Args:
        image (`PIL.Image.Image`, `str`, `os.PathLike`, `bytes`, a binary file, `numpy.ndarray` or `dict`):
            A picture of any mode, a path, a file's contents, an array `(H, W)` or `(H, W, 1 to 4)` of bool, uint8,
            uint16 or of floats in [0, 1], or a parquet cell `{bytes, path}`.
        name (`str`): Name of the image in an error, if it has no path.

    Returns:
        `PIL.Image.Image`: The picture. Levels of 16 bits are divided by 257 and rounded. Transparent parts are laid on
        white.

    Raises:
        UnreadableImageError: If it cannot be decoded, has more pixels than Pillow takes (about 179 million, looked at
            before decoding), or its values have no known range.
    """
    if type(image) is Image.Image and image.mode == "RGB" and not image.info:
        return image  # as it comes from here
    if isinstance(image, dict):
        name = image.get("path") or name
        image = image["bytes"] if image.get("bytes") is not None else image.get("path")
    if isinstance(image, (str, os.PathLike)):
        name = os.fspath(image)
    try:
        if image is None:
            raise ValueError("its cell is empty")
        if isinstance(image, (str, os.PathLike)) and os.path.exists(image) and not os.path.isfile(image):
            raise ValueError("it is not a regular file")
        if isinstance(image, np.ndarray):
            image = Image.fromarray(_array_levels(image))
        if isinstance(image, Image.Image):
            return _picture(image)
        if isinstance(image, (bytes, bytearray, memoryview)):
            image = io.BytesIO(image)
        if not (isinstance(image, (str, os.PathLike)) or hasattr(image, "read")):
            raise TypeError(f"it is not an image but of type {type(image).__name__}")
        with Image.open(image, formats=list(picture_formats())) as opened:
            return _picture(opened)
    except MemoryError:  # not an error of the image
        raise
    except Exception as error:  # for a damaged file, Pillow's readers raise any error: KeyError, zlib.error …
        what = one_line(error).rstrip(".")
        raise UnreadableImageError(f"The image {name!r} cannot be read: {what}.") from error


def _picture(image: Image.Image) -> Image.Image:
    """Converts an image of Pillow to a new, upright RGB picture without metadata."""
    if min(image.size) < 1:
        raise ValueError(f"it has {image.width} × {image.height} pixels")
    image.load()
    picture = _on_white(image)
    turn = _TURNS.get(_orientation(image))
    if turn is not None:
        picture = picture.transpose(turn)
    picture.info = {}
    return picture


def _orientation(image: Image.Image) -> Any:
    """The EXIF orientation, 1 if there is none, or `None` if the EXIF data are damaged."""
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except MemoryError:
        raise
    except Exception:  # damaged EXIF data raise any error, while the pixels are good
        return None


def _on_white(image: Image.Image) -> Image.Image:
    """The colours with 8 bits, laid on white where they are transparent."""
    if image.mode[0] in "IF":
        levels = _grey_levels(image)
        if "transparency" in image.info:  # the level that is transparent
            levels[np.asarray(image) == image.info["transparency"]] = 255
        return Image.fromarray(levels).convert("RGB")
    if not image.has_transparency_data:
        return image.convert("RGB")
    key = image.info.get("transparency")
    # in a file of 16 bits, of which Pillow keeps the upper 8
    if image.mode == "RGB" and isinstance(key, tuple) and max(key) > 255:
        image = image.copy()
        image.info["transparency"] = tuple(level >> 8 for level in key)
    colours = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), colours).convert("RGB")


def _grey_levels(image: Image.Image) -> np.ndarray:
    """Converts a picture of mode `I;16…`, `I` or `F` to new uint8 levels `(H, W)`."""
    values = np.asarray(image)
    if image.mode == "I":
        if image.format not in ("PNG", "PPM"):  # only for these does Pillow store 16 bits in mode I
            raise ValueError("its integers of 32 bits have no known range: save it with 8 or 16 bits")
        values = values.clip(0, 65535).astype(np.uint16)
    elif image.mode != "F":
        tags = getattr(image, "tag_v2", {})
        values = values.astype(np.uint16)
        if tags.get(258) == (12,):  # TIFF's bits per sample
            values = values * np.uint16(16) + (values >> 8)
        if tags.get(262) == 0:  # in this TIFF, zero is white; Pillow handles that at 8 bits only
            values = 65535 - values
    return _array_levels(values)


def _array_levels(values: np.ndarray) -> np.ndarray:
    """Converts an array to levels of 8 bits, `(H, W)` or `(H, W, 2 to 4)`."""
    if values.ndim == 3 and values.shape[2] == 1:
        values = values[..., 0]
    if values.ndim not in (2, 3) or (values.ndim == 3 and not 2 <= values.shape[2] <= 4) or 0 in values.shape:
        raise ValueError(f"its shape must be (height, width) or (height, width, 1 to 4), got {values.shape}")
    if values.dtype.kind == "f":
        if not (values.min() >= 0 and values.max() <= 1):  # also false for NaN
            raise ValueError(f"its floats must be in [0, 1], got values in [{values.min():.4g}, {values.max():.4g}]")
        return (values * 255).round().astype(np.uint8)
    if values.dtype == bool:
        return values.astype(np.uint8) * np.uint8(255)
    if values.dtype.kind == "u" and values.dtype.itemsize == 2:
        return ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)
    if values.dtype != np.uint8:
        raise ValueError(f"its values must be bool, uint8, uint16 or floats in [0, 1], got {values.dtype}")
    return np.ascontiguousarray(values)
