"""The bytes around compressed codes: what goes in comes out, and what is no such file is one sentence."""

import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diffusers_lasers.coding.streams import StreamHeader, is_stream, pack_streams, unpack_streams


number = st.integers(0, 2**32 - 1)
size = st.tuples(st.integers(1, 2**32 - 1), st.integers(1, 2**32 - 1))
HEADER = StreamHeader(1, 2, 3, (4, 5), (6, 7), 8, 2)


def sealed(data):
    return data[:39] + struct.pack("<I", zlib.crc32(data[43:], zlib.crc32(data[:39]))) + data[43:]


@settings(max_examples=100, deadline=None)
@given(number, number, size, st.none() | size, st.integers(1, 65535), st.lists(st.integers(0, 400), max_size=5))
def test_headers_and_words_come_back(coder, prior, latent_size, image_size, slots, lengths):
    """Lengths of one byte and of two."""
    header = StreamHeader(coder, prior, 3 * len(lengths), latent_size, image_size, slots, 3)
    words = [np.arange(length, dtype=np.uint32) * 2654435761 for length in lengths]
    data = pack_streams(header, words)
    assert len(data) == 43 + sum(4 * length + 1 + (length > 127) for length in lengths) and is_stream(data)
    found, streams = unpack_streams(data)
    assert found == header and len(streams) == len(words)
    assert all(np.array_equal(one, other) for one, other in zip(streams, words))


def test_the_layout_is_the_documented_one():
    data = pack_streams(HEADER, [np.array([0x01020304], dtype=np.uint32), np.zeros(0, dtype=np.uint32)])
    assert data[:5] == b"DLPR\x01" and data[43:] == bytes([1, 0, 4, 3, 2, 1])
    assert struct.unpack("<7IHI", data[5:39]) == (1, 2, 3, 4, 5, 6, 7, 8, 2)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("text", "`data` must be bytes, got str."),
        (b"DLPR", "`data` must be the compressed code of a prior, it is cut off or something else."),
        (bytes(60), "`data` must be the compressed code of a prior, it is cut off or something else."),
        (b"DLPR\x02" + bytes(60), "`data` must be of version 1 of the format, it is of version 2."),
        (b"DLPR\x01" + bytes(60), "`data` must be whole, it is cut off or changed."),
        (sealed(b"DLPR\x01" + bytes(60)), "`data` must have a header in range; in it `latent_size` must be"),
    ],
)
def test_other_bytes_are_refused_in_one_sentence(data, message):
    with pytest.raises(ValueError, match=r"\.$") as error:
        unpack_streams(data)
    assert str(error.value).startswith(message) and "\n" not in str(error.value)


def test_lengths_that_do_not_fit_are_refused_before_they_are_believed():
    words = [np.zeros(2, dtype=np.uint32)] * 2
    data = pack_streams(HEADER, words)
    many = pack_streams(StreamHeader(1, 2, 2**32 - 1, (4, 5), None, 8, 1), words)
    for changed, message in (
        (many, "`data` must have a length for each of 4294967295 streams, it ends before."),
        (data[:43] + b"\x80" * 6 + data[49:], "`data` must have a length below 2³⁵ for each stream, it has another."),
        (data[:43] + b"\x03" + data[44:], "`data` must have the words that its lengths name, it has others."),
        (data + bytes(4), "`data` must have the words that its lengths name, it has others."),
        (data[:43], "`data` must have a length for each of 2 streams, it ends before."),
    ):
        with pytest.raises(ValueError, match=message):
            unpack_streams(sealed(changed))
