r"""Mixtures of Gaussians over the cells of a quantiser: their probabilities, and maximum likelihood by EM.

The coefficient of an active atom has the density \(Σ_j w_j N(c; μ_j, σ_j^2)\) (LASERS, 2024, eq 8; Olshausen and
Millman, 1999). A quantiser shows only in which cell [a, b] a coefficient lies, with probability

    P = Σ_j w_j P_j,    P_j = Φ((b − μ_j) / σ_j) − Φ((a − μ_j) / σ_j),

where the outermost cells reach to infinity. EM takes n_b counts of cells and iterates, with r_j = w_j P_j / P,

    N_j = Σ_b n_b r_j(b),   w_j ← N_j / N,
    μ_j ← Σ_b n_b r_j E_j[c | b] / N_j,   σ_j² ← Σ_b n_b r_j E_j[(c − μ_j)² | b] / N_j,

with the moments of a Gaussian that is cut off at the ends of its cell. So the likelihood of the cells, not of their
midpoints, rises in each step. Everything is float64, and logarithms where a probability would be 0.
"""

from __future__ import annotations

import math

import torch


__all__ = ["fit_gaussian_mixture", "gaussian_cell_log_probabilities"]

_FLOOR = 1e-3  # least deviation, in widths of an inner cell


def gaussian_cell_log_probabilities(
    lower: torch.Tensor, upper: torch.Tensor, means: torch.Tensor, deviations: torch.Tensor
) -> torch.Tensor:
    """
    Logarithms of the probabilities of cells under Gaussians.

    Args:
        lower (`torch.Tensor` of shape `(C,)`): Lower ends of the cells; −∞ for an outermost one.
        upper (`torch.Tensor` of shape `(C,)`): Upper ends, above the lower ones; ∞ for an outermost one.
        means (`torch.Tensor` of shape `(J,)`): Means.
        deviations (`torch.Tensor` of shape `(J,)`): Standard deviations, positive.

    Returns:
        `torch.Tensor` of shape `(J, C)`: ln P, float64.
    """
    means, deviations = means.double()[:, None], deviations.double()[:, None]
    lower, upper = (lower.double() - means) / deviations, (upper.double() - means) / deviations
    # Φ(b) − Φ(a) = Φ(−a) − Φ(−b): on the side where both are small, nothing cancels
    swap = lower + upper > 0
    big = torch.special.log_ndtr(torch.where(swap, -lower, upper))
    small = torch.special.log_ndtr(torch.where(swap, -upper, lower))
    return big + torch.log(-torch.expm1((small - big).clamp_max(-1e-300)))


def fit_gaussian_mixture(
    counts: torch.Tensor,
    lower: torch.Tensor,
    upper: torch.Tensor,
    components: int,
    steps: int = 100,
    tolerance: float = 1e-5,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, list[float]]:
    """
    The mixture of Gaussians of greatest likelihood that EM finds for counts of cells.

    Args:
        counts (`torch.Tensor` of shape `(C,)`): Values in each cell, not all 0.
        lower (`torch.Tensor` of shape `(C,)`): Lower ends of the cells, ascending; the first may be −∞.
        upper (`torch.Tensor` of shape `(C,)`): Upper ends, above the lower ones; the last may be ∞.
        components (`int`): Gaussians J. They start at quantiles of the counts.
        steps (`int`, defaults to 100): Most steps.
        tolerance (`float`, defaults to 1e-5): Gain of a step, in nats a value, below which it stops.

    Returns:
        `tuple[torch.Tensor, torch.Tensor, torch.Tensor, list[float]]`: Weights, means and deviations `(J,)`, float64,
        and the mean log-likelihood before each step, in nats a value.
    """
    filled = counts > 0  # others have no say
    counts, lower, upper = (part.double()[filled] for part in (counts, lower, upper))
    widths = (upper - lower)[torch.isfinite(upper - lower)]
    width = float(widths.min()) if len(widths) else 1.0
    middles = torch.where(torch.isfinite(lower), lower + width / 2, upper - width / 2)
    middles = torch.where(torch.isfinite(middles), middles, 0.0)  # one cell from −∞ to ∞
    shares = counts / counts.sum()
    weights = torch.full((components,), 1.0 / components, dtype=torch.float64)
    places = (torch.arange(components, dtype=torch.float64) + 0.5) / components
    means = middles[torch.searchsorted(shares.cumsum(0), places).clamp_max(len(middles) - 1)].clone()
    deviation = (shares * (middles - (shares * middles).sum()).square()).sum().sqrt()
    deviations = (deviation / components).clamp_min(width).expand(components).clone()
    history: list[float] = []
    for _ in range(steps):
        log_cells = gaussian_cell_log_probabilities(lower, upper, means, deviations)
        joint = log_cells + weights.log()[:, None]
        log_total = joint.logsumexp(dim=0)
        history.append(float((shares * log_total).sum()))
        if len(history) > 1 and history[-1] - history[-2] < tolerance:
            break
        joined = shares * (joint - log_total).exp()
        first, second = _moments(lower, upper, means, deviations, log_cells)
        mass = joined.sum(dim=1)
        alive = mass > 1e-9
        safe = torch.where(alive, mass, 1.0)
        new = torch.where(alive, (joined * first).sum(dim=1) / safe, means)
        variances = (joined * second).sum(dim=1) / safe - (new - means).square()
        deviations = torch.where(alive, variances.clamp_min((_FLOOR * width) ** 2).sqrt(), deviations)
        means, weights = new, mass.clamp_min(1e-12)
        weights = weights / weights.sum()
    return weights, means, deviations, history


def _moments(
    lower: torch.Tensor, upper: torch.Tensor, means: torch.Tensor, deviations: torch.Tensor, log_cells: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """E[c | cell] and E[(c − μ)² | cell] of each Gaussian in each cell, `(J, C)`."""
    means, scale = means[:, None], deviations[:, None]

    def at(ends: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """φ(z) / P and z φ(z) / P at ends of the cells, 0 at infinity."""
        standard = torch.where(torch.isfinite(ends), (ends - means) / scale, 0.0)
        density = (-0.5 * (standard.square() + math.log(2 * math.pi)) - log_cells).exp()
        density = torch.where(torch.isfinite(ends), density, 0.0)
        return density, standard * density

    (low, low_moment), (high, high_moment) = at(lower), at(upper)
    first = means + scale * (low - high)
    second = scale.square() * (1 + low_moment - high_moment)
    # where a Gaussian practically never reaches a cell there is only rounding, held inside the cell
    nearest = torch.maximum(torch.minimum(means, upper), lower)
    first = torch.where(torch.isfinite(first), first, nearest)
    first = torch.maximum(torch.minimum(first, upper), lower)
    second = torch.where(torch.isfinite(second), second, 0.0)
    return first, torch.maximum(second, (first - means).square())
