r"""Uniform quantisation of sparse coefficients.

With n bits a coefficient c of scale a takes one of the 2ⁿ values \(a (2 b + 1 − 2^n) / 2^n\), \(b = 0 … 2^n − 1\):
midpoints of 2ⁿ equal cells of [−a, a], so that no code point is wasted on a zero that an unused slot already says.
Values beyond ±a go to the outermost cell. The scale is the 99.5th percentile of |c|, for each depth of the greedy code
(its first coefficients are larger than its last) or one for all.
"""

from __future__ import annotations

import torch


__all__ = ["coefficient_scale", "dequantize_coefficients", "quantize_coefficients"]


def coefficient_scale(coefficients: torch.Tensor, used: torch.Tensor, quantile: float = 0.995) -> torch.Tensor:
    """
    The `quantile` of the used coefficients' magnitudes, one for each column.

    Args:
        coefficients (`torch.Tensor` of shape `(N, S)`): Coefficients.
        used (`torch.Tensor` of shape `(N, S)`): Which of them count; boolean.
        quantile (`float`, defaults to 0.995): Share of the magnitudes that the scale covers, in (0, 1].

    Returns:
        `torch.Tensor` of shape `(S,)`: The scales; 0 where a column has no used coefficient.
    """
    magnitudes = torch.where(used, coefficients.abs(), 0.0).sort(dim=0).values  # unused ones sort first
    count = used.sum(dim=0)
    rows = magnitudes.shape[0]
    rank = rows - count + (count * quantile).ceil().long() - 1
    scale = magnitudes.gather(0, rank.clamp(0, rows - 1).unsqueeze(0)).squeeze(0)
    return torch.where(count > 0, scale, 0.0)


def quantize_coefficients(coefficients: torch.Tensor, scale: torch.Tensor, bits: int) -> torch.Tensor:
    """
    Cells of the coefficients.

    Args:
        coefficients (`torch.Tensor` of shape `(*, S)`): Coefficients.
        scale (`torch.Tensor` of shape `(S,)`): Half-width a of the quantised range for each slot; 0 maps to cell 0.
        bits (`int`): Bits n a coefficient, 1 to 16.

    Returns:
        `torch.Tensor` of shape `(*, S)`: Cells b, int64, from 0 to 2ⁿ − 1.
    """
    cells = 2**bits
    position = coefficients / scale.clamp_min(torch.finfo(scale.dtype).tiny)
    return ((position + 1) * (cells / 2)).floor().clamp(0, cells - 1).long()


def dequantize_coefficients(cells: torch.Tensor, scale: torch.Tensor, bits: int) -> torch.Tensor:
    """
    Midpoints of the cells; the inverse of [`quantize_coefficients`] up to half a cell, a · 2⁻ⁿ.

    Args:
        cells (`torch.Tensor` of shape `(*, S)`): Cells b, from 0 to 2ⁿ − 1.
        scale (`torch.Tensor` of shape `(S,)`): Half-width a of the quantised range for each slot.
        bits (`int`): Bits n a coefficient, 1 to 16.

    Returns:
        `torch.Tensor` of shape `(*, S)`: Coefficients, in the dtype of `scale`.
    """
    return ((2 * cells + 1).to(scale.dtype) / 2**bits - 1) * scale
