import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from diffusers_lasers import PerceptualSimilarity
from diffusers_lasers.functional.images.psnr import image_psnr
from diffusers_lasers.metrics import FLIP, LPIPS, PSNR, SSIM


def uint8_images(seed, shape=(3, 3, 20, 24)):
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def smooth_pair(shape=(3, 3, 20, 24)):
    """uint8 references and slightly noisy copies, which have structure."""
    references = torch.nn.functional.avg_pool2d(uint8_images(0, shape).float(), 5, stride=1, padding=2)
    noise = 8 * torch.randn(shape, generator=torch.Generator().manual_seed(2))
    return (references + noise).round().clamp(0, 255).to(torch.uint8), references.round().to(torch.uint8)


def floats(images):
    return images.float() / 127.5 - 1


def value(metric, reconstructions, references):
    metric.update(reconstructions, references)
    return metric.compute().item()


def test_psnr_agrees_with_scikit_image():
    reconstructions, references = smooth_pair()
    each = [peak_signal_noise_ratio(y.numpy(), x.numpy()) for x, y in zip(reconstructions, references)]
    assert value(PSNR(), reconstructions, references) == pytest.approx(np.mean(each), rel=1e-6)


def test_psnr_of_the_dataset_is_that_of_the_mean_error():
    reconstructions, references = smooth_pair()
    reconstructions[0] = references[0]  # infinite alone, not in the mean error
    error = (reconstructions.double() - references.double()).square().mean().item()
    expected = 10 * np.log10(255**2 / error)
    assert value(PSNR(average="dataset"), reconstructions, references) == pytest.approx(expected, rel=1e-6)
    assert value(PSNR(), reconstructions, references) == float("inf")


def test_psnr_does_not_wrap_uint8():
    # Lightning-AI/torchmetrics#2787: a random pair scores 27.9 dB with wrapped differences; the truth is 7.75 dB
    one, other = uint8_images(0, (4, 3, 64, 64)), uint8_images(1, (4, 3, 64, 64))
    wrapped = 10 * torch.log10(255**2 / ((one - other) ** 2).float().mean()).item()
    assert wrapped == pytest.approx(27.9, abs=0.1)
    assert value(PSNR(), one, other) == pytest.approx(7.75, abs=0.1)
    each = [peak_signal_noise_ratio(y.numpy(), x.numpy()) for x, y in zip(one, other)]
    assert value(PSNR(), one, other) == pytest.approx(np.mean(each), rel=1e-6)


@pytest.mark.parametrize("size", [(32, 40), (11, 17)])
def test_ssim_agrees_with_scikit_image(size):
    reconstructions, references = smooth_pair((3, 3, *size))
    options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "channel_axis": 0}
    each = [
        structural_similarity(y.double().numpy(), x.double().numpy(), data_range=255, **options)
        for x, y in zip(reconstructions, references)
    ]
    assert value(SSIM(), reconstructions, references) == pytest.approx(np.mean(each), abs=1e-6)


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return PerceptualSimilarity("squeeze")


def metrics(network):
    return [PSNR(), PSNR(average="dataset"), SSIM(), FLIP(), LPIPS(network)]


def test_uint8_and_float_give_the_same_value(network):
    reconstructions, references = smooth_pair()
    for by_integers, by_floats in zip(metrics(network), metrics(network)):
        expected = value(by_integers, reconstructions, references)
        assert value(by_floats, floats(reconstructions), floats(references)) == pytest.approx(expected, abs=1e-6)


def test_value_does_not_depend_on_the_batches(network):
    reconstructions, references = smooth_pair()
    for whole, parts in zip(metrics(network), metrics(network)):
        for batch in zip(reconstructions.split(2), references.split(2)):
            parts.update(*batch)
        assert parts.compute().item() == pytest.approx(value(whole, reconstructions, references), rel=1e-6)
        assert parts.protocol() == whole.protocol()
        assert parts.protocol()["n"] == 3
        json.dumps(parts.protocol(), allow_nan=False)


def test_identical_images_score_perfectly(network):
    _, references = smooth_pair()
    for metric, perfect in zip(metrics(network), [float("inf"), float("inf"), 1, 0, 0]):
        assert value(metric, references, references) == pytest.approx(perfect, abs=1e-9)


def test_lpips_is_the_mean_distance_and_its_card_names_the_weights(network):
    reconstructions, references = smooth_pair()
    metric = LPIPS(network)
    expected = network(floats(reconstructions), floats(references)).distances.mean().item()
    assert value(metric, reconstructions, references) == pytest.approx(expected, rel=1e-6)
    card = metric.protocol()
    assert card["network"] == "squeeze"
    assert LPIPS(PerceptualSimilarity("squeeze")).protocol()["weights_sha256"] != card["weights_sha256"]


def test_wrong_images_are_refused(network):
    good = torch.zeros(1, 3, 32, 32)
    for metric in metrics(network):
        for bad in (good + 1.001, good - 1.1, torch.full_like(good, 255), torch.full_like(good, float("nan"))):
            with pytest.raises(ValueError, match="`reconstructions` must lie in"):
                metric.update(bad, good)
            with pytest.raises(ValueError, match="`references` must lie in"):
                metric.update(good, bad)
        with pytest.raises(ValueError, match="`references` must be uint8"):
            metric.update(good, good.to(torch.int32))
        with pytest.raises(ValueError, match="`references` must be of shape"):
            metric.update(good, good[:, :1])
        with pytest.raises(ValueError, match="`reconstructions` must have the shape"):
            metric.update(good[..., :16], good)
        assert metric.num_images == 0
    with pytest.raises(ValueError, match="11×11"):
        SSIM().update(good[..., :8], good[..., :8])
    with pytest.raises(ValueError, match="`average`"):
        PSNR(average="pixels")


def test_half_precision_images_are_accepted():
    reconstructions, references = smooth_pair()
    expected = value(PSNR(), reconstructions, references)
    halves = (floats(reconstructions).half(), floats(references).half())
    assert value(PSNR(), *halves) == pytest.approx(expected, abs=0.01)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_psnr_of_a_part_is_that_of_its_pixels(dtype):
    """With a mask against scikit-image on the pixels inside; without one, the metric is the mean of the function's
    values."""
    generator = torch.Generator().manual_seed(0)
    first, second = (torch.rand(3, 3, 20, 16, generator=generator).to(dtype) * 2 - 1 for _ in range(2))
    mask = torch.zeros(3, 1, 20, 16)
    mask[..., 4:9, 2:14] = 1
    expected = [
        peak_signal_noise_ratio(y[:, 4:9, 2:14].numpy(), x[:, 4:9, 2:14].numpy(), data_range=2)
        for x, y in zip(first, second)
    ]
    torch.testing.assert_close(image_psnr(first, second, mask), torch.tensor(expected, dtype=dtype), rtol=1e-5, atol=0)
    metric = PSNR()
    metric.update(first, second)
    assert float(metric.compute()) == pytest.approx(
        float(image_psnr(first.double(), second.double()).mean()), rel=1e-12
    )
    assert image_psnr(first.half(), first.half()).tolist() == [math.inf] * 3


def test_there_is_one_psnr():
    """No script and no other module writes the formula again."""
    root = Path(__file__).resolve().parents[2]
    paths = [path for part in ("benchmarks", "examples", "src", "utils") for path in (root / part).rglob("*.py")]
    formula = r"log10\((4|errors|\(\(sample)|\.log10\(\)"
    found = {path.name for path in paths if re.search(formula, path.read_text(encoding="utf-8"))}
    assert found == {"psnr.py"}
