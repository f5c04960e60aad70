"""Latents as signals, one a patch."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from diffusers_lasers.functional import latents_to_signals, signals_to_latents
from diffusers_lasers.functional.images import patch_grid


@settings(max_examples=60, deadline=None)
@given(
    batch=st.integers(1, 3),
    channels=st.integers(1, 4),
    height=st.integers(1, 9),
    width=st.integers(1, 9),
    patch=st.integers(1, 4),
)
def test_round_trip_of_any_size(batch, channels, height, width, patch):
    latents = torch.randn(batch, channels, height, width)
    signals = latents_to_signals(latents, patch)
    rows, columns = patch_grid(height, width, patch)
    assert signals.shape == (batch * rows * columns, channels * patch * patch)
    assert torch.equal(signals_to_latents(signals, height, width, patch), latents)


def test_signals_are_those_of_unfold():
    latents = torch.randn(2, 3, 8, 6)
    unfolded = F.unfold(latents, kernel_size=2, stride=2)  # (B, 3·4, h·w), features in order channel, row, column
    assert torch.equal(latents_to_signals(latents, 2), unfolded.transpose(1, 2).flatten(0, 1))


def test_a_signal_holds_one_site_of_one_image():
    """The authors' release reshaped instead of transposing: each column held values of many patches and images."""
    latents = torch.arange(2 * 4 * 3 * 3).reshape(2, 4, 3, 3).float()
    signals = latents_to_signals(latents)
    assert torch.equal(signals[3 * 1 + 2], latents[0, :, 1, 2])
    assert torch.equal(signals[9], latents[1, :, 0, 0])


@pytest.mark.parametrize(
    ("height", "width", "patch", "grid"), [(8, 8, 2, (4, 4)), (7, 9, 2, (4, 5)), (1, 1, 4, (1, 1))]
)
def test_grid_covers_the_latents(height, width, patch, grid):
    assert patch_grid(height, width, patch) == grid


def test_padding_repeats_the_edge():
    signals = latents_to_signals(torch.tensor([[[[1.0, 2.0, 3.0]]]]), 2)
    assert signals.tolist() == [[1.0, 2.0, 1.0, 2.0], [3.0, 3.0, 3.0, 3.0]]
