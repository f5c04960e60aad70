r"""Bits of a value's cell under a mixture of logistic densities, in closed form.

With weights w_j, locations m_j and scales s_j, and σ the logistic function, the cell [a, b] has the probability

    P = Σ_j w_j [σ(β_j) − σ(α_j)],    α_j = (a − m_j) / s_j,  β_j = (b − m_j) / s_j,

and costs −log₂ P bits. Far from all locations the difference is 0 in floating point. The product

    σ(β) − σ(α) = σ(β) σ(−α) (1 − e^{−(β − α)})

is not, as a sum of logarithms. So neither the bits nor their gradients need a lower bound of P, as CompressAI's
`EntropyModel` has one.
"""

from __future__ import annotations

import math

import torch
from torch.nn import functional as F


__all__ = ["cell_bits"]


def cell_bits(
    lower: torch.Tensor, upper: torch.Tensor, logits: torch.Tensor, locations: torch.Tensor, log_scales: torch.Tensor
) -> torch.Tensor:
    """
    Bits of cells under a density for each channel.

    Args:
        lower (`torch.Tensor` of shape `(..., C)`): Lower ends a. Finite; a far one stands for −∞.
        upper (`torch.Tensor` of shape `(..., C)`): Upper ends b, above `lower`.
        logits (`torch.Tensor` of shape `(J, C)`): Logarithms of the weights w, up to a constant for each channel.
        locations (`torch.Tensor` of shape `(J, C)`): Locations m.
        log_scales (`torch.Tensor` of shape `(J, C)`): Natural logarithms of the scales s.

    Returns:
        `torch.Tensor` of shape `(..., C)`: −log₂ P.
    """
    weights = logits.log_softmax(dim=0)
    scales = log_scales.exp()
    shares = []
    for weight, location, scale in zip(weights, locations, scales):
        below, above = (lower - location) / scale, (upper - location) / scale
        width = -torch.expm1(below - above)
        shares.append(weight + F.logsigmoid(above) + F.logsigmoid(-below) + width.log())
    return torch.stack(shares).logsumexp(dim=0) / -math.log(2.0)
