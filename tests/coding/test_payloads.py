"""Payloads of codes: nominal size, exact values, what is refused."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from diffusers_lasers.coding.coefficients import dequantize_coefficients
from diffusers_lasers.coding.payloads import pack_levels, pack_sparse, unpack_levels, unpack_sparse
from diffusers_lasers.functional import support_bits


def sparse_rows(rows, atoms, sparsity, seed, scale=None, bits=None):
    """Random supports of any size with their unused slots last, and coefficients: floats, or points of the
    quantiser."""
    generator = torch.Generator().manual_seed(seed)
    indices = torch.rand(rows, atoms, generator=generator).argsort(dim=1)[:, :sparsity]
    sizes = torch.randint(0, sparsity + 1, (rows, 1), generator=generator)
    used = torch.arange(sparsity) < sizes
    if bits is None:
        coefficients = torch.randn(rows, sparsity, generator=generator)
    else:
        cells = torch.randint(0, 2**bits, (rows, sparsity), generator=generator)
        coefficients = dequantize_coefficients(cells, scale, bits)
    return torch.where(used, indices, -1), torch.where(used, coefficients, 0.0)


def by_atom(indices, coefficients):
    order = indices.argsort(dim=1)
    return indices.gather(1, order), coefficients.gather(1, order)


@settings(deadline=None, max_examples=60)
@given(
    st.integers(1, 40),
    st.booleans(),
    st.sampled_from([None, 1, 7, 16]),
    st.integers(0, 25),
    st.integers(0, 999),
    st.data(),
)
def test_sparse_round_trip_at_the_nominal_size(atoms, ordered, bits, rows, seed, data):
    sparsity = data.draw(st.integers(1, min(atoms, 6)))
    scale = None if bits is None else torch.rand(sparsity, generator=torch.Generator().manual_seed(seed)) * 9 + 1e-3
    if scale is not None and not ordered:
        scale = scale[:1].expand(sparsity)
    indices, coefficients = sparse_rows(rows, atoms, sparsity, seed, scale, bits)
    packed = pack_sparse(indices, coefficients, atoms, ordered, scale, bits)
    nominal = rows * support_bits(atoms, sparsity, ordered) + (indices >= 0).sum().item() * (bits or 32)
    assert nominal / 8 - 1e-6 <= len(packed) <= nominal / 8 + 2
    found = unpack_sparse(packed, rows, sparsity, atoms, ordered, scale, bits)
    if not ordered:
        magnitudes = found[1].abs()
        assert (magnitudes[:, 1:] <= magnitudes[:, :-1]).all()
        assert ((found[0][:, 1:] < 0) | (found[0][:, :-1] >= 0)).all()  # unused slots last
        found, (indices, coefficients) = by_atom(*found), by_atom(indices, coefficients)
    assert torch.equal(found[0], indices)
    assert torch.equal(found[1].view(torch.int32), coefficients.view(torch.int32))  # to the bit


def test_floats_come_back_bit_by_bit():
    values = torch.tensor([[1e-45, -0.0, 3.4e38, -1.17549435e-38]])
    indices = torch.tensor([[3, 0, 7, 2]])
    found = by_atom(*unpack_sparse(pack_sparse(indices, values, 8), 1, 4, 8))
    expected = by_atom(indices, values)
    assert torch.equal(found[1].view(torch.int32), expected[1].view(torch.int32))


@pytest.mark.parametrize(
    "coefficients, bits, message",
    [
        ([[0.3, 0.25]], 2, "points of the quantiser with 2 bits"),
        ([[float("nan"), 0.0]], None, "finite float32"),
        ([[float("inf"), 0.0]], None, "finite float32"),
        ([[0.1, 0.0]], None, "finite float32"),  # as float64
    ],
)
def test_coefficients_that_would_not_come_back_are_refused(coefficients, bits, message):
    values = torch.tensor(coefficients, dtype=torch.float64 if message.endswith("32") else torch.float32)
    with pytest.raises(ValueError, match=message):
        pack_sparse(torch.tensor([[1, 0]]), values, 4, True, torch.ones(2), bits)


def test_a_set_has_one_scale():
    """Its coefficients come back in other slots than they came from."""
    with pytest.raises(ValueError, match="`scale` must be the same for all slots"):
        pack_sparse(torch.tensor([[1, 0]]), torch.tensor([[0.5, 1.0]]), 4, False, torch.tensor([1.0, 2.0]), 1)


def test_unused_slots_with_a_value_are_refused():
    with pytest.raises(ValueError, match="0 in unused slots"):
        pack_sparse(torch.tensor([[1, -1]]), torch.tensor([[1.0, 2.0]]), 4)


def test_bytes_of_another_size_are_refused():
    indices, coefficients = sparse_rows(5, 9, 2, 0)
    packed = pack_sparse(indices, coefficients, 9)
    for wrong in (packed[:2], packed[:-1], packed + b"a"):
        with pytest.raises(ValueError, match="`data` must have"):
            unpack_sparse(wrong, 5, 2, 9)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(1, 600), min_size=1, max_size=6), st.integers(0, 40), st.integers(0, 999))
def test_levels_round_trip_at_the_nominal_size(levels, rows, seed):
    generator = torch.Generator().manual_seed(seed)
    indices = torch.stack([torch.randint(0, level, (rows,), generator=generator) for level in levels], dim=1)
    packed = pack_levels(indices, levels)
    assert len(packed) <= rows * sum(map(math.log2, levels)) / 8 + 1 + 1e-6
    assert torch.equal(unpack_levels(packed, rows, levels), indices)


def test_wrong_indices_are_refused():
    for wrong in ([[5, 0]], [[0, -1]]):
        with pytest.raises(ValueError, match="`indices` must be from 0 to below"):
            pack_levels(torch.tensor(wrong), (5, 3))
    with pytest.raises(ValueError, match="`indices` must have shape"):
        pack_levels(torch.zeros(4, 3, dtype=torch.int64), (5, 3))
