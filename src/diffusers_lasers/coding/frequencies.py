r"""Probabilities as integers: tables of frequencies that sum to 2²⁴, from counts.

A range coder must find the same numbers wherever it runs, so that a model's probabilities are made integers once and
stored. A symbol of frequency f costs 24 − log₂ f bits. Each symbol has at least frequency 1: what never occurred in
training can be coded, for 24 bits.

Counts n of a table with T different symbols become probabilities by the rule of Witten and Bell (1991),

    p(k) = (n_k + w T q(k)) / (n + w T),

with q what a wider table says, or equal probabilities, and w = 1. Tables of few counts stay near q. Many tables of one
wider one, each with few counts, are better with w = 8 (measured on codes of CIFAR-10, docs: conceptual/priors).
"""

from __future__ import annotations

import torch


__all__ = ["PRECISION", "frequencies", "smoothed"]

PRECISION = 24  # bits, that of constriction's Python interface


def smoothed(counts: torch.Tensor, base: torch.Tensor | None = None, weight: float = 1.0) -> torch.Tensor:
    """
    Probabilities of symbols from counts.

    Args:
        counts (`torch.Tensor` of shape `(..., A)`): Uses of each symbol.
        base (`torch.Tensor` of shape `(..., A)`, *optional*): Probabilities of the wider table, broadcast. Defaults to
            equal ones.
        weight (`float`, defaults to 1.0): Weight w of `base`.

    Returns:
        `torch.Tensor` of shape `(..., A)`: Probabilities, float64; `base` where nothing was counted.
    """
    counts = counts.double()
    if base is None:
        base = counts.new_full((counts.shape[-1],), 1.0 / counts.shape[-1])
    different = weight * (counts > 0).sum(dim=-1, keepdim=True)
    total = counts.sum(dim=-1, keepdim=True)
    mixed = (counts + different * base) / (total + different).clamp_min(1e-300)
    return torch.where(total > 0, mixed, base)


def frequencies(probabilities: torch.Tensor) -> torch.Tensor:
    """
    Integer frequencies of probabilities.

    Args:
        probabilities (`torch.Tensor` of shape `(..., A)`): Probabilities, not negative, of at most 2²⁰ symbols; they
            are normalised.

    Returns:
        `torch.Tensor` of shape `(..., A)`: Frequencies, int32, each at least 1, that sum to 2²⁴. What rounding leaves
        goes to the most probable symbol.
    """
    probabilities = probabilities.double()
    probabilities = probabilities / probabilities.sum(dim=-1, keepdim=True)
    free = 2**PRECISION - probabilities.shape[-1]
    found = 1 + (probabilities * free).floor().long()
    left = 2**PRECISION - found.sum(dim=-1, keepdim=True)
    return found.scatter_add(-1, probabilities.argmax(dim=-1, keepdim=True), left).int()
