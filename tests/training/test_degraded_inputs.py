"""What restoration is given."""

import pytest
import torch

from diffusers_lasers.functional.images import center_mask, hide, reduce_bicubic, upscale_bicubic
from diffusers_lasers.training import Degradation


def images():
    return torch.rand(3, 3, 16, 24, generator=torch.Generator().manual_seed(0)) * 2 - 1


def test_each_task():
    x = images()
    given, mask = Degradation()(x)
    assert given is x and mask is None
    given, mask = Degradation("super_resolution", scale=2)(x)
    assert mask is None and torch.equal(given, upscale_bicubic(reduce_bicubic(x, 2), 2))
    given, mask = Degradation("inpainting", mask_fraction=0.5)(x)
    assert mask.shape == (3, 1, 16, 24) and torch.equal(mask[:1], center_mask(16, 24, 0.5))
    assert torch.equal(given, hide(x, mask))


def test_random_masks_follow_their_generator():
    degrade, x = Degradation("inpainting", mask="random"), images()
    given, mask = degrade(x, torch.Generator().manual_seed(1))
    assert torch.equal(given, degrade(x, torch.Generator().manual_seed(1))[0])
    assert not torch.equal(given, degrade(x, torch.Generator().manual_seed(2))[0])
    assert not torch.equal(mask[0], mask[1]) and torch.equal(given, hide(x, mask))
    torch.manual_seed(1)
    assert torch.equal(degrade(x)[0], given)


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        ({"task": "sharpening"}, "`task` must be one of"),
        ({"mask": "left"}, "`mask` must be one of"),
        ({"scale": 0}, "`scale` must be a positive integer"),
        ({"mask_fraction": 1.5}, "`mask_fraction` must be in"),
    ],
)
def test_wrong_arguments(arguments, sentence):
    with pytest.raises(ValueError, match=sentence):
        Degradation(**arguments)
    with pytest.raises(ValueError, match="`scale` must divide"):
        Degradation("super_resolution", scale=7)(images())
