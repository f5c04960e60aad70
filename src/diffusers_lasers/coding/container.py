r"""The bytes around a packed code: what a decoder must know beside its model, and what tells a foreign or damaged file.

A header of 37 bytes, little-endian, stands before the payload:

    magic "DLBC", version 1, kind (0 sparse, 1 index)            4 + 1 + 1 bytes
    fingerprint of the bottleneck                                4
    images, latent height and width, image height and width      5 · 4, image sizes 0 where there were no images
    slots a site, bits of a coefficient (0: float32)             2 + 1
    CRC-32 of all bytes before and after this one                4
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch


__all__ = ["CodeHeader", "fingerprint", "pack_container", "unpack_container"]

_MAGIC, _VERSION = b"DLBC", 1
_KINDS = ("sparse", "index")
_FIELDS = struct.Struct("<4sBB6IHB")
_CHECKSUM = struct.Struct("<I")


@dataclass(frozen=True)
class CodeHeader:
    """
    What a packed code says about itself.

    Args:
        kind (`str`): `"sparse"` or `"index"`.
        fingerprint (`int`): 32 bits that tell the bottleneck.
        batch (`int`): Images B.
        latent_size (`tuple[int, int]`): Height and width of the latents.
        image_size (`tuple[int, int]`, *optional*): Height and width of the images.
        slots (`int`): Slots a site, at most 65535.
        coefficient_bits (`int`, *optional*): Bits of a coefficient; `None` for float32, and for index codes.
    """

    kind: str
    fingerprint: int
    batch: int
    latent_size: tuple[int, int]
    image_size: tuple[int, int] | None
    slots: int
    coefficient_bits: int | None = None


def fingerprint(facts: Any, tensors: Mapping[str, torch.Tensor]) -> int:
    """
    32 bits that tell a decoder from others, so that it refuses codes that are not its own. They do not depend on the tensors' device, nor on their
    dtype as long as it holds the same values.

    Args:
        facts (`Any`): Settings that decoding reads; their `repr` counts.
        tensors (`Mapping[str, torch.Tensor]`): Weights that decoding reads, by name; the order of the names does not count.

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
        _VERSION,
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
        ValueError: If the bytes are cut off, changed, something else, or of a later version of the format.
    """
    start = _FIELDS.size + _CHECKSUM.size
    if len(data) < start or data[: len(_MAGIC)] != _MAGIC:
        raise ValueError("`data` must be the packed code of a bottleneck, it is cut off or something else.")
    _, version, kind, fingerprint, batch, *sizes, slots, bits = _FIELDS.unpack_from(data)
    if version != _VERSION:
        raise ValueError(f"`data` must be of version {_VERSION} of the format, it is of version {version}.")
    payload = data[start:]
    (checksum,) = _CHECKSUM.unpack_from(data, _FIELDS.size)
    if zlib.crc32(payload, zlib.crc32(data[: _FIELDS.size])) != checksum or kind >= len(_KINDS):
        raise ValueError("`data` must be whole, it is cut off or changed.")
    image_size = tuple(sizes[2:]) if any(sizes[2:]) else None
    return CodeHeader(_KINDS[kind], fingerprint, batch, tuple(sizes[:2]), image_size, slots, bits or None), payload
