"""The header of packed codes: what it says comes back, and damage is found."""

import struct
import zlib
from dataclasses import replace

import pytest
import torch

from diffusers_lasers.coding.container import (
    MAX_SITES,
    CodeHeader,
    check_sites,
    fingerprint,
    pack_container,
    unpack_container,
)


HEADER = CodeHeader("sparse", 0xFEDCBA98, 3, (40, 50), (157, 199), 5, 8)


@pytest.mark.parametrize(
    "header",
    [HEADER, CodeHeader("index", 0, 1, (1, 2), None, 65535), CodeHeader("sparse", 7, 0, (1, 1), (4, 4), 1, None)],
)
def test_round_trip_with_37_bytes(header):
    data = pack_container(header, b"payload")
    assert len(data) == 37 + 7 and data[:5] == b"DLBC\x02"
    assert unpack_container(data) == (header, b"payload")


def test_every_changed_bit_and_every_cut_is_found():
    data = pack_container(HEADER, b"ab")
    for length in range(len(data)):
        with pytest.raises(ValueError, match="cut off"):
            unpack_container(data[:length])
    for position in range(len(data)):
        for bit in range(8):
            changed = bytearray(data)
            changed[position] ^= 1 << bit
            with pytest.raises(ValueError, match="`data` must be"):
                unpack_container(bytes(changed))
    with pytest.raises(ValueError, match="changed"):
        unpack_container(data + b"c")


def test_a_later_version_says_so():
    data = bytearray(pack_container(HEADER, b""))
    data[4] = 3
    with pytest.raises(ValueError, match="version 1 or 2 of the format, it is of version 3"):
        unpack_container(bytes(data))


def test_the_fingerprint_is_of_settings_names_shapes_and_values():
    tensors = {"a": torch.tensor([[1.0, 0.5]]), "b": torch.tensor([3])}
    mark = fingerprint(("x", 8), tensors)
    assert 0 <= mark < 2**32
    assert mark == fingerprint(("x", 8), {"b": torch.tensor([3.0]), "a": tensors["a"].half()})  # order and dtype
    others = [
        fingerprint(("x", 9), tensors),
        fingerprint(("x", 8), {**tensors, "a": tensors["a"].flip(1)}),
        fingerprint(("x", 8), {**tensors, "a": tensors["a"].t()}),
        fingerprint(("x", 8), {"a": tensors["a"], "c": tensors["b"]}),
        fingerprint(("x", 8), {"a": tensors["a"]}),
    ]
    assert len({mark, *others}) == 6


def sealed(data):
    """The bytes with a checksum that fits, as a crafted file has it."""
    return data[:33] + struct.pack("<I", zlib.crc32(data[37:], zlib.crc32(data[:33]))) + data[37:]


def test_the_first_version_is_still_read_and_the_codecs_old_format_says_what_to_do():
    data = bytearray(pack_container(HEADER, b"payload"))
    data[4] = 1
    assert unpack_container(sealed(bytes(data))) == (HEADER, b"payload")
    data[5] = 2  # a kind that came later
    with pytest.raises(ValueError, match="a kind that version 1 has, got 2"):
        unpack_container(sealed(bytes(data)))
    with pytest.raises(ValueError, match="MBVQ1 of older patch codecs has none: encode the image again"):
        unpack_container(b"MBVQ1" + bytes(60))


@pytest.mark.parametrize(
    ("offset", "number", "name"),
    [
        *[(offset, 0, "latent_size") for offset in (14, 18)],
        *[(offset, 0, "image_size") for offset in (22, 26)],
        (30, 0, "slots"),
    ],
)
def test_sealed_headers_out_of_range_are_refused(offset, number, name):
    data = bytearray(pack_container(HEADER, b""))
    struct.pack_into("<H" if name == "slots" else "<I", data, offset, number)
    kind = "an integer" if name == "slots" else "a list of 2 integers"
    with pytest.raises(ValueError, match=f"`data` must have a header in range; in it `{name}` must be {kind} from 1"):
        unpack_container(sealed(bytes(data)))


def test_kinds_and_coefficient_bits_of_sealed_headers_are_checked():
    for kind, bits, message in [
        (3, 8, "kind"),
        (1, 8, "`coefficient_bits` must be None"),
        (0, 17, "from 1 to 16 or None, got 17"),
    ]:
        data = bytearray(pack_container(HEADER, b""))
        data[5], data[32] = kind, bits
        with pytest.raises(ValueError, match=message):
            unpack_container(sealed(bytes(data)))


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"kind": "dense"}, "kind"),
        ({"fingerprint": 2**32}, "fingerprint"),
        ({"batch": -1}, "batch"),
        ({"batch": 1.0}, "batch"),
        ({"latent_size": (2**32, 1)}, "latent_size"),
        ({"latent_size": None}, "latent_size"),
        ({"latent_size": (1, 2, 3)}, "latent_size"),
        ({"image_size": (0, 1)}, "image_size"),
        ({"image_size": (1.5, 1)}, "image_size"),
        ({"slots": 65536}, "slots"),
        ({"coefficient_bits": 0}, "coefficient_bits"),
    ],
)
def test_a_header_names_what_is_out_of_range(change, name):
    with pytest.raises(ValueError, match=f"`{name}` must be"):
        replace(HEADER, **change)


def test_what_is_no_bytes_is_refused_and_other_buffers_are_read():
    data = pack_container(HEADER, b"ab")
    assert unpack_container(bytearray(data)) == unpack_container(memoryview(data)) == (HEADER, b"ab")
    for wrong in (None, "DLBC", 5, [1, 2]):
        with pytest.raises(ValueError, match="`data` must be bytes, got"):
            unpack_container(wrong)


def test_the_limit_on_sites_counts_an_empty_batch_as_one_image():
    check_sites(4, (2048, 2048))
    assert MAX_SITES == 4 * 2048 * 2048
    for batch, grid in [(5, (2048, 2048)), (0, (2**32 - 1, 2**32 - 1)), (2**32 - 1, (1, 1))]:
        with pytest.raises(ValueError, match=r"at most 16777216 sites, its header names \d+: raise `max_sites`"):
            check_sites(batch, grid)
    check_sites(5, (2048, 2048), 5 * 2**22)
    for wrong in (0, None, 1.5):
        with pytest.raises(ValueError, match="`max_pixels` must be an integer from 1"):
            check_sites(1, (1, 1), wrong, "max_pixels")
