r"""Similarity of the atoms of a dictionary, and its lower bound.

For K > L, the mutual coherence of K unit atoms in L dimensions is at least

    √((K − L) / (L (K − 1)))                                  (Welch, 1974).

Near-duplicates are pairs with \(|d_i^⊤ d_j|\) near 1. A sparse code can use only one atom of such a pair.
"""

from __future__ import annotations

import math

import torch

from .atoms import normalize_atoms


__all__ = ["similar_atoms", "welch_bound"]

_BLOCK = 1024  # rows of the Gram matrix that are held at a time


def welch_bound(features: int, atoms: int) -> float:
    r"""
    Lower bound of the mutual coherence of a dictionary (Welch, 1974).

    Args:
        features (`int`): Length L of an atom, at least 1.
        atoms (`int`): Number K of atoms, at least 1.

    Returns:
        `float`: \(\sqrt{(K - L) / (L (K - 1))}\), and 0 for K ≤ L.

    Raises:
        ValueError: If a number is below 1.
    """
    if features < 1 or atoms < 1:
        raise ValueError(f"`features` and `atoms` must be at least 1, got {features} and {atoms}.")
    return math.sqrt(max(0, atoms - features) / (features * max(1, atoms - 1)))


@torch.no_grad()
def similar_atoms(dictionary: torch.Tensor, threshold: float = 0.99) -> torch.Tensor:
    r"""
    For each atom, whether another one is nearly the same up to sign.

    That is so if \(\max_{j \ne i} |d_i^⊤ d_j|\) of the normalised atoms is at least `threshold`.

    Args:
        dictionary (`torch.Tensor` of shape `(features, atoms)`): Atoms as columns, of any length.
        threshold (`float`, defaults to 0.99): Smallest absolute inner product that counts, above 0 and at most 1.

    Returns:
        `torch.Tensor` of shape `(atoms,)`: Which atoms have a near-duplicate; bool.

    Raises:
        ValueError: If `dictionary` is not a floating-point matrix with at least one row and one column, or `threshold`
            is out of range.
    """
    if not 0 < threshold <= 1:
        raise ValueError(f"`threshold` must be above 0 and at most 1, got {threshold!r}.")
    atoms = normalize_atoms(dictionary)
    found = []
    with torch.autocast(atoms.device.type, enabled=False):
        for start in range(0, atoms.shape[1], _BLOCK):
            gram = (atoms[:, start : start + _BLOCK].t() @ atoms).abs_()
            gram.diagonal(offset=start).zero_()
            found.append(gram.amax(dim=1) >= threshold)
    return torch.cat(found)
