r"""Scalar quantisation by error and cost: which of a slot's values is the cheapest for a number.

Of the values \(p_0 < p_1 < …\) of a slot, each with a cost, a number v takes the one of the least (v − p_k)² + cost_k.
The search starts from the nearest value and goes outwards on both sides, where the error only grows. It ends where the
error and the least cost are more than what was found. No value beyond can be cheaper: the result is that of all values.
"""

from __future__ import annotations

import torch


__all__ = ["cheapest_points"]


def cheapest_points(
    values: torch.Tensor, nearest: torch.Tensor, points: torch.Tensor, costs: torch.Tensor
) -> torch.Tensor:
    """
    Values of the least squared error plus cost; of equal ones the nearest to where the search starts.

    Args:
        values (`torch.Tensor` of shape `(N, S)`): Numbers.
        nearest (`torch.Tensor` of shape `(N, S)`): Where each search starts, int64: the number must not lie beyond the
            neighbours of this value, unless there is none on that side.
        points (`torch.Tensor` of shape `(S, K)`): Values of each slot, ascending; infinity where a slot has fewer.
        costs (`torch.Tensor` of shape `(S, K)`): Their costs, at least 0, in units of the squared error.

    Returns:
        `torch.Tensor` of shape `(N, S)`: Indices of values, int64.
    """
    slots, last = torch.arange(points.shape[0], device=points.device), points.shape[1] - 1
    least = costs.amin(dim=1)

    def error(indices: torch.Tensor) -> torch.Tensor:
        return (values - points[slots, indices]).square()

    chosen, loss = nearest, error(nearest) + costs[slots, nearest]
    for distance in range(1, last + 1):
        going = torch.zeros((), dtype=torch.bool, device=points.device)
        for step in (-distance, distance):
            indices = nearest + step
            inside = (indices >= 0) & (indices <= last)
            indices = indices.clamp(0, last)
            errors = error(indices)
            total = errors + costs[slots, indices]
            better = inside & (total < loss)
            chosen, loss = torch.where(better, indices, chosen), torch.where(better, total, loss)
            going = going | (inside & (errors + least < loss)).any()
        if not going:
            break
    return chosen
