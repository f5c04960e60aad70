r"""Principal axes (Karhunen–Loève) of signals that do not fit into memory: one pass over batches, on all ranks.

With Σ = E[(y − μ)(y − μ)ᵀ] = UΛUᵀ, the axes U are ordered by falling variance, and each has its largest entry positive,
so that they are the same on every machine up to rounding.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch

from ..utils.distributed import all_reduce_sum


__all__ = ["affine_fit", "mean_and_covariance", "principal_axes", "standard_axes"]


def mean_and_covariance(signals: Iterable[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Mean and covariance of signals, in float64 on the CPU, summed over all ranks.

    Args:
        signals (`Iterable[torch.Tensor]`): Batches of shape `(N, n)`, read once; at least one on each rank.

    Returns:
        `tuple[torch.Tensor, torch.Tensor]`: Mean `(n,)` and covariance `(n, n)`.

    Raises:
        ValueError: If there is no signal, or one is not finite.
    """
    total = None
    for batch in signals:
        batch = batch.double()
        ones = batch.new_ones(len(batch), 1)
        part = torch.cat([ones, batch], dim=1)
        # [[N, Σy], [Σy, Σyyᵀ]]
        total = part.t() @ part if total is None else total + part.t() @ part
    if total is None:
        raise ValueError("`signals` must have at least one batch, got none.")
    total = all_reduce_sum(total).cpu()
    if not torch.isfinite(total).all():
        raise ValueError("`signals` must be finite, got NaN or infinity.")
    total = total / total[0, 0]
    mean = total[0, 1:]
    return mean, total[1:, 1:] - torch.outer(mean, mean)


def principal_axes(covariance: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Variances and axes of a covariance.

    Args:
        covariance (`torch.Tensor` of shape `(n, n)`): Symmetric, in float64 for axes that do not depend on rounding.

    Returns:
        `tuple[torch.Tensor, torch.Tensor]`: Variances `(n,)`, descending, and the axes `(n, n)` as columns.
    """
    variances, axes = torch.linalg.eigh(covariance)
    axes = axes.flip(1)
    sign = torch.sign(axes.gather(0, axes.abs().argmax(dim=0, keepdim=True)))
    return variances.flip(0), axes * sign


def standard_axes(signals: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """
    Principal axes of the signals of all ranks, and the deviations along them.

    Args:
        signals (`torch.Tensor` of shape `(N, n)`): This rank's signals.

    Returns:
        `tuple[torch.Tensor, torch.Tensor, torch.Tensor]`: Mean `(n,)`, axes `(n, n)` as columns and standard deviations
        `(n,)`, at least 1e-6, in the type of the signals.
    """
    mean, covariance = mean_and_covariance([signals])
    variances, axes = principal_axes(covariance)
    deviation = variances.clamp_min(1e-12).sqrt()
    return mean.to(signals), axes.to(signals), deviation.to(signals).clamp_min(1e-6)


def affine_fit(inputs: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """
    The affine map nearest to the targets by least squares, over all ranks.

    Args:
        inputs (`torch.Tensor` of shape `(N, n)`): Inputs x of this rank.
        targets (`torch.Tensor` of shape `(N, m)`): Targets y.

    Returns:
        `tuple[torch.Tensor, torch.Tensor]`: W `(m, n)` and b `(m,)` of y ≈ W x + b, float64 on the CPU.
    """
    mean, covariance = mean_and_covariance([torch.cat([inputs, targets], dim=1)])
    width = inputs.shape[1]
    weight = covariance[width:, :width] @ torch.linalg.pinv(covariance[:width, :width], hermitian=True)
    return weight, mean[width:] - weight @ mean[:width]
