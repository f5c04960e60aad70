import hashlib
import importlib.util
import json

import numpy as np
import pytest
import scipy.linalg
import torch
import torch.nn.functional as F
from torch import nn

from diffusers_lasers.metrics import RFID


class Patches(nn.Module):
    """Means of the four quarters of each channel: 12 features, as maps `(B, 3, 2, 2)` flattened."""

    def forward(self, images):
        return nn.functional.adaptive_avg_pool2d(images, 2).flatten(1)


class Maps(nn.Module):
    def forward(self, images):
        return (nn.functional.avg_pool2d(images, 4),)


@pytest.fixture(scope="module")
def images():
    generator = torch.Generator().manual_seed(0)
    references = torch.rand(40, 3, 16, 16, generator=generator) * 2 - 1
    return (references * 0.8 + 0.05 * torch.randn(references.shape, generator=generator)).clamp(-1, 1), references


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("fid") / "features.pt"
    torch.jit.script(Patches()).save(path)
    return path


def frechet(one, other):
    """The definition, with scipy's matrix root."""
    mean = np.square(one.mean(0) - other.mean(0)).sum()
    covariances = np.cov(one, rowvar=False), np.cov(other, rowvar=False)
    root = scipy.linalg.sqrtm(covariances[0] @ covariances[1])
    return mean + np.trace(covariances[0] + covariances[1] - 2 * np.real(root))


def features(images, low, high, resize=None):
    values = (images * 127.5 + 127.5).round() / 255
    if resize:
        values = F.interpolate(values, (resize, resize), mode="bilinear", antialias=True)
    return Patches()(low + (high - low) * values).double().numpy()


@pytest.mark.parametrize("resize", [None, 12])
def test_agrees_with_the_definition(images, file, resize):
    metric = RFID(file, input_range=(0, 255), resize=resize)
    for batch in zip(*(part.split(16) for part in images)):
        metric.update(*batch)
    expected = frechet(*(features(part, 0, 255, resize) for part in images))
    assert metric.compute().item() == pytest.approx(expected, rel=1e-3)


def test_uint8_input_is_the_same(images, file):
    metrics = RFID(file, resize=None), RFID(file, resize=None)
    metrics[0].update(*images)
    metrics[1].update(*((part * 127.5 + 127.5).round().to(torch.uint8) for part in images))
    assert metrics[0].compute().item() == pytest.approx(metrics[1].compute().item(), rel=1e-6)


def test_default_range_is_inceptions(images, file):
    metric = RFID(file, resize=None)
    metric.update(*images)
    expected = frechet(*(features(part, -1, 127 / 128) for part in images))
    assert metric.compute().item() == pytest.approx(expected, rel=1e-3)


def test_references_can_serve_several_models(images, file):
    metric = RFID(file, resize=None, reset_real_features=False)
    metric.update(None, images[1])
    values = []
    for reconstructions in (images[1], images[0], images[1]):
        metric.reset()
        metric.update(reconstructions, None)
        values.append(metric.compute().item())
    assert values[0] == pytest.approx(0, abs=1e-6)
    assert values[1] > 1e-3
    assert values[2] == values[0]


def test_maps_and_tuples_are_averaged(images):
    metric = RFID(Maps(), resize=None)
    metric.update(*images)
    assert metric.protocol()["num_features"] == 3
    assert metric.protocol()["features"] == "Maps"


def test_protocol_is_recorded(images, file):
    metric = RFID(file, input_range=(0, 1), resize=8)
    metric.update(*images)
    card = metric.protocol()
    assert card["features_sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()
    assert (card["n"], card["num_features"], card["resize"], card["input_range"]) == (40, 12, 8, [0, 1])
    json.dumps(card)


def test_missing_network_is_named(tmp_path, monkeypatch):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *args: None if name == "torch_fidelity" else find_spec(name, *args)
    )
    with pytest.raises(ImportError, match="pip install torch-fidelity"):
        RFID()
    with pytest.raises(FileNotFoundError, match="`features`"):
        RFID(tmp_path / "nothing.pt")
    (tmp_path / "text.pt").write_text("not a network")
    with pytest.raises(ValueError, match="TorchScript"):
        RFID(tmp_path / "text.pt")
