r"""The bytes around compressed codes: a header, and streams of images of which each can be read alone.

A header of 43 bytes, little-endian:

    magic "DLPR", version 1                                      4 + 1 bytes
    fingerprints of the model that made the code, and of the prior   4 + 4
    images, latent height and width, image height and width      5 · 4, image sizes 0 where there were no images
    slots a site, images of a stream                             2 + 4
    CRC-32 of all bytes before and after this one                4

Then come the lengths of the streams, each as seven bits a byte with the highest bit set but for the last (LEB128), in
words of 32 bits, and the streams' words. Every stream but the last has as many images. All numbers are checked, and a
reader knows how many sites there are before memory is taken for them.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..utils.config_checks import Integer, Optional, check_fields
from ..utils.config_checks import Sequence as SequenceField


__all__ = ["StreamHeader", "is_stream", "pack_streams", "unpack_streams"]

_MAGIC, _VERSION = b"DLPR", 1
_FIELDS = struct.Struct("<4sB7IHI")
_CHECKSUM = struct.Struct("<I")
_NUMBER = Integer(0, 2**32 - 1)
_SIZE = SequenceField(Integer(1, 2**32 - 1), least=2, most=2)
_ALLOWED = {
    **dict.fromkeys(("coder", "prior", "batch"), _NUMBER),
    "latent_size": _SIZE,
    "image_size": Optional(_SIZE),
    "slots": Integer(1, 2**16 - 1),
    "stream_images": Integer(1, 2**32 - 1),
}


@dataclass(frozen=True)
class StreamHeader:
    """
    What compressed codes say about themselves.

    Args:
        coder (`int`): Fingerprint of the model that made the code.
        prior (`int`): Fingerprint of the prior that compressed it.
        batch (`int`): Images B, 0 or more.
        latent_size (`tuple[int, int]`): Height and width of the latents.
        image_size (`tuple[int, int]`, *optional*): Height and width of the images.
        slots (`int`): Slots a site, from 1 to 65535.
        stream_images (`int`): Images of a stream.

    Raises:
        ValueError: If a value is out of range.
    """

    coder: int
    prior: int
    batch: int
    latent_size: tuple[int, int]
    image_size: tuple[int, int] | None
    slots: int
    stream_images: int

    def __post_init__(self):
        check_fields(_ALLOWED, vars(self))


def pack_streams(header: StreamHeader, streams: Sequence[np.ndarray]) -> bytes:
    """
    Header, checksum and streams as one.

    Args:
        header ([`StreamHeader`]): The header.
        streams (`Sequence[numpy.ndarray]`): Words `(n,)` of each stream, uint32; ⌈`batch` / `stream_images`⌉ of them.

    Returns:
        `bytes`: 43 bytes, the lengths and the words.
    """
    sizes = (*header.latent_size, *(header.image_size or (0, 0)))
    fields = _FIELDS.pack(
        _MAGIC, _VERSION, header.coder, header.prior, header.batch, *sizes, header.slots, header.stream_images
    )
    parts = [b"".join(_leb128(len(words)) for words in streams), *(words.astype("<u4").tobytes() for words in streams)]
    payload = b"".join(parts)
    return fields + _CHECKSUM.pack(zlib.crc32(payload, zlib.crc32(fields))) + payload


def unpack_streams(data: bytes) -> tuple[StreamHeader, list[np.ndarray]]:
    """
    Header and streams of bytes; the inverse of [`pack_streams`].

    Args:
        data (`bytes`): What was packed.

    Returns:
        `tuple[StreamHeader, list[numpy.ndarray]]`: The header, and the words of each stream, uint32, without a copy.

    Raises:
        ValueError: If the bytes are cut off, changed, something else, or of another version of the format.
    """
    if not isinstance(data, (bytes, bytearray, memoryview)):
        raise ValueError(f"`data` must be bytes, got {type(data).__name__}.")
    data, start = bytes(data), _FIELDS.size + _CHECKSUM.size
    if len(data) < start or data[: len(_MAGIC)] != _MAGIC:
        raise ValueError("`data` must be the compressed code of a prior, it is cut off or something else.")
    _, version, coder, prior, batch, *sizes, slots, stream_images = _FIELDS.unpack_from(data)
    if version != _VERSION:
        raise ValueError(f"`data` must be of version {_VERSION} of the format, it is of version {version}.")
    (checksum,) = _CHECKSUM.unpack_from(data, _FIELDS.size)
    if zlib.crc32(memoryview(data)[start:], zlib.crc32(data[: _FIELDS.size])) != checksum:
        raise ValueError("`data` must be whole, it is cut off or changed.")
    image_size = tuple(sizes[2:]) if any(sizes[2:]) else None
    try:
        header = StreamHeader(coder, prior, batch, tuple(sizes[:2]), image_size, slots, stream_images)
    except ValueError as error:
        raise ValueError("`data` must have a header in range; in it " + str(error)) from error
    count = -(-batch // stream_images)
    if count > len(data) - start:
        raise ValueError(f"`data` must have a length for each of {count} streams, it ends before.")
    lengths, position = [], start
    for _ in range(count):
        length, position = _read_leb128(data, position)
        lengths.append(length)
    if 4 * sum(lengths) != len(data) - position:
        raise ValueError("`data` must have the words that its lengths name, it has others.")
    words = np.frombuffer(data, dtype="<u4", offset=position) if sum(lengths) else np.zeros(0, dtype="<u4")
    return header, np.split(words, np.cumsum(lengths)[:-1]) if count else []


def is_stream(data: bytes) -> bool:
    """Whether bytes begin as those of [`pack_streams`] do."""
    return data[: len(_MAGIC)] == _MAGIC


def _leb128(number: int) -> bytes:
    found = bytearray()
    while number > 0x7F:
        found.append(number & 0x7F | 0x80)
        number >>= 7
    found.append(number)
    return bytes(found)


def _read_leb128(data: bytes, position: int) -> tuple[int, int]:
    number = shift = 0
    while position < len(data) and shift < 35:
        byte = data[position]
        number, position, shift = number | (byte & 0x7F) << shift, position + 1, shift + 7
        if byte < 0x80:
            return number, position
    raise ValueError("`data` must have a length below 2³⁵ for each stream, it has another.")
