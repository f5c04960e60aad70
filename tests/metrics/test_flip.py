import flip_evaluator
import numpy as np
import pytest
import torch

from diffusers_lasers.metrics import FLIP, flip_map


@pytest.fixture(scope="module")
def images():
    generator = torch.Generator().manual_seed(0)
    references = torch.rand(3, 3, 24, 40, generator=generator) * 2 - 1
    tests = (references + 0.2 * torch.randn(references.shape, generator=generator)).clamp(-1, 1)
    return tests, references


def direct(tests, references, magma=False, parameters=None):
    """The package itself, on arrays (H, W, 3) in [0, 1]."""
    pairs = zip(references.numpy(), tests.numpy())
    arrays = [[np.ascontiguousarray(np.moveaxis(image, 0, -1)) / 2 + 0.5 for image in pair] for pair in pairs]
    return [flip_evaluator.evaluate(*pair, "LDR", applyMagma=magma, parameters=parameters or {}) for pair in arrays]


def test_maps_and_mean_agree_with_the_package(images):
    expected = direct(*images)
    errors = flip_map(images[1], images[0])
    assert errors.shape == (3, 24, 40)
    for error, (reference, _, _) in zip(errors, expected):
        assert np.allclose(error.numpy(), reference[..., 0], atol=1e-6)
    metric = FLIP()
    metric.update(*images)
    assert metric.compute().item() == pytest.approx(np.mean([mean for _, mean, _ in expected]), abs=1e-5)


def test_viewing_distance_is_passed_on(images):
    metric = FLIP(pixels_per_degree=20)
    metric.update(*images)
    expected = np.mean([mean for _, mean, _ in direct(*images, parameters={"ppd": 20.0})])
    assert metric.compute().item() == pytest.approx(expected, abs=1e-5)
    assert metric.protocol()["pixels_per_degree"] == 20
    assert FLIP().protocol()["pixels_per_degree"] == pytest.approx(direct(*images)[0][2]["ppd"])


def test_heat_map_has_the_packages_colours(images):
    colours = flip_map(images[1], images[0], magma=True)
    assert colours.shape == (3, 3, 24, 40)
    for colour, (reference, _, _) in zip(colours, direct(*images, magma=True)):
        assert np.allclose(colour.numpy(), np.moveaxis(reference, -1, 0) * 2 - 1, atol=1e-6)


def test_identical_images_have_no_error(images):
    assert flip_map(images[1], images[1]).abs().max() == 0


def test_empty_batch_and_errors(images):
    assert flip_map(images[0][:0], images[1][:0]).shape == (0, 24, 40)
    with pytest.raises(ValueError, match="`test`"):
        flip_map(images[0], images[1][..., :8])
    with pytest.raises(ValueError, match="`reference` must lie in"):
        flip_map(images[0] * 255, images[1])


def test_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "flip_evaluator", None)
    with pytest.raises(ImportError, match=r"flip_evaluator.*diffusers_lasers\[metrics\]"):
        FLIP()
