r"""Gaussian diffusion as formulas (Ho et al., 2020; Song et al., 2021; Scribano et al., 2023, sections 2.2 and 4.2.3).

With ᾱ_t = Π (1 − β_i), the forward process is z_t = √ᾱ_t z_0 + √(1 − ᾱ_t) ε, where z_0 is the *clean* code (eq 17 of
the 2023 paper encodes the noisy image). An estimate z̃_0 of the clean code implies a noise; eq 24 writes it with a_t and
b_t,

    ε̃ = (z_t − √ᾱ_t z̃_0) / √(1 − ᾱ_t) = (a_t z_t − z̃_0) / b_t,    a_t = 1 / √ᾱ_t,    b_t = √(1 / ᾱ_t − 1),

For any s < t and η in [0, 1], the step is

    q(z_s | z_t, z̃_0) = N(√ᾱ_s z̃_0 + √(1 − ᾱ_s − σ²) ε̃, σ²),    σ² = η² (1 − ᾱ_s) / (1 − ᾱ_t) · (1 − ᾱ_t / ᾱ_s).

η = 1 is the posterior of the forward process, for any number of steps between s and t. η = 0 is deterministic (DDIM).

The same error has different sizes as an error of z_0, ε or v: ‖ε − ε̃‖² = snr ‖z_0 − z̃_0‖² and ‖v − ṽ‖² = (snr + 1)
‖z_0 − z̃_0‖². Min-SNR (Hang et al., 2023) gives the error of z_0 the weight min(snr, γ), whichever of the three is
compared.
"""

from __future__ import annotations

import math

import torch


__all__ = [
    "BETA_SCHEDULES",
    "PREDICTION_TYPES",
    "add_gaussian_noise",
    "implied_noise",
    "make_betas",
    "min_snr_weights",
    "posterior_mean_variance",
    "signal_to_noise",
]

#: Names of the noise schedules.
BETA_SCHEDULES = ("linear", "scaled_linear", "squaredcos_cap_v2")
#: The quantities that a loss may compare: z_0, ε or v.
PREDICTION_TYPES = ("sample", "epsilon", "v_prediction")


def make_betas(
    schedule: str = "linear", steps: int = 1000, beta_start: float = 1e-4, beta_end: float = 2e-2
) -> torch.Tensor:
    """
    Variances β_1 … β_T of the forward process.

    Args:
        schedule (`str`, defaults to `"linear"`): `"linear"` (Ho et al., 2020), `"scaled_linear"`: linear in √β, or
            `"squaredcos_cap_v2"`, the cosine schedule of Nichol and Dhariwal (2021) with its limit of 0.999.
        steps (`int`, defaults to 1000): T, at least 1.
        beta_start (`float`, defaults to 1e-4): β_1 of the two linear schedules.
        beta_end (`float`, defaults to 2e-2): β_T of the two linear schedules.

    Returns:
        `torch.Tensor` of shape `(T,)`: float64.

    Raises:
        ValueError: If the schedule is unknown, if `steps` is below 1, or unless 0 < `beta_start` ≤ `beta_end` < 1.
    """
    if schedule not in BETA_SCHEDULES:
        raise ValueError(f"`beta_schedule` must be one of {BETA_SCHEDULES}, got {schedule!r}.")
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        raise ValueError(f"`num_train_timesteps` must be a positive integer, got {steps!r}.")
    if schedule == "squaredcos_cap_v2":
        grid = torch.linspace(0, 1, steps + 1, dtype=torch.float64)
        survival = torch.cos((grid + 0.008) / 1.008 * math.pi / 2).square()
        return (1 - survival[1:] / survival[:-1]).clamp_max(0.999)
    if not 0 < beta_start <= beta_end < 1:
        raise ValueError(
            f"`beta_start` and `beta_end` must satisfy 0 < start ≤ end < 1, got {beta_start!r} and {beta_end!r}."
        )
    if schedule == "scaled_linear":
        return torch.linspace(beta_start**0.5, beta_end**0.5, steps, dtype=torch.float64).square()
    return torch.linspace(beta_start, beta_end, steps, dtype=torch.float64)


def _like(alphas_cumprod: torch.Tensor | float, sample: torch.Tensor) -> torch.Tensor:
    """ᾱ as a tensor that broadcasts over the sites of a sample: one value, or one for each item of the batch."""
    value = torch.as_tensor(alphas_cumprod, device=sample.device)
    value = value.to(torch.promote_types(sample.dtype, torch.float32))
    return value.view(-1, *[1] * (sample.ndim - 1)) if value.ndim == 1 else value


def add_gaussian_noise(
    original: torch.Tensor, noise: torch.Tensor, alphas_cumprod: torch.Tensor | float
) -> torch.Tensor:
    """
    The forward process, z_t = √ᾱ_t z_0 + √(1 − ᾱ_t) ε.

    Args:
        original (`torch.Tensor` of shape `(B, ...)`): z_0.
        noise (`torch.Tensor` of the same shape): ε.
        alphas_cumprod (`torch.Tensor` of shape `(B,)` or a number): ᾱ_t.

    Returns:
        `torch.Tensor` of the same shape: z_t in the dtype of `original`, computed in float32 or better.
    """
    alpha = _like(alphas_cumprod, original)
    return (alpha.sqrt() * original + (1 - alpha).sqrt() * noise).to(original.dtype)


def implied_noise(sample: torch.Tensor, original: torch.Tensor, alphas_cumprod: torch.Tensor | float) -> torch.Tensor:
    """
    The noise that an estimate implies, ε̃ = (z_t − √ᾱ_t z̃_0) / √(1 − ᾱ_t) (eq 24 with its constants). Differentiable.

    Args:
        sample (`torch.Tensor` of shape `(B, ...)`): z_t.
        original (`torch.Tensor` of the same shape): The estimate z̃_0.
        alphas_cumprod (`torch.Tensor` of shape `(B,)` or a number): ᾱ_t, below 1.

    Returns:
        `torch.Tensor` of the same shape: ε̃.
    """
    alpha = _like(alphas_cumprod, sample)
    return (sample - alpha.sqrt() * original) / (1 - alpha).sqrt()


def posterior_mean_variance(
    sample: torch.Tensor,
    original: torch.Tensor,
    alphas_cumprod: torch.Tensor | float,
    alphas_cumprod_next: torch.Tensor | float,
    eta: float = 1.0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Mean and variance of the step from t to an s < t.

    Args:
        sample (`torch.Tensor` of shape `(B, ...)`): z_t.
        original (`torch.Tensor` of the same shape): The estimate z̃_0.
        alphas_cumprod (`torch.Tensor` of shape `(B,)` or a number): ᾱ_t, below 1.
        alphas_cumprod_next (the same): ᾱ_s, not below ᾱ_t; 1 after the last step.
        eta (`float`, defaults to 1.0): 1 is the posterior of the forward process, 0 is deterministic.

    Returns:
        `tuple[torch.Tensor, torch.Tensor]`: The mean, in the shape of `sample`, and the variance, which broadcasts with
        it.
    """
    now, then = _like(alphas_cumprod, sample), _like(alphas_cumprod_next, sample)
    variance = eta**2 * (1 - then) / (1 - now) * (1 - now / then)
    direction = (1 - then - variance).clamp_min(0).sqrt()
    return then.sqrt() * original + direction * implied_noise(sample, original, alphas_cumprod), variance


def signal_to_noise(alphas_cumprod: torch.Tensor) -> torch.Tensor:
    """
    The signal-to-noise ratio, snr = ᾱ / (1 − ᾱ).

    Args:
        alphas_cumprod (`torch.Tensor`): ᾱ, below 1.

    Returns:
        `torch.Tensor` of the same shape: The ratio.
    """
    return alphas_cumprod / (1 - alphas_cumprod)


def min_snr_weights(snr: torch.Tensor, gamma: float, prediction_type: str = "sample") -> torch.Tensor:
    """
    Weight of a squared error, so that the error of z_0 has the weight min(snr, γ) (Hang et al., 2023).

    Args:
        snr (`torch.Tensor`): Signal-to-noise ratios, positive.
        gamma (`float`): γ, positive. With infinity, the error of ε has weight 1.
        prediction_type (`str`, defaults to `"sample"`): The compared quantity: `"sample"` for z_0, `"epsilon"` for ε or
            `"v_prediction"` for v.

    Returns:
        `torch.Tensor` of the shape of `snr`: min(snr, γ) divided by 1, snr or snr + 1.

    Raises:
        ValueError: If `gamma` is not positive or `prediction_type` is unknown.
    """
    if not gamma > 0:
        raise ValueError(f"`gamma` must be positive, got {gamma!r}.")
    weight = snr.clamp_max(gamma)
    if prediction_type == "sample":
        return weight
    if prediction_type == "epsilon":
        return weight / snr
    if prediction_type == "v_prediction":
        return weight / (snr + 1)
    raise ValueError(f"`prediction_type` must be one of {PREDICTION_TYPES}, got {prediction_type!r}.")
