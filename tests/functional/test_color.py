"""YCbCr against JFIF's own table and as an exact inverse."""

import numpy as np
import pytest
import torch
from PIL import Image

from diffusers_lasers.functional import rgb_to_ycbcr, ycbcr_to_rgb


def test_the_inverse_is_exact():
    rgb = torch.rand(2, 3, 5, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    torch.testing.assert_close(ycbcr_to_rgb(rgb_to_ycbcr(rgb)), rgb, rtol=0, atol=1e-15)
    torch.testing.assert_close(rgb_to_ycbcr(ycbcr_to_rgb(rgb)), rgb, rtol=0, atol=1e-15)


def test_values_are_those_of_pillow_up_to_its_rounding():
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    reference = np.asarray(Image.fromarray(pixels).convert("YCbCr"), dtype=np.float64)
    ours = rgb_to_ycbcr(torch.from_numpy(pixels).permute(2, 0, 1).double() / 127.5 - 1).permute(1, 2, 0).numpy()
    expected = np.stack(
        [ours[..., 0] * 127.5 + 127.5, ours[..., 1] * 127.5 + 128, ours[..., 2] * 127.5 + 128], axis=-1
    )
    assert np.abs(expected - reference).max() <= 1.01  # Pillow truncates


def test_grey_has_no_colour_and_the_cube_fits():
    grey = torch.linspace(-1, 1, 9).expand(3, 1, 9)
    torch.testing.assert_close(rgb_to_ycbcr(grey)[0], grey[0])
    assert rgb_to_ycbcr(grey)[1:].abs().max() < 1e-6
    corners = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0])] * 3).t().unsqueeze(1)
    assert rgb_to_ycbcr(corners).abs().max() <= 1 + 1e-6


@pytest.mark.parametrize("convert, name", [(rgb_to_ycbcr, "rgb"), (ycbcr_to_rgb, "ycbcr")])
def test_other_shapes_and_integers_are_refused(convert, name):
    for images in (torch.zeros(4, 4, 4), torch.zeros(3, 4, 4, dtype=torch.uint8), torch.zeros(3)):
        with pytest.raises(ValueError, match=f"`{name}`"):
            convert(images)
