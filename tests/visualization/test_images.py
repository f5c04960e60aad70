"""Pictures of images: exact bytes, sizes and places."""

import numpy as np
import pytest
import torch

from diffusers_lasers.visualization import image_grid
from diffusers_lasers.visualization.image_grids import to_image


def test_a_pixel_is_its_byte():
    levels = torch.arange(256.0)
    picture = to_image((levels / 127.5 - 1).view(1, 16, 16))
    assert picture.mode == "L" and np.array_equal(np.asarray(picture).ravel(), np.arange(256))
    outside = torch.tensor([-9.0, 9.0, torch.nan, torch.inf, -torch.inf, 0.0]).view(1, 1, 6)
    assert np.asarray(to_image(outside)).tolist() == [[0, 255, 0, 255, 0, 128]]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_channels_and_precisions(dtype):
    pixels = torch.stack([torch.full((2, 3), value, dtype=dtype) for value in (1.0, -1.0, 0.5)]).requires_grad_()
    picture = to_image(pixels)
    assert (picture.mode, picture.size) == ("RGB", (3, 2)) and picture.getpixel((2, 1)) == (255, 0, 191)


@pytest.mark.parametrize(
    "pixels", [torch.zeros(2, 4, 4), torch.zeros(1, 3, 4, 4), torch.zeros(3, 0, 4), torch.zeros(3, 4, 4).byte()]
)
def test_what_is_no_image_is_refused(pixels):
    with pytest.raises(ValueError, match="`pixels` must be floating point of shape"):
        to_image(pixels)


def test_rows_stand_below_each_other_and_repeat_pixels():
    colours = torch.tensor([[1.0, -1, -1], [-1, 1, -1], [-1, -1, 1]]).view(3, 3, 1, 1).expand(3, 3, 5, 5)
    map_of_latents = torch.tensor([[-1.0, 1.0], [1.0, -1.0]]).view(1, 1, 2, 2)
    grid = np.asarray(image_grid([("", colours), ("", map_of_latents)], cell=8))
    assert grid.shape == (2 * 14, 3 * 14, 3)  # 5 pixels twice, which is the least factor that reaches 8; a margin of 4
    cells = grid.reshape(2, 14, 3, 14, 3)[:, 2:12, :, 2:12]
    for column, colour in enumerate(255 * np.eye(3, dtype=np.uint8)):
        assert (cells[0, :, column] == colour).all()
    assert np.array_equal(cells[1, :, 0, :, 0], 255 * np.kron([[0, 1], [1, 0]], np.ones((5, 5))).astype(np.uint8))
    assert (cells[1, :, 1:] == 255).all()  # no image there


def test_large_images_keep_their_size_and_labels_have_their_place():
    image = torch.full((1, 3, 40, 60), -1.0)
    plain, labelled = image_grid([("", image)], cell=32), image_grid([("a name of three lines " * 2, image)], cell=32)
    assert plain.size == (64, 44) and labelled.height == 44 and labelled.width > 100
    column = np.asarray(labelled)[:, : labelled.width - 64]
    assert column.min() < 100 and (column[:, :2] == 255).all()  # there is text, and it is not cut off
    assert np.array_equal(np.asarray(labelled)[:, labelled.width - 64 :], np.asarray(plain))


@pytest.mark.parametrize(
    "rows, cell, sentence",
    [
        ([], 96, "at least one image"),
        ([("a", torch.zeros(0, 3, 4, 4))], 96, "at least one image"),
        ([("a", torch.zeros(3, 4, 4))], 96, "`rows` must hold images of shape .* in the row 'a'"),
        ([("a", torch.zeros(1, 3, 4, 4))], 0, "`cell` must be at least 1"),
    ],
)
def test_what_is_no_grid_is_refused(rows, cell, sentence):
    with pytest.raises(ValueError, match=sentence):
        image_grid(rows, cell)


def test_without_margin_images_stand_side_by_side_pixel_by_pixel():
    levels = torch.arange(256.0).view(2, 1, 8, 16).expand(2, 3, 8, 16) / 127.5 - 1
    picture = np.asarray(image_grid([("", levels), ("", levels[:1])], cell=1, margin=0))
    assert picture.shape == (16, 32, 3)
    assert np.array_equal(picture[:8, :, 0], np.arange(256).reshape(2, 8, 16).transpose(1, 0, 2).reshape(8, 32))
    assert np.array_equal(picture[8:, :16], picture[:8, :16]) and (picture[8:, 16:] == 255).all()
    with pytest.raises(ValueError, match="`margin` must not be negative, got -1"):
        image_grid([("", levels)], margin=-1)
