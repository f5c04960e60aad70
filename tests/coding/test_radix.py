"""Numbers of any alphabet as bytes: size, round trip, damage."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diffusers_lasers.coding.radix import pack_numbers, packed_size, unpack_numbers


ALPHABETS = [
    1,
    2,
    3,
    7,
    256,
    500,
    2**31 - 1,
    2**31,
    2**31 + 1,
    2**32,
    2**40,
    2**62 + 1,
    2**63 - 1,
    2**63,
    2**64,
    10**30,
]


def array(values, base):
    return np.array(values, dtype=np.int64 if base < 2**63 else object)


@settings(deadline=None, max_examples=150)
@given(
    st.lists(st.tuples(st.sampled_from(ALPHABETS) | st.integers(1, 2**70), st.integers(0, 30)), max_size=3), st.data()
)
def test_round_trip_at_less_than_a_bit_and_a_byte_above_the_information(streams, data):
    numbers = [
        (array(data.draw(st.lists(st.integers(0, base - 1), min_size=count, max_size=count)), base), base)
        for base, count in streams
    ]
    packed = pack_numbers(numbers)
    lengths = [(count, base) for base, count in streams]
    assert len(packed) == packed_size(lengths)
    information = sum(count * math.log2(base) for base, count in streams)
    assert information / 8 - 1e-9 <= len(packed) <= (information + 8.001) / 8
    for (expected, _), found in zip(numbers, unpack_numbers(packed, lengths), strict=True):
        assert found.dtype == expected.dtype and found.tolist() == expected.tolist()


@pytest.mark.parametrize("base", [3, 500, 2**31 + 1, 17**12, 10**30])
def test_many_numbers_lose_less_than_one_bit(base):
    """A field of whole bits a number would lose thousands here."""
    generator = np.random.default_rng(0)
    count = 20_001
    digits = generator.integers(0, 2**30, size=(count, 4)).astype(object)
    numbers = ((digits[:, 0] << 90) + (digits[:, 1] << 60) + (digits[:, 2] << 30) + digits[:, 3]) % base
    numbers = array(numbers, base)
    packed = pack_numbers([(numbers, base)])
    assert 8 * len(packed) < count * math.log2(base) + 1 + 8
    assert (unpack_numbers(packed, [(count, base)])[0] == numbers).all()


def test_a_power_of_two_is_a_field_of_its_bits():
    assert pack_numbers([(np.array([1, 3, 0, 2]), 4)]) == bytes([0b01110010])
    assert pack_numbers([(np.array([0x0102030405]), 2**40)]) == bytes([1, 2, 3, 4, 5])


def test_two_ternary_digits_are_one_number_below_nine():
    packed = pack_numbers([(np.array([2, 1]), 3)])
    assert packed == bytes([0b01110000])  # 2 · 3 + 1 in the four bits that 0 … 8 need


@pytest.mark.parametrize("numbers", [[-1], [5]])
def test_a_number_outside_its_alphabet_is_refused(numbers):
    with pytest.raises(ValueError, match="numbers from 0 to 4"):
        pack_numbers([(np.array(numbers), 5)])


def test_other_bytes_are_refused():
    packed = pack_numbers([(np.array([4, 4, 4]), 5)])
    with pytest.raises(ValueError, match="`data` must have 1 bytes"):
        unpack_numbers(packed + b"x", [(3, 5)])
    with pytest.raises(ValueError, match="positive integer, got 0"):
        unpack_numbers(packed, [(3, 0)])
    valid = 0
    for byte in range(256):  # 125 of 128 fields of seven bits, with a zero behind, are three numbers below 5
        try:
            (found,) = unpack_numbers(bytes([byte]), [(3, 5)])
        except ValueError as error:
            assert "changed" in str(error)
        else:
            valid += 1
            assert pack_numbers([(found, 5)]) == bytes([byte])
    assert valid == 125


def test_negative_counts_are_refused():
    for call in (lambda count: packed_size([(count, 5)]), lambda count: unpack_numbers(b"", [(count, 5)])):
        for count in (-1, 1.5, None):
            with pytest.raises(ValueError, match="A count of numbers must be an integer of at least 0"):
                call(count)
