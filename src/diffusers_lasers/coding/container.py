r"""The bytes around a packed code: what a decoder needs beside its model, and how it finds a wrong or damaged file.

One container for the codes of all models. A header of 37 bytes, little-endian, stands before the payload:

    magic "DLBC", version 2, kind (0 sparse, 1 index, 2 patch)   4 + 1 + 1 bytes
    fingerprint of the model                                     4
    images, latent height and width, image height and width      5 · 4, image sizes 0 where there were no images
    slots a site, bits of a coefficient (0: float32)             2 + 1
    CRC-32 of all bytes before and after this one                4

Version 1 is the same without kind 2, and is still read. A patch codec used to write a format of its own, "MBVQ1",
whose header no checksum covered: a changed byte in it went unseen, so that it is refused.

A checksum proves nothing about who wrote a file, so that the header is checked too. All its numbers have ranges, and a
code of more sites than the reader allows is refused before memory is taken for it ([`check_sites`]).
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from ..utils.config_checks import Integer, Optional, Sequence, Word, check_fields


__all__ = ["MAX_SITES", "CodeHeader", "check_sites", "fingerprint", "pack_container", "unpack_container"]

MAX_SITES = 2**24  # an image of 16384 × 16384 pixels where a site has 4 × 4 of them

_MAGIC, _VERSIONS = b"DLBC", (1, 2)
_OLD_CODEC = b"MBVQ1"
_KINDS = ("sparse", "index", "patch")
_SIZE = Sequence(Integer(1, 2**32 - 1), least=2, most=2)
_ALLOWED = {
    "kind": Word(*_KINDS),
    **dict.fromkeys(("fingerprint", "batch"), Integer(0, 2**32 - 1)),
    "latent_size": _SIZE,
    "image_size": Optional(_SIZE),
    "slots": Integer(1, 2**16 - 1),
    "coefficient_bits": Optional(Integer(1, 16)),
}
_FIELDS = struct.Struct("<4sBB6IHB")
_CHECKSUM = struct.Struct("<I")


@dataclass(frozen=True)
class CodeHeader:
    """
    What a packed code says about itself.

    Args:
        kind (`str`): `"sparse"`, `"index"`, or `"patch"` for indices of a [`ModelBasedVQCodec`].
        fingerprint (`int`): 32 bits that tell the model.
        batch (`int`): Images B, 0 or more.
        latent_size (`tuple[int, int]`): Height and width of the latents, or in patches.
        image_size (`tuple[int, int]`, *optional*): Height and width of the images.
        slots (`int`): Slots a site, from 1 to 65535.
        coefficient_bits (`int`, *optional*): Bits of a coefficient, 1 to 16; `None` for float32, and for codes without
            coefficients.

    Raises:
        ValueError: If a value is out of range.
    """

    kind: str
    fingerprint: int
    batch: int
    latent_size: tuple[int, int]
    image_size: tuple[int, int] | None
    slots: int
    coefficient_bits: int | None = None

    def __post_init__(self):
        check_fields(_ALLOWED, vars(self))
        if self.coefficient_bits is not None and self.kind != "sparse":
            raise ValueError(f"`coefficient_bits` must be None for kind {self.kind!r}, got {self.coefficient_bits!r}.")


def check_sites(batch: int, grid: tuple[int, int], max_sites: int = MAX_SITES, name: str = "max_sites") -> None:
    """
    Refuses codes that are larger than their reader allows. The payload alone is no bound: where a site has one possible
    value it costs no bits, a header of 37 bytes may then name any number of sites, and a decoder's images are larger
    than its codes.

    Args:
        batch (`int`): Images; none count as one, since an empty batch has a size too.
        grid (`tuple[int, int]`): Sites, or pixels, down and across.
        max_sites (`int`, defaults to 2²⁴): Most sites, or pixels, of all images together.
        name (`str`, defaults to `"max_sites"`): What the caller calls the limit.

    Raises:
        ValueError: If there are more, or the limit is no positive integer.
    """
    check_fields({name: Integer(1, 2**63 - 1)}, {name: max_sites})
    found = max(batch, 1) * grid[0] * grid[1]
    if found > max_sites:
        raise ValueError(
            f"`data` must hold at most {max_sites} {name.removeprefix('max_')}, its header names {found}: raise "
            f"`{name}` where you trust it."
        )


def fingerprint(facts: Any, tensors: Mapping[str, torch.Tensor]) -> int:
    """
    32 bits that tell a decoder from others, so that it refuses codes that are not its own. They do not depend on the
    tensors' device, nor on their dtype as long as it holds the same values.

    Args:
        facts (`Any`): Settings that decoding reads; their `repr` counts.
        tensors (`Mapping[str, torch.Tensor]`): Weights that decoding reads, by name; the order of the names does not
            count.

    Returns:
        `int`: A CRC-32, for [`CodeHeader`].
    """
    result = zlib.crc32(repr(facts).encode())
    for name, value in sorted(tensors.items()):
        numbers = value.detach().cpu().double().contiguous().numpy()
        result = zlib.crc32(numbers.tobytes(), zlib.crc32(repr((name, numbers.shape)).encode(), result))
    return result


def pack_container(header: CodeHeader, payload: bytes) -> bytes:
    """
    Header, checksum and payload as one.

    Args:
        header ([`CodeHeader`]): The header.
        payload (`bytes`): The packed code.

    Returns:
        `bytes`: 37 bytes and the payload.
    """
    sizes = (*header.latent_size, *(header.image_size or (0, 0)))
    fields = _FIELDS.pack(
        _MAGIC,
        _VERSIONS[-1],
        _KINDS.index(header.kind),
        header.fingerprint,
        header.batch,
        *sizes,
        header.slots,
        header.coefficient_bits or 0,
    )
    return fields + _CHECKSUM.pack(zlib.crc32(payload, zlib.crc32(fields))) + payload


def unpack_container(data: bytes) -> tuple[CodeHeader, bytes]:
    """
    Header and payload of packed bytes; the inverse of [`pack_container`].

    Args:
        data (`bytes`): What was packed.

    Returns:
        `tuple[CodeHeader, bytes]`: The header and the payload.

    Raises:
        ValueError: If the bytes are cut off, changed, something else, or of another version of the format.
    """
    if not isinstance(data, (bytes, bytearray, memoryview)):
        raise ValueError(f"`data` must be bytes, got {type(data).__name__}.")
    data, start = bytes(data), _FIELDS.size + _CHECKSUM.size
    if data[: len(_OLD_CODEC)] == _OLD_CODEC:
        raise ValueError(
            "`data` must be of a format whose header has a checksum, MBVQ1 of older patch codecs has none: encode the "
            "image again."
        )
    if len(data) < start or data[: len(_MAGIC)] != _MAGIC:
        raise ValueError("`data` must be the packed code of a bottleneck or a codec, it is cut off or something else.")
    _, version, kind, mark, batch, *sizes, slots, bits = _FIELDS.unpack_from(data)
    if version not in _VERSIONS:
        raise ValueError(
            f"`data` must be of version {' or '.join(map(str, _VERSIONS))} of the format, it is of version {version}."
        )
    payload = data[start:]
    (checksum,) = _CHECKSUM.unpack_from(data, _FIELDS.size)
    if zlib.crc32(payload, zlib.crc32(data[: _FIELDS.size])) != checksum:
        raise ValueError("`data` must be whole, it is cut off or changed.")
    if kind >= len(_KINDS) - (version == 1):
        raise ValueError(f"`data` must hold a code of a kind that version {version} has, got {kind}.")
    image_size = tuple(sizes[2:]) if any(sizes[2:]) else None
    try:
        header = CodeHeader(_KINDS[kind], mark, batch, tuple(sizes[:2]), image_size, slots, bits or None)
    except ValueError as error:
        raise ValueError("`data` must have a header in range; in it " + str(error)) from error
    return header, payload
