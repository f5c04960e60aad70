"""The header of packed codes: what it says comes back, and damage is found."""

import pytest
import torch

from diffusers_lasers.coding import CodeHeader, fingerprint, pack_container, unpack_container


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
