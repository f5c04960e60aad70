"""Scalar quantisation with a density: its bits, gradients and steps against scipy, numpy and high-rate theory."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import logistic

from diffusers_lasers import EntropyScalarBottleneck
from diffusers_lasers.coding import IndexCode
from diffusers_lasers.functional import entropy, latents_to_signals
from diffusers_lasers.functional.quantisers.cell_rates import cell_bits
from diffusers_lasers.metrics import CodeRate


def latents(batch=16, channels=3, size=16, seed=0):
    """Channels of three shapes: normal, Laplacian around 2, two clusters."""
    rng = np.random.default_rng(seed)
    shape = (batch, size, size)
    parts = [
        rng.normal(0, 1, shape),
        rng.laplace(2, 0.5, shape),
        rng.choice([-1, 1], shape) + rng.normal(0, 0.2, shape),
    ]
    return torch.tensor(np.stack(parts[:channels], axis=1), dtype=torch.float32)


def build(z=None, **config):
    bottleneck = EntropyScalarBottleneck(3, **config)
    bottleneck.initialize(latents() if z is None else z, torch.Generator().manual_seed(0))
    return bottleneck


def all_cells(bottleneck):
    """A code of one image that has each cell of each channel once."""
    cells = torch.arange(bottleneck.num_symbols).reshape(1, 1, -1, 1).expand(-1, -1, -1, bottleneck.depth)
    return IndexCode(cells.contiguous(), bottleneck.levels, (1, bottleneck.num_symbols))


# Bits


def test_bits_of_cells_are_those_of_scipy_and_finite_far_away():
    rng = np.random.default_rng(0)
    logits, locations, log_scales = rng.normal(size=(3, 2, 4))
    lower = rng.normal(size=(50, 4))
    upper = lower + rng.uniform(0.01, 2, size=(50, 4))
    weights = np.exp(logits) / np.exp(logits).sum(axis=0)
    parts = [logistic(locations[j], np.exp(log_scales[j])) for j in range(2)]
    expected = -np.log2(sum(w * (part.cdf(upper) - part.cdf(lower)) for w, part in zip(weights, parts)))
    parameters = [torch.tensor(value) for value in (logits, locations, log_scales)]
    bits = cell_bits(torch.tensor(lower), torch.tensor(upper), *parameters)
    np.testing.assert_allclose(bits.numpy(), expected, rtol=1e-9)
    far = torch.full((1, 4), 1e4, requires_grad=True)
    bits = cell_bits(far, far + 1, *(value.float() for value in parameters))
    bits.sum().backward()
    assert torch.isfinite(bits).all() and (bits > 100).all() and (far.grad > 0).all()


@pytest.mark.parametrize("bits", [2, 5, 8])
@pytest.mark.parametrize("fitted", [True, False])
def test_the_probabilities_of_all_cells_sum_to_one(bits, fitted):
    bottleneck = build(bits=bits, rate_weight=1e-2)
    if not fitted:
        with torch.no_grad():
            bottleneck.density.normal_(0, 0.2, generator=torch.Generator().manual_seed(0))
    cells = all_cells(bottleneck)
    bits = bottleneck._bits(cells.indices[0, 0] - 2 ** (bits - 1), 0.0, bottleneck.steps, bottleneck.density)
    torch.testing.assert_close(torch.exp2(-bits).sum(dim=0), torch.ones(3), rtol=1e-4, atol=0)


@pytest.mark.parametrize("rate_weight", [0.0, 1e-3, 1e-1])
def test_the_rate_is_a_cross_entropy_slightly_above_the_entropy(rate_weight):
    bottleneck = build(bits=6, rate_weight=rate_weight)
    held_out = latents(seed=1)
    code = bottleneck.encode(held_out)
    rate = bottleneck.rate(code)
    assert rate.shape == (16,) and rate.dtype == torch.float64
    flat = code.indices.flatten(0, 2)
    least = sum(entropy(torch.bincount(flat[:, slot])) for slot in range(3)) * len(flat)
    assert least <= rate.sum() < 1.05 * least
    assert rate.sum() < bottleneck.bits(code)
    metric = CodeRate(bottleneck)
    metric.update(code, num_pixels=1)
    torch.testing.assert_close(metric.compute()["entropy_bits_per_pixel"], least)
    assert bottleneck.bits_per_site == 18
    with pytest.raises(ValueError, match="`code` must have"):
        bottleneck.rate(build(bits=5).encode(held_out))


# Cells and steps


def test_without_a_rate_it_is_intn_over_most_of_the_values():
    z = latents(64)
    z[0, 0, 0, 0] = 1e3  # an outlier does not widen the cells
    bottleneck = build(z, bits=4)
    code = bottleneck.encode(z)
    values = latents_to_signals(z).numpy().astype(np.float64)
    for channel in range(3):
        column = np.sort(values[:, channel])
        low, high = (column[round(share * (len(column) - 1))] for share in (5e-4, 1 - 5e-4))
        step = (high - low) / 16
        cells = np.clip(np.floor((values[:, channel] - low) / step), 0, 15)
        indices = code.indices.flatten(0, 2)[:, channel].numpy()
        near = np.abs((values[:, channel] - low) / step - np.round((values[:, channel] - low) / step)) < 1e-3
        assert (indices == cells)[~near].all() and near.mean() < 0.01
        decoded = latents_to_signals(bottleneck.decode(code).detach())[:, channel].numpy()
        np.testing.assert_allclose(decoded, low + (indices + 0.5) * step, rtol=1e-4, atol=1e-4)
    assert bottleneck.steps[0] < 0.5


def test_a_given_step_is_taken_and_fixed_steps_are_no_parameters():
    bottleneck = build(step=0.25, learned_steps=False)
    torch.testing.assert_close(bottleneck.steps, torch.full((3,), 0.25))
    assert [name for name, _ in bottleneck.named_parameters()] == ["density"]
    error = bottleneck(latents()).latents - latents()
    assert error.abs().max() <= 0.125 + 1e-4
    assert (build(rate_weight=0.1).steps > build(rate_weight=0.01).steps).all()
    for bad in ({"bits": 1}, {"bits": 17}, {"step": 0.0}, {"rate_weight": -1.0}, {"quantization": "round"}):
        with pytest.raises(ValueError, match=f"`{next(iter(bad))}`"):
            EntropyScalarBottleneck(3, **bad)


def test_a_channel_that_never_varies_is_kept():
    z = latents()
    z[:, 1] = 1.5
    for config in ({"bits": 6}, {"bits": 6, "rate_weight": 1e-3}, {"bits": 6, "step": 0.1}):
        bottleneck = build(z, **config).train()
        output = bottleneck(z.clone().requires_grad_())
        (output.latents.square().mean() + output.loss).backward()
        assert all(torch.isfinite(parameter.grad).all() for parameter in bottleneck.parameters())
        bottleneck.eval()
        torch.testing.assert_close(bottleneck(z).latents[:, 1], z[:, 1], rtol=1e-3, atol=1e-3)


# Training


def test_noise_has_the_mean_and_the_error_of_rounding():
    bottleneck, z = build(rate_weight=1e-2, quantization="noise").train(), latents(4)
    torch.manual_seed(0)
    with torch.no_grad():
        errors = torch.stack([bottleneck(z).latents - z for _ in range(400)])
    steps = bottleneck.steps[:, None, None].detach()
    deviation = steps / math.sqrt(12)
    assert (errors.abs() <= steps / 2 + 1e-5).all()
    assert (errors.mean(dim=0).abs() < 6 * deviation / 20).all()
    torch.testing.assert_close(errors.square().mean(dim=(0, 1, 3, 4)).sqrt(), deviation.flatten(), rtol=0.01, atol=0)
    rounding = (bottleneck.eval()(z).latents - z).square().mean()
    torch.testing.assert_close(rounding, errors.square().mean(), rtol=0.1, atol=0)


@pytest.mark.parametrize("rate_weight", [1e-3, 1.0])
def test_gradients_with_noise_are_finite_differences(rate_weight):
    bottleneck, z = build(rate_weight=rate_weight, step=0.3, quantization="noise").train(), latents(8, seed=2)
    weight = torch.randn(z.shape, generator=torch.Generator().manual_seed(3)) / z.numel()

    def loss(z):
        torch.manual_seed(5)
        output = bottleneck(z)
        return (output.latents * weight).double().sum() + output.loss.double()

    z.requires_grad_()
    loss(z).backward()
    for tensor in (z, bottleneck.log_steps, bottleneck.density):
        direction = tensor.grad / tensor.grad.norm()
        with torch.no_grad():
            start, width, sides = tensor.clone(), 0.3 if tensor is z else 3e-3, []
            for sign in (1, -1):
                tensor.copy_(start + sign * width * direction)
                sides.append(loss(z))
            tensor.copy_(start)
        found = (sides[0] - sides[1]) / (2 * width)
        torch.testing.assert_close(found, tensor.grad.norm().double(), rtol=0.01, atol=1e-6)


def test_straight_through_has_the_gradients_of_learned_step_sizes():
    """Esser et al. (2020), eq 3, for the logarithm of a step; nothing reaches a value beyond the outermost cells."""
    bottleneck, z = build(bits=3, quantization="straight_through").train(), latents(8) * 2
    z.requires_grad_()
    output = bottleneck(z)
    torch.testing.assert_close(output.latents, bottleneck.eval()(z).latents)  # it rounds in training too
    weight = torch.randn(z.shape, generator=torch.Generator().manual_seed(3))
    (output.latents * weight).sum().backward()
    with torch.no_grad():
        steps, offset = bottleneck.steps, bottleneck.offset
        position = (latents_to_signals(z) - offset) / steps
        outside = (position < -4) | (position > 3)
        slope = torch.where(outside, position.clamp(-4, 3), position.round() - position)
        weights = latents_to_signals(weight)
        expected = 10 * steps * (weights * slope).sum(dim=0)
    assert 0.05 < outside.float().mean() < 0.9
    torch.testing.assert_close(latents_to_signals(z.grad), torch.where(outside, 0.0, weights), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(bottleneck.log_steps.grad, expected, rtol=1e-4, atol=1e-3)


def test_without_a_rate_the_density_learns_and_nothing_else_sees_it():
    bottleneck, z = build(bits=4).train(), latents(4).requires_grad_()
    loss = bottleneck(z).loss
    loss.backward()
    assert loss.item() == 0.0 and z.grad is None
    assert bottleneck.log_steps.grad is None and bottleneck.density.grad.abs().sum() > 0


@pytest.mark.parametrize("quantization", ["noise", "straight_through"])
def test_steps_come_to_those_of_high_rates_and_more_weight_is_fewer_bits(quantization):
    """Of Δ²/12 + λ log₂(c / Δ) the minimum is at Δ² = 6 λ / ln 2, whatever the density."""
    z, rates, errors = latents(), [], []
    for rate_weight in (1e-3, 4e-3, 1.6e-2):
        bottleneck = build(rate_weight=rate_weight, quantization=quantization, step=0.2).train()
        optimizer = torch.optim.Adam(bottleneck.parameters(), lr=1e-3)
        torch.manual_seed(0)
        for _ in range(200):
            output = bottleneck(z)
            optimizer.zero_grad()
            ((output.latents - z).square().mean() + output.loss).backward()
            optimizer.step()
        bottleneck.eval()
        rates.append(bottleneck.rate(bottleneck.encode(z)).sum())
        errors.append((bottleneck(z).latents - z).square().mean())
        expected = math.sqrt(6 * rate_weight / math.log(2))
        torch.testing.assert_close(bottleneck.steps[:2].detach(), torch.full((2,), expected), rtol=0.1, atol=0)
    assert rates[0] > rates[1] > rates[2] and errors[0] < errors[1] < errors[2]


def test_training_under_autocast_computes_in_float32():
    bottleneck, z = build(rate_weight=1e-2).train(), latents(4)
    torch.manual_seed(0)
    expected = bottleneck(z)
    torch.manual_seed(0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = bottleneck(z)
    assert torch.equal(output.loss, expected.loss) and torch.equal(output.latents, expected.latents)
    half = bottleneck(z.bfloat16())
    assert half.latents.dtype == torch.bfloat16 and half.loss.dtype == torch.float32


def _rank(rank, port, folder):
    torch.distributed.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    bottleneck = build(latents(seed=rank), rate_weight=1e-2)
    torch.save(bottleneck.state_dict(), f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


def test_all_ranks_start_alike(in_two_processes, tmp_path):
    one, two = in_two_processes(_rank, tmp_path)
    assert all(torch.equal(one[name], two[name]) for name in one)
