"""Pictures of latents and codes: NumPy's singular vectors, invariances, and exact colours."""

import numpy as np
import pytest
import torch

from diffusers_lasers.visualization import component_grid, support_map
from diffusers_lasers.visualization.latents import first_component


def latents(*shape, seed=0):
    values = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return values * torch.linspace(2, 0.2, shape[1]).view(1, -1, 1, 1)  # a direction that stands out


def test_it_is_the_top_singular_direction():
    z = latents(3, 6, 5, 4)
    sites = z.movedim(1, -1).reshape(-1, 6).double().numpy()
    scores = (sites - sites.mean(0)) @ np.linalg.svd(sites - sites.mean(0))[2][0]
    found = first_component(z)
    assert found.shape == (3, 1, 5, 4) and found.dtype == torch.float32
    found = found.flatten().double().numpy()
    inside = np.abs(found) < 1
    assert inside.mean() > 0.9 and abs(found).max() == 1
    assert abs(np.corrcoef(found[inside], scores[inside])[0, 1]) > 1 - 1e-9


def test_scale_and_offset_do_not_show_and_the_sign_is_fixed():
    z = latents(2, 4, 8, 8)
    expected = first_component(z)
    torch.testing.assert_close(first_component(300 * z + 7), expected, atol=1e-4, rtol=0)
    # the largest entry of the direction is positive: the first channel, of the largest variance, shows as it is
    assert np.corrcoef(expected.flatten(), z[:, 0].flatten())[0, 1] > 0.9
    torch.testing.assert_close(first_component(-z), -expected, atol=1e-5, rtol=0)
    order = torch.tensor([2, 0, 3, 1])
    torch.testing.assert_close(first_component(z[:, order]), expected, atol=1e-5, rtol=0)


def test_the_reference_fixes_direction_offset_and_scale():
    before = latents(2, 4, 8, 8)
    alone, both = first_component(before), first_component(before, before)
    assert torch.equal(alone, both)
    assert torch.equal(first_component(before[:1], before), both[:1])  # an image is no part of its own scale
    half = first_component(
        before.mean(dim=(0, 2, 3), keepdim=True) + 0.5 * (before - before.mean(dim=(0, 2, 3), keepdim=True)), before
    )
    inside = both.abs() < 1
    ratio = (half - half.mean())[inside] / (both - half.mean())[inside]
    assert half.std() < 0.6 * both.std() and ratio.median() == pytest.approx(0.5, abs=0.1)
    assert first_component(before + 100, before).unique().numel() == 1  # far beyond the scale: clamped


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_constant_latents_are_grey(dtype):
    z = torch.full((1, 3, 2, 2), 0.1, dtype=dtype)
    assert torch.equal(first_component(z), torch.zeros(1, 1, 2, 2))
    assert first_component(
        z[:, :1] + torch.arange(4, dtype=dtype).view(1, 1, 2, 2)
    ).flatten().tolist() == pytest.approx([-1, -1 / 3, 1 / 3, 1], abs=0.01)


def test_latents_that_cannot_be_shown_are_refused():
    z = latents(1, 4, 2, 2)
    for wrong, sentence in [
        ((z[0],), "`latents` must be floating point of shape"),
        ((z, z[:, :3]), "`reference` must have the channels of `latents`, 4, got 3"),
        ((z, z / 0), "`reference` must be finite"),
        ((z.long(),), "`latents` must be floating point"),
    ]:
        with pytest.raises(ValueError, match=sentence):
            first_component(*wrong)


def test_component_rows_share_their_scale():
    before = latents(2, 4, 8, 8)
    after = before.round()
    picture = np.asarray(component_grid(before, after, torch.zeros(2, 3, 32, 32)))
    assert picture.shape[0] == 3 * 100
    left = picture.shape[1] - 2 * 100
    cells = picture[:, left:].reshape(3, 100, 2, 100, 3)[:, 2:98, :, 2:98, 0]
    for row, z in ((1, before), (2, after)):
        levels = first_component(z, before).add(1).mul(127.5).round()[:, 0].numpy()
        assert np.array_equal(cells[row].transpose(1, 0, 2)[:, 6::12, 6::12], levels)
    assert component_grid(before, after).height == 200
    with pytest.raises(ValueError, match="`after` must have the shape of `before`"):
        component_grid(before, after[:1])
    with pytest.raises(ValueError, match="`images` must be as many as the latents, 2, got 1"):
        component_grid(before, after, torch.zeros(1, 3, 32, 32))


def panels(picture, h, w, slots, cell):
    rows = -(-slots // 8)
    columns = min(slots, 8)
    pixels = np.pad(np.asarray(picture), ((0, cell), (0, cell), (0, 0)))  # the margin that the last panels lack
    cells = pixels.reshape(rows, h + 1, cell, columns, w + 1, cell, 3)
    assert (cells == cells[:, :, :1, :, :, :1]).all()
    return cells[:, :h, 0, :, :w, 0].transpose(0, 2, 1, 3, 4).reshape(rows * columns, h, w, 3)[:slots]


@pytest.mark.parametrize("slots", [1, 3, 8, 11])
def test_sites_of_one_atom_have_one_colour_in_every_panel(slots):
    indices = torch.randint(-1, 20, (4, 5, slots), generator=torch.Generator().manual_seed(slots))
    indices[0, 0] = -1
    found = panels(support_map(indices, 20, cell=3), 4, 5, slots, 3)
    colours = {}
    for slot in range(slots):
        for place in np.ndindex(4, 5):
            colours.setdefault(int(indices[(*place, slot)]), set()).add(tuple(map(int, found[(slot, *place)])))
    assert all(len(seen) == 1 for seen in colours.values())
    assert colours[-1] == {(0, 0, 0)} and len({seen.pop() for seen in colours.values()}) == len(colours)


def test_colours_belong_to_the_atom_and_lie_apart():
    every = torch.arange(64).view(8, 8, 1)
    few, many = (panels(support_map(every, count, 2), 8, 8, 1, 2).reshape(-1, 3) for count in (64, 4096))
    assert np.array_equal(few, many)
    apart = np.abs(few[:, None].astype(int) - few[None]).sum(-1) + 999 * np.eye(64, dtype=int)
    assert apart.min() > 12 and few.max(axis=1).min() > 100  # none near another, none near black


@pytest.mark.parametrize(
    "indices, atoms, cell, sentence",
    [
        (torch.zeros(2, 2), 4, 8, "`indices` must be integers of shape"),
        (torch.zeros(2, 2, 1), 4, 8, "`indices` must be integers of shape"),
        (torch.full((2, 2, 1), 4), 4, 8, "`indices` must be from -1 to 3, got values from 4 to 4"),
        (torch.full((2, 2, 1), -2), 4, 8, "`indices` must be from -1 to 3"),
        (torch.zeros(2, 2, 1).long(), 4, 0, "`num_atoms` and `cell` must be at least 1"),
    ],
)
def test_indices_that_are_none_are_refused(indices, atoms, cell, sentence):
    with pytest.raises(ValueError, match=sentence):
        support_map(indices, atoms, cell)
