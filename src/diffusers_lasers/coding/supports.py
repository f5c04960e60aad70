r"""Supports as numbers, so that a stored support costs the bits that [`support_bits`] counts.

Supports of at most S of K atoms are numbered by their size first. A set of s atoms \(c_1 < … < c_s\) has the number of
the combinatorial number system,

    Σ_i C(c_i, i) ,                                      from 0 to C(K, s) − 1 ,

and a sequence \((k_1, …, k_s)\) of distinct atoms the one of its ranks \(r_i = k_i − |\{j < i : k_j < k_i\}|\) in
falling radix,

    ((r_1 (K − 1) + r_2) (K − 2) + …) + r_s ,            from 0 to K! / (K − s)! − 1 .

All sites are computed at once; in int64, and where there are 2⁶³ supports or more in Python's integers.
"""

from __future__ import annotations

from itertools import accumulate

import numpy as np

from ..functional.rates import count_supports


__all__ = ["rank_supports", "unrank_supports"]


def rank_supports(indices: np.ndarray, atoms: int, ordered: bool = False) -> np.ndarray:
    """
    Numbers of supports.

    Args:
        indices (`numpy.ndarray` of shape `(N, S)`): Atoms of each support, int64, −1 in unused slots. A set's atoms may
            stand in any slots; a sequence has its unused slots last.
        atoms (`int`): Number K of atoms.
        ordered (`bool`, defaults to `False`): Whether supports are sequences, whose order counts, or sets.

    Returns:
        `numpy.ndarray` of shape `(N,)`: Numbers from 0 to `count_supports(atoms, S, ordered)` − 1; int64, or Python's
        integers in an array of objects where there are 2⁶³ supports or more.

    Raises:
        ValueError: If an index is not from −1 to K − 1, an atom stands twice in a support, or an unused slot of a
            sequence before a used one.
    """
    if indices.ndim != 2 or indices.dtype != np.int64 or not 0 <= indices.shape[1] <= atoms:
        raise ValueError(
            f"`indices` must be int64 of shape (N, S) with S at most {atoms}, got {indices.dtype} of shape "
            f"{indices.shape}."
        )
    if indices.size and not (indices.min() >= -1 and indices.max() < atoms):
        raise ValueError(f"`indices` must be from -1 to {atoms - 1}, got {indices.min()} to {indices.max()}.")
    ascending = np.sort(indices, axis=1)
    if ((ascending[:, 1:] == ascending[:, :-1]) & (ascending[:, 1:] >= 0)).any():
        raise ValueError("`indices` must name each atom of a support once, an atom stands twice.")
    used = indices >= 0
    sizes = used.sum(axis=1)
    if ordered and (used[:, 1:] > used[:, :-1]).any():
        raise ValueError("`indices` of a sequence must have its unused slots (-1) last, one stands before an atom.")
    offsets = _offsets(atoms, indices.shape[1], ordered)
    numbers = np.zeros(len(indices), dtype=offsets.dtype)
    if ordered:
        ranks = []
        for slot in range(indices.shape[1]):
            rank = indices[:, slot].copy()
            for earlier in ranks:
                rank -= rank > earlier
            ranks.append(rank)
            numbers = np.where(sizes > slot, numbers * (atoms - slot) + rank, numbers)
        return numbers + offsets[sizes]
    unused = indices.shape[1] - sizes
    for place, column in enumerate(_binomials(atoms, indices.shape[1], offsets.dtype)):
        chosen = np.take_along_axis(ascending, np.minimum(unused + place, indices.shape[1] - 1)[:, None], axis=1)[:, 0]
        numbers = numbers + np.where(sizes > place, column[chosen], 0)
    return numbers + offsets[sizes]


def unrank_supports(numbers: np.ndarray, atoms: int, sparsity: int, ordered: bool = False) -> np.ndarray:
    """
    Supports of numbers; the inverse of [`rank_supports`].

    Args:
        numbers (`numpy.ndarray` of shape `(N,)`): Numbers from 0 to `count_supports(atoms, sparsity, ordered)` − 1.
        atoms (`int`): Number K of atoms.
        sparsity (`int`): Slots S of a support.
        ordered (`bool`, defaults to `False`): Whether supports are sequences or sets.

    Returns:
        `numpy.ndarray` of shape `(N, S)`: Atoms, int64, of a set in ascending order; −1 in unused slots, which are the
        last.

    Raises:
        ValueError: If a number is out of range.
    """
    supports = count_supports(atoms, sparsity, ordered)
    if len(numbers) and not 0 <= numbers.min() <= numbers.max() < supports:
        raise ValueError(f"`numbers` must be from 0 to {supports - 1}, got {numbers.min()} to {numbers.max()}.")
    offsets = _offsets(atoms, sparsity, ordered)
    numbers = numbers.astype(offsets.dtype)
    sizes = np.searchsorted(offsets, numbers, side="right") - 1
    numbers = numbers - offsets[sizes]
    indices = np.full((len(numbers), sparsity), -1, dtype=np.int64)
    if ordered:
        ranks = np.zeros_like(indices)
        for slot in reversed(range(sparsity)):
            used = sizes > slot
            ranks[:, slot] = np.where(used, numbers % (atoms - slot), 0)
            numbers = np.where(used, numbers // (atoms - slot), numbers)
        for slot in range(sparsity):
            chosen = ranks[:, slot].copy()
            for earlier in reversed(range(slot)):
                chosen += chosen >= ranks[:, earlier]
            indices[:, slot] = np.where(sizes > slot, chosen, -1)
        return indices
    columns = _binomials(atoms, sparsity, offsets.dtype)
    for place in reversed(range(sparsity)):
        chosen = np.searchsorted(columns[place], numbers, side="right") - 1
        used = sizes > place
        numbers = np.where(used, numbers - columns[place][chosen], numbers)
        indices[:, place] = np.where(used, chosen, -1)
    return indices


def _offsets(atoms: int, sparsity: int, ordered: bool) -> np.ndarray:
    """First number `(S + 1,)` of each size, in the type that holds all numbers."""
    counts = [count_supports(atoms, size, ordered) for size in range(sparsity + 1)]
    return np.array([0, *counts[:-1]], dtype=np.int64 if counts[-1] < 2**63 else object)


def _binomials(atoms: int, sparsity: int, dtype: np.dtype) -> list[np.ndarray]:
    """C(c, i) for the atoms c = 0 … K − 1, one array for each i = 1 … S."""
    columns, column = [], [1] * atoms
    for _ in range(sparsity):
        column = [0, *accumulate(column[:-1])]
        columns.append(np.array(column, dtype=dtype))
    return columns
