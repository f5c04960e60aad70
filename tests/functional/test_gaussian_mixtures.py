"""Mixtures of Gaussians over cells: against integrals, and EM against what it promises."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import quad
from scipy.stats import norm

from diffusers_lasers.functional.quantisers.gaussian_mixtures import (
    fit_gaussian_mixture,
    gaussian_cell_log_probabilities,
)


INFINITY = torch.tensor([math.inf], dtype=torch.float64)


def ends(cells):
    inner = 2 * torch.arange(1, cells, dtype=torch.float64) / cells - 1
    return torch.cat([-INFINITY, inner]), torch.cat([inner, INFINITY])


@pytest.mark.parametrize(("mean", "deviation"), [(0.0, 0.3), (0.7, 0.05), (-3.0, 0.5), (0.2, 20.0)])
def test_cells_have_the_integral_of_the_density(mean, deviation):
    lower, upper = ends(16)
    found = gaussian_cell_log_probabilities(lower, upper, torch.tensor([mean]), torch.tensor([deviation]))[0].exp()
    mean, deviation = float(torch.tensor(mean)), float(torch.tensor(deviation))  # float32, as given
    for cell, (low, high) in enumerate(zip(lower.tolist(), upper.tolist())):
        expected = quad(norm(mean, deviation).pdf, low, high, epsabs=1e-14)[0]
        assert abs(float(found[cell]) - expected) < 1e-10
    assert abs(float(found.sum()) - 1) < 1e-12


def test_cells_far_in_a_tail_have_a_logarithm():
    """Between 40 and 41 deviations float64 has no probability; its logarithm is that of the tail's first end."""
    for sign in (1, -1):
        low, high = sorted((sign * 40.0, sign * 41.0))
        arguments = (torch.tensor([part], dtype=torch.float64) for part in (low, high, 0.0, 1.0))
        found = float(gaussian_cell_log_probabilities(*arguments))
        assert found == pytest.approx(norm.logsf(40.0), rel=1e-9)


def density_cells(weights, means, deviations, count, cells, seed=0):
    """Counts of cells of values drawn by numpy."""
    source = np.random.default_rng(seed)
    part = source.choice(len(weights), count, p=weights)
    values = source.normal(np.asarray(means)[part], np.asarray(deviations)[part])
    found = np.clip(np.floor((values + 1) * cells / 2), 0, cells - 1).astype(int)
    return torch.from_numpy(np.bincount(found, minlength=cells)), values


def test_parameters_come_back_from_cells():
    weights, means, deviations = (0.3, 0.5, 0.2), (-0.6, 0.05, 0.5), (0.08, 0.1, 0.15)
    counts, _ = density_cells(weights, means, deviations, 400_000, 64)
    found = fit_gaussian_mixture(counts, *ends(64), 3, steps=2000, tolerance=1e-12)[:3]
    order = found[1].argsort()
    for values, expected in zip(found, (weights, means, deviations)):
        torch.testing.assert_close(values[order], torch.tensor(expected).double(), rtol=0, atol=6e-3)


def test_one_gaussian_is_the_one_of_greatest_likelihood_of_values():
    """With fine cells the moments of the values, up to a cell; coarse ones still give them, which midpoints do not."""
    fine, values = density_cells((1.0,), (0.1,), (0.2,), 100_000, 4096)
    coarse = fine.view(8, -1).sum(dim=1)
    for counts, cells, within in ((fine, 4096, 1e-3), (coarse, 8, 4e-3)):
        _, mean, deviation, _ = fit_gaussian_mixture(counts, *ends(cells), 1, steps=500, tolerance=1e-13)
        assert abs(float(mean) - values.mean()) < within and abs(float(deviation) - values.std()) < within


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(0, 1000), min_size=2, max_size=40).filter(any),
    st.integers(1, 5),
)
def test_the_likelihood_rises_in_every_step(counts, components):
    counts = torch.tensor(counts)
    weights, means, deviations, history = fit_gaussian_mixture(
        counts, *ends(len(counts)), components, steps=60, tolerance=-math.inf
    )
    assert len(history) == 60
    assert all(later >= earlier - 1e-9 for earlier, later in zip(history, history[1:]))
    assert float(weights.sum()) == pytest.approx(1) and bool((weights > 0).all() & (deviations > 0).all())
    assert bool(torch.isfinite(means).all() & torch.isfinite(deviations).all())
    # the history is the likelihood of the cells, by scipy
    ps = sum(
        float(w)
        * (norm.cdf(np.asarray(ends(len(counts))[1]), m, d) - norm.cdf(np.asarray(ends(len(counts))[0]), m, d))
        for w, m, d in zip(weights, means.tolist(), deviations.tolist())
    )
    share = counts.numpy() / counts.sum().item()
    with np.errstate(divide="ignore"):
        now = np.sum(np.where(share > 0, share * np.log(np.where(share > 0, ps, 1)), 0))
    assert now >= history[-1] - 1e-6 or not np.isfinite(now)
