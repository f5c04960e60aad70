import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import torchmetrics
from safetensors.torch import save_file

from diffusers_lasers import PerceptualSimilarity, PerceptualSimilarityOutput


# The feature layers in torchvision's numbering: c convolution (stride, padding), f Fire, r ReLU, p max pooling (side,
# ceil mode). * marks the layers that LPIPS compares.
LAYERS = {
    "alex": "c4,2 r* p3 c1,2 r* p3 c1,1 r* c1,1 r* c1,1 r*",
    "vgg": "c1,1 r c1,1 r* p2 c1,1 r c1,1 r* p2" + " c1,1 r c1,1 r c1,1 r* p2" * 3,
    "squeeze": "c2,0 r* p3c f f* p3c f f* p3c f* f* f* f*",
}
SMALLEST = {"alex": 31, "vgg": 16, "squeeze": 17}
NAMES = {"alex": "alexnet-owt-7be5be79.pth", "vgg": "vgg16-397923af.pth", "squeeze": "squeezenet1_1-b8a52dc0.pth"}


def reference_features(network, weights, hidden):
    """The features, written again from the papers' tables with functional calls on torchvision's keys."""

    def convolve(name, hidden, stride=1, padding=0):
        return F.conv2d(hidden, weights[f"features.{name}.weight"], weights[f"features.{name}.bias"], stride, padding)

    features = []
    for index, layer in enumerate(LAYERS[network].split()):
        kind, options = layer[0], layer[1:].rstrip("*")
        if kind == "c":
            stride, padding = map(int, options.split(","))
            hidden = convolve(index, hidden, stride, padding)
        elif kind == "r":
            hidden = hidden.clamp_min(0)
        elif kind == "p":
            hidden = F.max_pool2d(hidden, int(options[0]), 2, ceil_mode=options.endswith("c"))
        else:
            squeezed = convolve(f"{index}.squeeze", hidden).clamp_min(0)
            narrow = convolve(f"{index}.expand1x1", squeezed)
            hidden = torch.cat([narrow, convolve(f"{index}.expand3x3", squeezed, padding=1)], dim=1).clamp_min(0)
        if layer.endswith("*"):
            features.append(hidden)
    return features


def reference_distance(network, weights, heads, x, y):
    shift = torch.tensor([-0.030, -0.088, -0.188], dtype=x.dtype)[:, None, None]
    scale = torch.tensor([0.458, 0.448, 0.450], dtype=x.dtype)[:, None, None]
    pairs = [reference_features(network, weights, (images - shift) / scale) for images in (x, y)]
    distance = 0
    for head, *features in zip(heads, *pairs):
        first, second = (part / (part.square().sum(1, keepdim=True) + 1e-8).sqrt() for part in features)
        distance = distance + torch.einsum("bchw,c->bhw", (first - second) ** 2, head.flatten()).mean(dim=(1, 2))
    return distance


def random_images(size, seed=0, count=2):
    return torch.rand(count, 3, *size, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def distances(model, *images, **arguments):
    output = model(*images, **arguments)
    assert isinstance(output, PerceptualSimilarityOutput)
    return output.distances


@pytest.fixture(scope="module")
def squeeze():
    torch.manual_seed(0)
    model = PerceptualSimilarity("squeeze")
    for head in model.heads:
        head.weight.copy_(torch.rand(head.weight.shape))
    return model


@pytest.mark.parametrize("network", ["squeeze", "alex", "vgg"])
def test_agrees_with_an_independent_computation(network):
    torch.manual_seed(0)
    model = PerceptualSimilarity(network)
    heads = [head.weight.copy_(torch.rand(head.weight.shape)).double() for head in model.heads]
    weights = {name: value.double() for name, value in model.state_dict().items()}
    x, y = random_images((37, 44)), random_images((37, 44), seed=1)
    expected = reference_distance(network, weights, heads, x.double(), y.double())
    assert torch.allclose(distances(model, x, y).double(), expected, rtol=1e-4)


def test_properties_of_a_distance(squeeze):
    x, y = random_images((24, 32)), random_images((24, 32), seed=1)
    distance = distances(squeeze, x, y)
    assert distance.shape == (2,)
    assert (distance > 0).all()
    assert torch.equal(distances(squeeze, x, x), torch.zeros(2))
    assert torch.allclose(distance, distances(squeeze, y, x))
    assert torch.allclose(distance[1:], distances(squeeze, x[1:], y[1:]), rtol=1e-5)


@pytest.mark.parametrize("constant", [None, 0.0])
def test_gradient_is_finite(squeeze, constant):
    # also where nothing is active, with the root's argument 0 (the original's gradient is NaN there)
    y = random_images((24, 24)) if constant is None else torch.full((2, 3, 24, 24), constant)
    for x in (y.clone(), (y + 0.1 * random_images((24, 24), seed=1)).clamp(-1, 1)):
        x.requires_grad_()
        distances(squeeze, x, y).sum().backward()
        assert x.grad.isfinite().all()
    assert x.grad.abs().max() > 0


def test_gradient_of_dead_features_is_finite():
    model = PerceptualSimilarity("squeeze")
    for name, parameter in model.features.named_parameters():
        parameter.zero_()
    x = random_images((24, 24)).requires_grad_()
    distances(model, x, random_images((24, 24), seed=1)).sum().backward()
    assert x.grad.isfinite().all()


def test_runs_in_fp32_under_autocast_and_in_half_precision(squeeze):
    x, y = random_images((24, 24)), random_images((24, 24), seed=1)
    expected = distances(squeeze, x, y)
    with torch.autocast("cpu", torch.bfloat16):
        assert distances(squeeze, x, y).dtype == torch.float32
        assert torch.equal(distances(squeeze, x, y), expected)
    assert torch.equal(
        distances(squeeze, x.bfloat16(), y.bfloat16()), distances(squeeze, x.bfloat16().float(), y.bfloat16().float())
    )
    half = PerceptualSimilarity("squeeze")
    half.load_state_dict(squeeze.state_dict())
    half = half.half()
    assert distances(half, x.half(), y.half()).dtype == torch.float32
    assert torch.allclose(distances(half, x, y), expected, rtol=1e-2)


def test_is_frozen_and_stays_in_evaluation_mode(squeeze):
    assert not any(parameter.requires_grad for parameter in squeeze.parameters())
    assert not any(module.training for module in squeeze.train().modules())


def test_range_and_kind_of_the_images(squeeze):
    good = random_images((24, 24))
    assert distances(squeeze, good * 1.5, good).isfinite().all()  # a training reconstruction overshoots
    for bad in (good * 255, good.clamp(-1, 1) + 0.1, torch.full_like(good, float("nan"))):
        with pytest.raises(ValueError, match=r"`y` must lie in \[-1, 1\]"):
            distances(squeeze, good, bad, check_range=True)
    with pytest.raises(ValueError, match="`x` must be floating point"):
        distances(squeeze, good.to(torch.uint8), good)
    for other in (good[:1], good[:, :1], good[0]):
        with pytest.raises(ValueError, match="`x` and `y`"):
            distances(squeeze, good, other)
    with pytest.raises(ValueError, match="`network`"):
        PerceptualSimilarity("resnet")


@pytest.mark.parametrize("network", ["squeeze", "alex"])
def test_smallest_image(network):
    model, side = PerceptualSimilarity(network), SMALLEST[network]
    images = random_images((side, side))
    assert distances(model, images, -images).isfinite().all()
    with pytest.raises(ValueError, match=f"at least {side}×{side}"):
        distances(model, images[..., 1:], images[..., 1:])


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_weights_with_torchvisions_names_load(squeeze, tmp_path, suffix):
    save = torch.save if suffix == ".pth" else save_file
    trunk = {name: value for name, value in squeeze.state_dict().items() if name.startswith("features")}
    trunk["classifier.1.weight"] = torch.zeros(10, 512, 1, 1)
    file = tmp_path / Path(NAMES["squeeze"]).with_suffix(suffix).name
    save(trunk, file)
    heads = {f"lin{i}.model.1.weight": head.weight.detach() for i, head in enumerate(squeeze.heads)}
    save(heads, tmp_path / f"lpips_v0.1_squeeze_lin{suffix}")
    x, y = random_images((24, 24)), random_images((24, 24), seed=1)
    for path in (tmp_path, str(file)):
        loaded = PerceptualSimilarity.from_weights("squeeze", path)
        assert torch.equal(distances(loaded, x, y), distances(squeeze, x, y))
        assert not any(parameter.requires_grad for parameter in loaded.parameters())


@pytest.mark.parametrize("network", ["squeeze", "alex"])
def test_heads_come_from_torchmetrics_without_others(network, tmp_path):
    model = PerceptualSimilarity(network)
    torch.save(model.features.state_dict(prefix="features."), tmp_path / NAMES[network])
    loaded = PerceptualSimilarity.from_weights(network, tmp_path)
    bundled = Path(torchmetrics.__file__).parent / "functional" / "image" / "lpips_models" / f"{network}.pth"
    for index, (_, weight) in enumerate(sorted(torch.load(bundled, map_location="cpu").items())):
        assert torch.equal(loaded.heads[index].weight, weight)
        assert (weight >= 0).all()


def test_missing_and_wrong_weights_are_named(squeeze, tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match="does not exist"):
        PerceptualSimilarity.from_weights("squeeze", tmp_path / "nothing")
    with pytest.raises(FileNotFoundError, match="squeezenet1_1"):
        PerceptualSimilarity.from_weights("squeeze", tmp_path)
    trunk = squeeze.features.state_dict(prefix="features.")
    trunk["features.0.weight"] = trunk["features.0.weight"][:8]
    torch.save(trunk, tmp_path / "squeezenet1_1.pt")
    with pytest.raises(ValueError, match=r"features\.0\.weight.*\(8, 3, 3, 3\)"):
        PerceptualSimilarity.from_weights("squeeze", tmp_path)
    with pytest.raises(ValueError, match=r"features\.0\.weight"):
        PerceptualSimilarity.from_weights("alex", tmp_path / "squeezenet1_1.pt")
    monkeypatch.setitem(sys.modules, "torchvision", None)
    with pytest.raises(ImportError, match="torchvision"):
        PerceptualSimilarity.from_weights("squeeze")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_assembled_network_survives_saving(squeeze, tmp_path, dtype):
    squeeze.save_pretrained(tmp_path)
    loaded = PerceptualSimilarity.from_pretrained(tmp_path, torch_dtype=dtype)
    x, y = random_images((24, 24)), random_images((24, 24), seed=1)
    assert torch.equal(distances(loaded, x, y), distances(squeeze, x, y))  # kept in fp32
    assert loaded.config.network == "squeeze"
    assert not loaded.training
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
