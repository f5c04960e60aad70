"""Forward and reverse processes of diffusion: Gaussian ones on numbers, categorical ones on indices."""

from .categorical import (
    absorb,
    expected_number,
    gumbel_noise,
    gumbel_softmax,
    index_to_number,
    number_to_index,
    sample_categorical,
    scramble,
    uniform_noise,
)
from .gaussian import (
    BETA_SCHEDULES,
    PREDICTION_TYPES,
    add_gaussian_noise,
    implied_noise,
    make_betas,
    min_snr_weights,
    posterior_mean_variance,
    signal_to_noise,
)


__all__ = [
    "BETA_SCHEDULES",
    "PREDICTION_TYPES",
    "absorb",
    "add_gaussian_noise",
    "expected_number",
    "gumbel_noise",
    "gumbel_softmax",
    "implied_noise",
    "index_to_number",
    "make_betas",
    "min_snr_weights",
    "number_to_index",
    "posterior_mean_variance",
    "sample_categorical",
    "scramble",
    "signal_to_noise",
    "uniform_noise",
]
