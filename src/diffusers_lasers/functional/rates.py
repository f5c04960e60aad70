r"""How many bits a code costs, and how evenly it uses its symbols.

A sparse code with at most \(S\) of \(K\) atoms is one of

    M = Σ_{s=0}^{S} K! / (s! (K − s)!)  (a set of atoms),      M = Σ_{s=0}^{S} K! / (K − s)!  (a sequence of atoms)

supports. Naming one of them costs \(\log_2 M\) bits before entropy coding. The coefficients cost extra. Supports of *at
most* \(S\) atoms are counted, not of exactly \(S\), because a code may have unused slots.

Usage is measured by the entropy of the atoms' shares \(p_k\) of the support slots, \(H(p) = -\sum_k p_k \log_2 p_k\),
and by the perplexity \(2^{H}\): the number of equally used symbols that has the same entropy. Equation 17 of LASERS
(2024) is defined only for one symbol at each site. With shares of slots, a code that always picks the same \(S\) atoms
has perplexity \(S\), and one that uses all atoms equally has perplexity \(K\).
"""

from __future__ import annotations

import math

import torch


__all__ = ["count_supports", "entropy", "perplexity", "support_bits"]


def support_bits(atoms: int, sparsity: int, ordered: bool = False) -> float:
    r"""Bits that name a support of at most `sparsity` out of `atoms` atoms.

    The number of supports is counted in exact integers; only its logarithm is rounded.

    Args:
        atoms (`int`): Number of atoms \(K\), at least 1.
        sparsity (`int`): Largest number of atoms \(S\) of one support, from 0 to `atoms`.
        ordered (`bool`, *optional*, defaults to `False`): Whether the order of the atoms is stored too, as a sequence
            of indices does: \(\sum_s K!/(K-s)!\) in place of \(\sum_s \binom{K}{s}\).

    Returns:
        `float`: \(\log_2\) of the number of supports, in bits for one site.

    Raises:
        ValueError: If `atoms` is below 1 or `sparsity` is not in `[0, atoms]`.

    Example:

    ```python
    >>> from diffusers_lasers.functional.rates import support_bits

    >>> support_bits(atoms=3, sparsity=3)  # the 8 subsets of 3 atoms
    3.0
    ```
    """
    return math.log2(count_supports(atoms, sparsity, ordered))


def count_supports(atoms: int, sparsity: int, ordered: bool = False) -> int:
    r"""The number \(M\) of supports of at most `sparsity` out of `atoms` atoms, exactly.

    Args:
        atoms (`int`): Number of atoms \(K\), at least 1.
        sparsity (`int`): Largest number of atoms \(S\) of one support, from 0 to `atoms`.
        ordered (`bool`, *optional*, defaults to `False`): Whether supports are sequences or sets.

    Returns:
        `int`: \(\sum_s \binom{K}{s}\) sets, or \(\sum_s K!/(K-s)!\) sequences.

    Raises:
        ValueError: If `atoms` is below 1 or `sparsity` is not in `[0, atoms]`.
    """
    if atoms < 1:
        raise ValueError(f"`atoms` must be at least 1, got {atoms}.")
    if not 0 <= sparsity <= atoms:
        raise ValueError(f"`sparsity` must be between 0 and the number of atoms ({atoms}), got {sparsity}.")
    supports = term = 1
    for size in range(1, sparsity + 1):
        term *= atoms - size + 1
        if not ordered:
            term //= size  # exact: a product of `size` consecutive integers
        supports += term
    return supports


def entropy(counts: torch.Tensor) -> torch.Tensor:
    r"""Entropy of the shares \(p_k = n_k / \sum_i n_i\) in bits.

    Args:
        counts (`torch.Tensor` of shape `(atoms,)`): How often each symbol was used: non-negative counts or weights of
            any real dtype. Symbols with 0 are allowed.

    Returns:
        `torch.Tensor`: \(H(p) = -\sum_k p_k \log_2 p_k\) as a 0-dimensional float64 tensor, from 0 to \(\log_2 K\); 0
        if all counts are 0.

    Raises:
        ValueError: If `counts` is not one-dimensional.
    """
    if counts.ndim != 1:
        raise ValueError(f"`counts` must have the shape (atoms,), got {tuple(counts.shape)}.")
    counts = counts.to(torch.float64)
    total = counts.sum()
    shares = counts / torch.where(total > 0, total, torch.ones_like(total))
    return 0.0 - torch.xlogy(shares, shares).sum() / math.log(2.0)  # no −0 for a single symbol


def perplexity(counts: torch.Tensor) -> torch.Tensor:
    r"""Number of equally used symbols with the same entropy as `counts`.

    Args:
        counts (`torch.Tensor` of shape `(atoms,)`): How often each symbol was used, as for [`entropy`].

    Returns:
        `torch.Tensor`: \(2^{H(p)}\) with the entropy in bits, as a 0-dimensional float64 tensor, from 1 (one symbol)
        to \(K\) (all symbols equally often); 0 if all counts are 0.

    Raises:
        ValueError: If `counts` is not one-dimensional.
    """
    bits = entropy(counts)
    used = counts.to(torch.float64).sum() > 0
    return torch.where(used, torch.exp2(bits), torch.zeros_like(bits))
