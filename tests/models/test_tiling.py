"""Tiled application of a map."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from diffusers_lasers.models.autoencoders.tiling import tiled_map


@settings(max_examples=40, deadline=None)
@given(height=st.integers(1, 70), width=st.integers(1, 70), tile=st.integers(14, 40), overlap=st.integers(7, 13))
def test_a_map_of_bounded_reach_is_reproduced_exactly(height, width, tile, overlap):
    weight = torch.randn(2, 3, 5, 5, generator=torch.Generator().manual_seed(0))
    sample = torch.randn(1, 3, height, width, generator=torch.Generator().manual_seed(1))

    def blur(x):
        return F.conv2d(x, weight, padding=2)

    tiled = tiled_map(blur, sample, tile=tile, overlap=overlap, margin=2, scale=(1, 1))
    torch.testing.assert_close(tiled, blur(sample), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("scale", [(1, 4), (4, 1)])
def test_maps_that_change_the_resolution(scale):
    sample = torch.randn(2, 3, 96, 128)

    def resize(x):
        return F.avg_pool2d(x, 4) if scale == (1, 4) else x.repeat_interleave(4, 2).repeat_interleave(4, 3)

    tiled = tiled_map(resize, sample, tile=48, overlap=24, margin=4, scale=scale, multiple=4)
    torch.testing.assert_close(tiled, resize(sample))


def test_tiles_are_never_larger_than_asked_and_cover_the_sample():
    seen, sample = [], torch.ones(1, 1, 100, 37)

    def record(x):
        seen.append(tuple(x.shape[-2:]))
        return x

    assert torch.equal(tiled_map(record, sample, tile=32, overlap=8, margin=2, scale=(1, 1)), sample)
    assert max(height for height, _ in seen) == 32 and max(width for _, width in seen) == 32
