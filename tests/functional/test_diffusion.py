"""Gaussian diffusion against exact algebra in float64 and against diffusers' schedulers."""

import pytest
import torch
from diffusers import DDPMScheduler
from hypothesis import given, settings
from hypothesis import strategies as st

from diffusers_lasers.functional import min_snr_weights
from diffusers_lasers.functional.diffusion import (
    BETA_SCHEDULES,
    PREDICTION_TYPES,
    add_gaussian_noise,
    implied_noise,
    make_betas,
    posterior_mean_variance,
    signal_to_noise,
)


@pytest.mark.parametrize("schedule", BETA_SCHEDULES)
def test_schedules_are_those_of_diffusers(schedule):
    expected = DDPMScheduler(num_train_timesteps=200, beta_schedule=schedule).betas
    torch.testing.assert_close(make_betas(schedule, 200).float(), expected, atol=2e-6, rtol=1e-4)


def test_bad_schedules_are_named():
    for arguments, word in ((("sigmoid",), "beta_schedule"), (("linear", 0), "num_train_timesteps")):
        with pytest.raises(ValueError, match=word):
            make_betas(*arguments)
    with pytest.raises(ValueError, match="`beta_start` and `beta_end`"):
        make_betas("linear", 10, 0.5, 0.1)


@given(st.integers(0, 98), st.integers(1, 99), st.integers(0, 2**31))
@settings(max_examples=40, deadline=None)
def test_the_step_is_the_product_of_gaussians(first, gap, seed):
    """q(z_s | z_t, z_0) ∝ q(z_t | z_s) q(z_s | z_0): precisions and their weighted means add."""
    alphas = (1 - make_betas("linear", 100, 1e-3, 0.2)).cumprod(dim=0)
    late = min(first + gap, 99)
    then, now = alphas[first], alphas[late]
    generator = torch.Generator().manual_seed(seed)
    original, sample = torch.randn(2, 4, 3, generator=generator, dtype=torch.float64)
    ratio = now / then
    precision = ratio / (1 - ratio) + 1 / (1 - then)
    mean = (ratio.sqrt() * sample / (1 - ratio) + then.sqrt() * original / (1 - then)) / precision
    got, variance = posterior_mean_variance(sample, original, now, then)
    torch.testing.assert_close(got, mean, atol=1e-10, rtol=1e-9)
    torch.testing.assert_close(variance, 1 / precision, atol=1e-12, rtol=1e-9)


def test_the_deterministic_step_keeps_the_implied_noise():
    original, noise = torch.randn(2, 3, 5, dtype=torch.float64)
    now, then = torch.tensor(0.3, dtype=torch.float64), torch.tensor(0.8, dtype=torch.float64)
    sample = add_gaussian_noise(original, noise, now)
    mean, variance = posterior_mean_variance(sample, original, now, then, eta=0.0)
    assert variance == 0
    torch.testing.assert_close(mean, add_gaussian_noise(original, noise, then))
    clean, variance = posterior_mean_variance(sample, original, now, 1.0)
    torch.testing.assert_close(clean, original)
    assert variance == 0


def test_implied_noise_inverts_the_forward_process():
    original, noise = torch.randn(2, 4, 6, 3, 3, dtype=torch.float64)
    alphas = torch.tensor([0.999, 0.7, 0.2, 1e-4], dtype=torch.float64)
    sample = add_gaussian_noise(original, noise, alphas)
    torch.testing.assert_close(implied_noise(sample, original, alphas), noise)
    a, b = alphas.rsqrt().view(-1, 1, 1, 1), (1 / alphas - 1).sqrt().view(-1, 1, 1, 1)
    torch.testing.assert_close(implied_noise(sample, original, alphas), (a * sample - original) / b)


@pytest.mark.parametrize("gamma", [0.5, 5.0, float("inf")])
def test_a_weighted_error_is_the_same_however_it_is_written(gamma):
    original, guess, noise = torch.randn(3, 5, 7, dtype=torch.float64)
    alphas = torch.tensor([0.99, 0.9, 0.5, 0.1, 0.01], dtype=torch.float64)
    sample = add_gaussian_noise(original, noise, alphas)
    implied = implied_noise(sample, guess, alphas)
    root, rest = alphas.sqrt().view(-1, 1), (1 - alphas).sqrt().view(-1, 1)
    errors = {
        "sample": guess - original,
        "epsilon": implied - noise,
        "v_prediction": (root * implied - rest * guess) - (root * noise - rest * original),
    }
    snr = signal_to_noise(alphas)
    values = [min_snr_weights(snr, gamma, kind) * errors[kind].square().mean(dim=1) for kind in PREDICTION_TYPES]
    torch.testing.assert_close(values[0], values[1])
    torch.testing.assert_close(values[0], values[2])
    assert (min_snr_weights(snr, gamma) <= gamma).all()


def test_bad_weights_are_named():
    with pytest.raises(ValueError, match="`gamma` must be positive"):
        min_snr_weights(torch.ones(1), 0.0)
    with pytest.raises(ValueError, match="`prediction_type`"):
        min_snr_weights(torch.ones(1), 5.0, "x")


def test_half_precision_keeps_its_dtype():
    sample = add_gaussian_noise(torch.ones(2, 3).half(), torch.zeros(2, 3).half(), torch.tensor([0.25, 1.0]))
    assert sample.dtype == torch.float16
    torch.testing.assert_close(sample[:, 0], torch.tensor([0.5, 1.0]).half())
