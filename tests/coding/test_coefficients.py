"""Uniform quantisation of coefficients."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from diffusers_lasers.coding.coefficients import coefficient_scale, dequantize_coefficients, quantize_coefficients


@settings(max_examples=60, deadline=None)
@given(bits=st.integers(1, 16), seed=st.integers(0, 10_000))
def test_round_trip_is_within_half_a_cell_and_idempotent(bits, seed):
    generator = torch.Generator().manual_seed(seed)
    scale = torch.rand(4, generator=generator, dtype=torch.float64) * 10 + 1e-3
    coefficients = (torch.rand(50, 4, generator=generator, dtype=torch.float64) * 2 - 1) * scale
    cells = quantize_coefficients(coefficients, scale, bits)
    assert cells.min() >= 0 and cells.max() <= 2**bits - 1
    values = dequantize_coefficients(cells, scale, bits)
    assert ((values - coefficients).abs() <= scale * 2.0**-bits * (1 + 1e-9)).all()
    assert torch.equal(quantize_coefficients(values, scale, bits), cells)


@pytest.mark.parametrize("bits", [1, 3, 8])
def test_exactly_two_to_the_bits_levels_are_used(bits):
    """An off-by-one in a predecessor's code used 2⁸ + 1 levels for 8 bits."""
    coefficients = torch.linspace(-3, 3, 20_001).unsqueeze(1)
    cells = quantize_coefficients(coefficients, torch.ones(1), bits)
    assert cells.unique().numel() == 2**bits


def test_values_beyond_the_scale_go_to_the_outermost_cells():
    values = torch.tensor([[-9.0], [9.0]])
    cells = quantize_coefficients(values, torch.ones(1), 4)
    assert cells.flatten().tolist() == [0, 15]


def test_scale_is_the_quantile_of_used_magnitudes():
    generator = torch.Generator().manual_seed(0)
    coefficients = torch.randn(5000, 3, generator=generator)
    used = torch.rand(5000, 3, generator=generator) < 0.7
    scale = coefficient_scale(coefficients, used)
    for slot in range(3):
        magnitudes = np.sort(coefficients[:, slot][used[:, slot]].abs().numpy())
        assert scale[slot].item() == magnitudes[int(np.ceil(0.995 * len(magnitudes))) - 1]


def test_scale_of_an_unused_slot_is_zero():
    assert coefficient_scale(torch.ones(4, 1), torch.zeros(4, 1, dtype=torch.bool)).tolist() == [0.0]
