"""The reconstruction loss of eq 6 against its definition."""

import pytest
import torch
from torch import nn

from diffusers_lasers.training import ReconstructionLoss
from diffusers_lasers.training.objectives.reconstruction import ReconstructionTerms


class MeanAbsolute(nn.Module):
    """A perceptual distance that is known in closed form, with a parameter that must stay frozen."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(2.0))

    def forward(self, x, y):
        assert x.dtype == y.dtype == torch.float32
        return self.scale * (x - y).abs().mean(dim=(1, 2, 3))


@pytest.fixture
def images():
    generator = torch.Generator().manual_seed(0)
    return [torch.rand(4, 3, 8, 8, generator=generator) * 2 - 1 for _ in range(2)]


@pytest.mark.parametrize("eta", [0.0, 0.25, 0.5, 1.0])
def test_value_is_the_weighted_sum(images, eta):
    terms = ReconstructionLoss(eta, MeanAbsolute())(*images)
    assert isinstance(terms, ReconstructionTerms)
    difference = (images[0] - images[1]).double()
    mse, perceptual = difference.square().mean(), 2 * difference.abs().mean()
    torch.testing.assert_close(terms.loss.double(), eta * mse + (1 - eta) * perceptual, rtol=1e-6, atol=0)
    torch.testing.assert_close(terms.mse.double(), mse, rtol=1e-6, atol=0)
    torch.testing.assert_close(terms.perceptual.double(), perceptual, rtol=1e-6, atol=0)


def test_only_the_loss_has_a_gradient_and_the_network_is_frozen(images):
    sample = images[0].requires_grad_()
    criterion = ReconstructionLoss(0.5, MeanAbsolute())
    terms = criterion(sample, images[1])
    terms.loss.backward()
    assert sample.grad.abs().sum() > 0 and not terms.mse.requires_grad and not terms.perceptual.requires_grad
    assert not any(parameter.requires_grad for parameter in criterion.parameters())
    assert not criterion.train().perceptual.training


def test_half_precision_is_computed_in_float32(images):
    criterion = ReconstructionLoss(0.5, MeanAbsolute())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        terms = criterion(images[0].bfloat16(), images[1])
    reference = criterion(images[0].bfloat16().float(), images[1])
    assert terms.loss.dtype == torch.float32
    torch.testing.assert_close(terms.loss, reference.loss, rtol=0, atol=0)


def test_without_a_network_the_loss_is_the_mean_squared_error(images):
    terms = ReconstructionLoss(eta=1)(*images)
    assert terms.perceptual is None and torch.equal(terms.loss, (images[0] - images[1]).square().mean())


@pytest.mark.parametrize(
    "arguments, message",
    [({}, "be 1"), ({"eta": 0.9}, "be 1"), ({"eta": 1.5}, r"lie in \[0, 1\]"), ({"eta": -0.1}, r"lie in \[0, 1\]")],
)
def test_bad_weights_are_named(arguments, message):
    with pytest.raises(ValueError, match=f"`eta` must {message}"):
        ReconstructionLoss(**arguments)


def test_shapes_must_agree(images):
    with pytest.raises(ValueError, match="`sample`"):
        ReconstructionLoss(1.0)(images[0][:1], images[1])
