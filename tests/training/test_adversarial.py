"""Adversarial losses against their definitions, the adaptive weight against closed forms, LeCam's state."""

import math
import os

import pytest
import torch

from diffusers_lasers import PatchDiscriminator
from diffusers_lasers.training import AdversarialObjective, LeCamRegularizer
from diffusers_lasers.training.objectives.adversarial import (
    adaptive_weight,
    adversarial_factor,
    discriminator_loss,
    generator_loss,
)


@pytest.fixture
def logits():
    generator = torch.Generator().manual_seed(0)
    return [3 * torch.randn(4, 1, 5, 5, generator=generator) for _ in range(2)]


def test_hinge(logits):
    real, fake = (part.double() for part in logits)
    expected = 0.5 * ((1 - real).clamp_min(0).mean() + (1 + fake).clamp_min(0).mean())
    torch.testing.assert_close(discriminator_loss(*logits).double(), expected, rtol=1e-6, atol=0)
    torch.testing.assert_close(generator_loss(logits[1]).double(), -fake.mean(), rtol=1e-6, atol=1e-7)
    assert discriminator_loss(torch.full((3,), 1.5), torch.full((3,), -1.5)) == 0


def test_vanilla(logits):
    entropy = torch.nn.functional.binary_cross_entropy_with_logits
    ones, zeros = torch.ones_like(logits[0]), torch.zeros_like(logits[0])
    expected = 0.5 * (entropy(logits[0], ones) + entropy(logits[1], zeros))
    torch.testing.assert_close(discriminator_loss(*logits, kind="vanilla"), expected)
    torch.testing.assert_close(generator_loss(logits[1], kind="vanilla"), entropy(logits[1], ones))
    assert generator_loss(torch.tensor([-1e4]), "vanilla").isfinite()


def test_half_precision_is_computed_in_float32(logits):
    half = [part.half() * 1000 for part in logits]
    for kind in ("hinge", "vanilla"):
        loss = discriminator_loss(*half, kind=kind)
        assert loss.dtype == torch.float32 and loss.isfinite()
        torch.testing.assert_close(loss, discriminator_loss(*(part.float() for part in half), kind=kind))


@pytest.mark.parametrize(
    "call", [lambda k: discriminator_loss(*[torch.zeros(1)] * 2, k), lambda k: generator_loss(torch.zeros(1), k)]
)
def test_another_kind_is_refused(call):
    with pytest.raises(ValueError, match="`kind` must be one of .*'wasserstein'"):
        call("wasserstein")


def losses(first, second):
    weight = torch.tensor([1.0, -2.0], requires_grad=True)
    return (weight * torch.tensor(first)).sum(), (weight * torch.tensor(second)).sum(), weight


def test_the_weight_is_the_ratio_of_the_gradients_norms():
    assert adaptive_weight(*losses([3.0, 4.0], [0.0, 2.0])).item() == pytest.approx(2.5, rel=1e-6)
    assert adaptive_weight(*losses([3.0, 4.0], [0.0, 2.0]), delta=3.0).item() == pytest.approx(1.0)


def test_weighted_gradients_have_equal_norms_and_the_graph_remains():
    torch.manual_seed(0)
    layer = torch.nn.Conv2d(4, 3, 3)
    sample = layer(torch.randn(2, 4, 8, 8))
    first, second = sample.square().mean(), 1e3 * sample.sigmoid().mean()
    weight = adaptive_weight(first, second, layer.weight)
    assert not weight.requires_grad
    norms = [torch.autograd.grad(x, layer.weight, retain_graph=True)[0].norm() for x in (first, weight * second)]
    torch.testing.assert_close(*norms, rtol=1e-4, atol=0)
    (first + weight * second).backward()  # the graph was kept


def test_the_weight_is_clamped_and_safe():
    assert adaptive_weight(*losses([3.0, 4.0], [0.0, 0.0])) == 1e4
    assert adaptive_weight(*losses([3.0, 4.0], [0.0, 0.1]), maximum=7.0) == 7.0
    assert adaptive_weight(*losses([0.0, 0.0], [0.0, 0.0])) == 0
    assert adaptive_weight(*losses([math.inf, 4.0], [1.0, 0.0])) == 0
    assert adaptive_weight(*losses([1.0, 4.0], [math.nan, 0.0])) == 0
    for name in ("delta", "maximum"):
        with pytest.raises(ValueError, match=f"`{name}`"):
            adaptive_weight(*losses([1.0, 1.0], [1.0, 1.0]), **{name: 0.0})


def test_the_factor_rises_after_the_start():
    assert [adversarial_factor(step, start=3) for step in (0, 2, 3, 9)] == [0, 0, 1, 1]
    assert [adversarial_factor(step, start=3, warmup=4) for step in (2, 3, 4, 7, 8)] == [0, 0, 0.25, 1, 1]


def test_lecam_follows_its_definition_and_its_state_continues(logits):
    regularizer = LeCamRegularizer(decay=0.5)
    real, fake = logits
    value = regularizer(real, fake)
    means = 0.5 * real.mean(), 0.5 * fake.mean()
    expected = (real - means[1]).clamp_min(0).square().mean() + (means[0] - fake).clamp_min(0).square().mean()
    torch.testing.assert_close(value, expected)
    other = LeCamRegularizer(decay=0.5)
    other.load_state_dict(regularizer.state_dict())
    assert torch.equal(other(fake, real), regularizer(fake, real)) and other.means.abs().sum() > 0
    with pytest.raises(ValueError, match="`decay`"):
        LeCamRegularizer(decay=1.0)


def test_gradients_reach_the_logits_only(logits):
    real, fake = (part.requires_grad_() for part in logits)
    (discriminator_loss(real, fake) + LeCamRegularizer()(real, fake)).backward()
    assert real.grad.abs().sum() > 0 and fake.grad.abs().sum() > 0


# The objective as a whole


@pytest.fixture
def networks():
    torch.manual_seed(0)
    generator = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3, padding=1), torch.nn.Tanh(), torch.nn.Conv2d(4, 3, 1))
    return generator, PatchDiscriminator(base_channels=8, num_layers=1, norm_num_groups=4)


def parts_of(generator):
    images = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(1)) * 2 - 1
    sample = generator(images)
    return images, sample, (sample - images).square().mean(), generator[-1].weight


@pytest.mark.parametrize("kind", ["hinge", "vanilla"])
def test_the_generators_term_is_equation_15(networks, kind):
    generator, discriminator = networks
    images, sample, reconstruction, layer = parts_of(generator)
    objective = AdversarialObjective(discriminator, kind, weight=0.5, start=2, warmup=4)
    term, parts = objective.generator_term(sample, reconstruction, layer, step=3)
    loss = generator_loss(discriminator(sample).logits, kind)
    weight = 0.5 * 0.25 * adaptive_weight(reconstruction, loss, layer)
    torch.testing.assert_close(term, weight * loss)
    torch.testing.assert_close(parts["adversarial_weight"], weight)
    term.backward()
    assert all(parameter.grad is None for parameter in discriminator.parameters())
    assert generator[0].weight.grad.abs().sum() > 0
    fixed = AdversarialObjective(discriminator, kind, weight=0.5, adaptive=False)
    assert fixed.generator_term(sample.detach(), reconstruction, layer, 0)[1]["adversarial_weight"] == 0.5


def test_the_discriminators_term_leaves_the_generator_alone(networks):
    generator, discriminator = networks
    images, sample, _, _ = parts_of(generator)
    objective = AdversarialObjective(discriminator, lecam=LeCamRegularizer(), lecam_weight=0.1)
    term, parts = objective.discriminator_term(images, sample)
    expected = discriminator_loss(discriminator(images).logits, discriminator(sample.detach()).logits)
    torch.testing.assert_close(parts["discriminator_loss"], expected.detach())
    lecam = LeCamRegularizer()(discriminator(images).logits, discriminator(sample).logits)
    torch.testing.assert_close(term, expected + 0.1 * lecam)
    term.backward()
    assert all(parameter.grad is None for parameter in generator.parameters())
    assert all(parameter.grad is not None for parameter in discriminator.parameters())


def test_before_the_start_nothing_counts_and_after_it_the_discriminator_learns_first(networks):
    generator, discriminator = networks
    objective = AdversarialObjective(discriminator, start=5, warmup=10)
    assert not objective.active(4) and objective.active(5)
    images, sample, reconstruction, layer = parts_of(generator)
    assert objective.generator_term(sample, reconstruction, layer, step=5)[0] == 0


def test_bad_arguments_of_the_objective_are_named(networks):
    for name in ("weight", "start", "warmup", "lecam_weight"):
        with pytest.raises(ValueError, match=f"`{name}`"):
            AdversarialObjective(networks[1], **{name: -1})
    with pytest.raises(ValueError, match="`kind`"):
        AdversarialObjective(networks[1], "wasserstein")


def _rank(rank, port, folder):
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.distributed.init_process_group("gloo", rank=rank, world_size=2)
    torch.save(weight_of(slice(2 * rank, 2 * rank + 2)), f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


def weight_of(part):
    torch.manual_seed(0)
    layer = torch.nn.Conv2d(4, 3, 3)
    sample = layer(torch.randn(4, 4, 8, 8)[part])
    return adaptive_weight(sample.square().mean(), sample.sigmoid().mean(), layer.weight)


def test_all_ranks_have_the_weight_of_the_whole_batch(in_two_processes, tmp_path):
    first, second = in_two_processes(_rank, tmp_path)
    assert torch.equal(first, second)
    torch.testing.assert_close(first, weight_of(slice(0, 4)), rtol=1e-5, atol=0)
    assert abs(first - weight_of(slice(0, 2))) > 1e-3 * first
