import pytest
import torch

from diffusers_lasers.metrics import LatentNMSE


@pytest.fixture
def latents():
    return (
        torch.randn(5, 3, 4, 6, generator=torch.Generator().manual_seed(0)) * 2
        + torch.tensor([10.0, 0, -3])[:, None, None]
    )


def test_agrees_with_the_definition_in_any_batches(latents):
    coded = latents + 0.1 * torch.randn(latents.shape, generator=torch.Generator().manual_seed(1))
    metric = LatentNMSE(3)
    for part in zip(coded.split(2), latents.split(2)):
        metric.update(*part)
    z = latents.double()
    variance = z.var(dim=(0, 2, 3), correction=0).mean()
    expected = (coded.double() - z).square().mean() / variance
    assert metric.compute().item() == pytest.approx(expected.item(), rel=1e-9)


def test_zero_for_identity_and_one_for_the_mean(latents):
    metric = LatentNMSE(3)
    metric.update(latents, latents)
    assert metric.compute().item() == 0
    metric.reset()
    metric.update(latents.mean(dim=(0, 2, 3), keepdim=True).expand_as(latents), latents)
    assert metric.compute().item() == pytest.approx(1, rel=1e-6)


def test_scale_invariance(latents):
    coded = latents.round()
    values = []
    for scale in (1, 64):
        metric = LatentNMSE(3)
        metric.update(coded * scale, latents * scale)
        values.append(metric.compute().item())
    assert values[0] == pytest.approx(values[1], rel=1e-9)


def test_error_names_the_argument(latents):
    with pytest.raises(ValueError, match="`latents`"):
        LatentNMSE(4).update(latents, latents)
