"""Degradations against Pillow and by what they must keep."""

import numpy as np
import pytest
import torch
from PIL import Image

from diffusers_lasers.functional.images import center_mask, hide, random_masks, reduce_bicubic, upscale_bicubic


def image(side=64, seed=0):
    coarse = torch.rand(2, 3, side // 4, side // 4, generator=torch.Generator().manual_seed(seed)) * 1.6 - 0.8
    return torch.nn.functional.interpolate(coarse, scale_factor=4, mode="bilinear")


@pytest.mark.parametrize("scale", [2, 4])
def test_reducing_is_that_of_pillow(scale):
    x = image()
    ours = reduce_bicubic(x, scale)
    for channel in range(3):
        plane = Image.fromarray(x[0, channel].numpy(), mode="F")
        theirs = np.asarray(plane.resize((64 // scale, 64 // scale), Image.Resampling.BICUBIC))
        assert np.abs(ours[0, channel].numpy() - theirs).max() < 1e-4


def test_enlarging_inverts_reducing_of_a_smooth_image():
    ramp = torch.linspace(-0.9, 0.9, 64).expand(1, 3, 64, 64)
    low = reduce_bicubic(ramp, 4)
    assert low.shape == (1, 3, 16, 16)
    error = (upscale_bicubic(low, 4) - ramp)[..., 8:-8].abs().max()
    assert error < 0.02
    step = torch.ones(1, 1, 8, 8)
    step[..., :4] = -1
    assert upscale_bicubic(step, 4).abs().max() <= 1  # cubic kernels overshoot


def test_nothing_is_lost_at_scale_one():
    x = image()
    torch.testing.assert_close(upscale_bicubic(reduce_bicubic(x, 1), 1), x)


@pytest.mark.parametrize(
    "scale, sentence",
    [(0, "positive integer"), (True, "positive integer"), (3, r"must divide the sides \(64, 64\), got 3")],
)
def test_wrong_scales(scale, sentence):
    with pytest.raises(ValueError, match=sentence):
        reduce_bicubic(image(), scale)


def test_the_mask_of_the_paper_hides_a_centred_square_of_a_quarter_of_the_side():
    mask = center_mask(64, 32)
    assert mask.shape == (1, 1, 64, 32) and mask.sum() == 16 * 8
    assert torch.equal(mask, mask.flip(2)) and torch.equal(mask, mask.flip(3))
    assert mask[0, 0, 32, 16] == 1 and mask[0, 0, 0, 0] == 0
    hidden = hide(image(), center_mask(64, 64))
    assert not hidden[..., 24:40, 24:40].any()
    kept = center_mask(64, 64)[0, 0] == 0
    assert torch.equal(hidden[..., kept], image()[..., kept])
    assert hide(torch.full((1, 3, 64, 64), float("nan")), center_mask(64, 64, 1.0)).sum() == 0  # 0 · NaN would stay
    with pytest.raises(ValueError, match="`fraction` must be in"):
        center_mask(8, 8, 0)


def test_random_masks_are_rectangles_of_their_sizes_everywhere():
    masks = random_masks(500, 32, 64, torch.Generator().manual_seed(0))
    assert masks.shape == (500, 1, 32, 64) and set(masks.unique().tolist()) == {0.0, 1.0}
    rows, columns = masks.amax(dim=3).sum(dim=2), masks.amax(dim=2).sum(dim=2)
    assert torch.equal(masks.sum(dim=(2, 3)), rows * columns)
    assert rows.min() == 4 and rows.max() == 16 and columns.min() == 8 and columns.max() == 32
    assert (masks.sum(dim=0) > 0).all()
    assert torch.equal(masks, random_masks(500, 32, 64, torch.Generator().manual_seed(0)))
