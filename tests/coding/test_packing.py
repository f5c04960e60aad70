"""Indices as bytes: exact size, exact round trip, damage refused."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from diffusers_lasers.coding.bit_fields import pack_indices, unpack_indices


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(1, 32), min_size=1, max_size=6), st.integers(0, 40), st.integers(0, 2**31))
def test_round_trip_at_the_nominal_size(bits, rows, seed):
    generator = torch.Generator().manual_seed(seed)
    indices = torch.stack([torch.randint(0, 2**b, (rows,), generator=generator) for b in bits], dim=1)
    data = pack_indices(indices, bits)
    assert len(data) == -(-rows * sum(bits) // 8)
    assert torch.equal(unpack_indices(data, rows, bits), indices)


def test_the_highest_bit_comes_first():
    assert pack_indices(torch.tensor([[1, 5], [3, 0]]), (2, 3)) == bytes([0b01101110, 0b00000000])


def test_what_does_not_fit_is_refused():
    for wrong in ([[4]], [[-1]]):
        with pytest.raises(ValueError, match="`indices` must be from 0"):
            pack_indices(torch.tensor(wrong), (2,))
    with pytest.raises(ValueError, match="`indices` must have shape"):
        pack_indices(torch.zeros(3, 2, dtype=torch.int64), (2,))
    with pytest.raises(ValueError, match="`bits`"):
        pack_indices(torch.zeros(3, 1, dtype=torch.int64), (0,))
    with pytest.raises(ValueError, match="`data` must have 2 bytes"):
        unpack_indices(b"a", 3, (4,))
    with pytest.raises(ValueError, match="zero bits"):
        unpack_indices(bytes([0, 1]), 3, (4,))
