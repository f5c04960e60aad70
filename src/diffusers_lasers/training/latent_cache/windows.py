"""Which parts of an image a cache holds: its bucket of size and aspect ratio, windows of that shape, mirrored or not.

An image goes to the largest resolution that does not enlarge it, else to the smallest, and there to the bucket whose
aspect ratio is nearest. Its first window is the largest one in its middle. Further ones are smaller by 15 %, at drawn
places. Windows follow from the image's size, the settings and the window's number alone, and so are the same in every
process and run.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from PIL import Image

from ...utils.config_checks import Flag, Integer, Number, Sequence, check_fields


__all__ = ["Window", "Windows"]

_ZOOM = 1.15
_FIELDS = {
    "resolutions": Sequence(Integer(1, 2**15)),
    "max_aspect_ratio": Number(low=1.0, high=16.0),
    "multiple": Integer(1, 2**12),
    "crops": Integer(1, 1024),
    "flip": Flag(),
    "seed": Integer(0, 2**31 - 1),
}


@dataclass(frozen=True)
class Window:
    """A part of an image: `box` is (left, top, width, height) in it, `size` (height, width) what becomes of it."""

    crop: int
    box: tuple[int, int, int, int]
    size: tuple[int, int]
    flip: bool

    def pixels(self, image: Image.Image) -> np.ndarray:
        """The window `(height, width, 3)`, uint8 (Lanczos)."""
        left, top, width, height = self.box
        box = (left, top, left + width, top + height)
        part = np.asarray(image.resize(self.size[::-1], Image.Resampling.LANCZOS, box=box))
        return part[:, ::-1] if self.flip else part


@dataclass(frozen=True)
class Windows:
    """
    Settings of the windows.

    Args:
        resolutions (`tuple[int, ...]`): Sides of squares in pixels; a bucket has at most as many pixels as one.
        max_aspect_ratio (`float`, defaults to 1.0): Longest to shortest side of a bucket, 1 to 16; 1 is squares only.
        multiple (`int`, defaults to 64): What sides of buckets that are no squares are multiples of, in pixels.
        crops (`int`, defaults to 1): Windows of each image.
        flip (`bool`, defaults to `False`): Whether each is there mirrored left to right, too.
        seed (`int`, defaults to 0): Seed of drawn places.

    Raises:
        ValueError: If a value is out of range.
    """

    resolutions: tuple[int, ...]
    max_aspect_ratio: float = 1.0
    multiple: int = 64
    crops: int = 1
    flip: bool = False
    seed: int = 0

    def __post_init__(self):
        check_fields(_FIELDS, asdict(self))

    @property
    def per_image(self) -> int:
        """Windows of an image, mirrored ones too."""
        return self.crops * (1 + self.flip)

    def settings(self) -> dict[str, Any]:
        """The settings, as JSON holds them."""
        return asdict(self) | {"resolutions": list(self.resolutions)}

    def keys(self, content: bytes, identity: str) -> list[str]:
        """
        What tells the windows of an image file apart from all others: SHA-256 of the file, the settings, the window's
        number, and `identity`, which tells how it is coded.
        """
        # not the number of crops and flips: a window stays the same where others come
        digest = hashlib.sha256(content).hexdigest() + identity
        settings = [self.resolutions, self.max_aspect_ratio, self.multiple, self.seed]
        names = (f"{digest} {settings} {crop} {flip}" for crop, flip in self._numbers())
        return [hashlib.sha256(name.encode()).hexdigest() for name in names]

    def of(self, size: tuple[int, int]) -> list[Window]:
        """The windows of an image of (width, height) pixels."""
        width, height = size
        bucket = self.bucket(size)
        scale = min(width / bucket[1], height / bucket[0])
        found = []
        for crop, flip in self._numbers():
            shrunk = scale / _ZOOM if crop else scale
            taken = [max(1, min(side, round(part * shrunk))) for side, part in zip((width, height), bucket[::-1])]
            spare = [width - taken[0], height - taken[1]]
            draws = np.random.default_rng([self.seed, crop, width, height]).random(2) if crop else (0.5, 0.5)
            corner = [min(round(draw * side), side) for draw, side in zip(draws, spare)]
            found.append(Window(crop, (*corner, *taken), bucket, bool(flip)))
        return found

    def bucket(self, size: tuple[int, int]) -> tuple[int, int]:
        """Height and width of the bucket of an image of (width, height) pixels."""
        width, height = size
        ratio = math.log(width / height)
        best = None
        for resolution in sorted(self.resolutions):
            shapes = self._shapes(resolution)
            shape = min(shapes, key=lambda shape: (abs(math.log(shape[1] / shape[0]) - ratio), -shape[0] * shape[1]))
            if best is None or (width >= shape[1] and height >= shape[0]):
                best = shape
        return best

    def _numbers(self) -> Iterator[tuple[int, int]]:
        return ((crop, flip) for crop in range(self.crops) for flip in range(1 + self.flip))

    def _shapes(self, resolution: int) -> list[tuple[int, int]]:
        """Heights and widths at a resolution: the square, and for each side the longest other side."""
        shapes = {(resolution, resolution)}
        for side in range(self.multiple, resolution, self.multiple):
            long = resolution**2 // side // self.multiple * self.multiple
            if side < long <= self.max_aspect_ratio * side:
                shapes |= {(side, long), (long, side)}
        return sorted(shapes)
