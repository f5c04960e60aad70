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
    edges: torch.Tensor, means: torch.Tensor, deviations: torch.Tensor
) -> torch.Tensor:
    """
    Logarithms of the probabilities of cells under Gaussians.

    Args:
        edges (`torch.Tensor` of shape `(C − 1,)`): Inner ends of C cells, ascending; the first and the last cell reach
            to infinity.
        means (`torch.Tensor` of shape `(J,)`): Means.
        deviations (`torch.Tensor` of shape `(J,)`): Standard deviations, positive.

    Returns:
        `torch.Tensor` of shape `(J, C)`: ln P, float64.
    """
    ends = (edges.double() - means.double()[:, None]) / deviations.double()[:, None]
    infinity = torch.full_like(means.double()[:, None], math.inf)
    lower, upper = torch.cat([-infinity, ends], dim=1), torch.cat([ends, infinity], dim=1)
    # Φ(b) − Φ(a) = Φ(−a) − Φ(−b): on the side where both are small, nothing cancels
    swap = lower + upper > 0
    big = torch.special.log_ndtr(torch.where(swap, -lower, upper))
    small = torch.special.log_ndtr(torch.where(swap, -upper, lower))
    return big + torch.log(-torch.expm1((small - big).clamp_max(-1e-300)))


def fit_gaussian_mixture(
    counts: torch.Tensor, edges: torch.Tensor, components: int, steps: int = 200, tolerance: float = 1e-7
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, list[float]]:
    """
    The mixture of Gaussians of greatest likelihood that EM finds for counts of cells.

    Args:
        counts (`torch.Tensor` of shape `(C,)`): Values in each cell.
        edges (`torch.Tensor` of shape `(C − 1,)`): Inner ends of the cells, ascending and equally wide.
        components (`int`): Gaussians J. They start at quantiles of the counts.
        steps (`int`, defaults to 200): Most steps.
        tolerance (`float`, defaults to 1e-7): Gain of a step, in nats a value, below which it stops.

    Returns:
        `tuple[torch.Tensor, torch.Tensor, torch.Tensor, list[float]]`: Weights, means and deviations `(J,)`, float64,
        and the mean log-likelihood before each step, in nats a value. Without counts, one wide Gaussian J times.
    """
    counts, edges = counts.double(), edges.double()
    width = float(edges[1] - edges[0]) if len(edges) > 1 else max(float(edges.abs().max()), 1.0)
    middles = torch.cat([edges[:1] - width / 2, edges + width / 2])
    total = float(counts.sum())
    weights = torch.full((components,), 1.0 / components, dtype=torch.float64)
    if total == 0:
        spread = (middles[-1] - middles[0]) / 2
        return weights, middles.mean().expand(components).clone(), spread.expand(components).clone(), []
    shares = counts / total
    places = (torch.arange(components, dtype=torch.float64) + 0.5) / components
    means = middles[torch.searchsorted(shares.cumsum(0), places).clamp_max(len(middles) - 1)].clone()
    mean = (shares * middles).sum()
    deviation = (shares * (middles - mean).square()).sum().sqrt()
    deviations = (deviation / components).clamp_min(width).expand(components).clone()
    history: list[float] = []
    for _ in range(steps):
        log_cells = gaussian_cell_log_probabilities(edges, means, deviations)
        joint = log_cells + weights.log()[:, None]
        log_total = joint.logsumexp(dim=0)
        history.append(float((shares * log_total)[shares > 0].sum()))
        if len(history) > 1 and history[-1] - history[-2] < tolerance:
            break
        joined = shares * (joint - log_total).exp()
        joined[:, shares == 0] = 0.0
        first, second = _moments(edges, middles, means, deviations, log_cells)
        mass = joined.sum(dim=1)
        alive = mass > 1e-9
        safe = torch.where(alive, mass, 1.0)
        new = torch.where(alive, (joined * first).sum(dim=1) / safe, means)
        variances = (joined * second).sum(dim=1) / safe - (new - means).square()
        floor = (_FLOOR * width) ** 2
        deviations = torch.where(alive, variances.clamp_min(floor).sqrt(), deviations)
        means, weights = new, mass.clamp_min(1e-12)
        weights = weights / weights.sum()
    return weights, means, deviations, history


def _moments(
    edges: torch.Tensor, middles: torch.Tensor, means: torch.Tensor, deviations: torch.Tensor, log_cells: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """E[c | cell] and E[(c − μ)² | cell] of each Gaussian in each cell, `(J, C)`."""
    scale = deviations[:, None]
    ends = (edges - means[:, None]) / scale
    edge_log_density = -0.5 * (ends.square() + math.log(2 * math.pi))
    nothing = torch.zeros_like(scale)
    at_lower = torch.cat([nothing, (edge_log_density - log_cells[:, 1:]).exp()], dim=1)  # φ(α) / P
    at_upper = torch.cat([(edge_log_density - log_cells[:, :-1]).exp(), nothing], dim=1)
    lower, upper = torch.cat([nothing, ends], dim=1), torch.cat([ends, nothing], dim=1)
    first = means[:, None] + scale * (at_lower - at_upper)
    second = scale.square() * (1 + lower * at_lower - upper * at_upper)
    # a cell that a Gaussian practically never reaches: rounding only, held inside the cell
    infinity = torch.full_like(edges[:1], math.inf)
    low, high = torch.cat([-infinity, edges]), torch.cat([edges, infinity])
    first = torch.where(torch.isfinite(first), first, middles).clamp(low, high)
    second = torch.where(torch.isfinite(second), second, (first - means[:, None]).square())
    return first, torch.maximum(second, (first - means[:, None]).square())
