r"""Codes as bytes, at the bits that their bottlenecks state, and back. No header, no entropy coding: what is written is
the nominal rate.

An index code is its indices, slots of one alphabet after one another. A sparse code is its supports and then the
coefficients of the used slots: as cells of n bits, or as float32. Where each depth has a coefficient scale of its own
the order of the atoms is part of the code, and supports are sequences. Elsewhere they are sets, whose coefficients
follow by ascending atom; what comes back has its slots by falling magnitude, which is nearly the order of a greedy
pursuit.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from ..functional.rates import count_supports
from .coefficients import dequantize_coefficients, quantize_coefficients
from .radix import pack_numbers, packed_size, unpack_numbers
from .supports import rank_supports, unrank_supports


__all__ = ["by_magnitude", "pack_levels", "pack_sparse", "unpack_levels", "unpack_sparse"]


def pack_levels(indices: torch.Tensor, levels: Sequence[int]) -> bytes:
    r"""
    Rows of indices from alphabets of any size as bytes.

    Args:
        indices (`torch.Tensor` of shape `(N, slots)`): Indices, int64.
        levels (`Sequence[int]`): Size of the alphabet of each slot.

    Returns:
        `bytes`: At most one byte more than \(N \sum \log_2 \text{levels}\) bits (for N · slots below 2²⁸).

    Raises:
        ValueError: If the shapes do not fit, or an index is outside its alphabet.
    """
    if indices.ndim != 2 or indices.shape[1] != len(levels):
        raise ValueError(f"`indices` must have shape (N, {len(levels)}), got {tuple(indices.shape)}.")
    values = indices.detach().cpu().numpy().astype(np.int64)
    if values.size and ((values < 0) | (values >= np.asarray(levels, dtype=np.int64))).any():
        raise ValueError(f"`indices` must be from 0 to below {_shortened(levels)}, got others.")
    return pack_numbers([(values[:, slots].ravel(), level) for level, slots in _by_level(levels)])


def unpack_levels(data: bytes, rows: int, levels: Sequence[int]) -> torch.Tensor:
    """
    Rows of indices from bytes; the inverse of [`pack_levels`].

    Args:
        data (`bytes`): What was packed.
        rows (`int`): Number N of rows.
        levels (`Sequence[int]`): Size of the alphabet of each slot.

    Returns:
        `torch.Tensor` of shape `(N, slots)`: Indices, int64.

    Raises:
        ValueError: If there are not exactly the bytes of so many rows, or they are no indices.
    """
    groups = _by_level(levels)
    numbers = unpack_numbers(data, [(rows * len(slots), level) for level, slots in groups])
    values = np.zeros((rows, len(levels)), dtype=np.int64)
    for (_, slots), found in zip(groups, numbers):
        values[:, slots] = found.reshape(rows, len(slots))
    return torch.from_numpy(values)


def pack_sparse(
    indices: torch.Tensor,
    coefficients: torch.Tensor,
    atoms: int,
    ordered: bool = False,
    scale: torch.Tensor | None = None,
    bits: int | None = None,
) -> bytes:
    r"""
    Supports and coefficients as bytes.

    Args:
        indices (`torch.Tensor` of shape `(N, S)`): Atoms, int64, −1 in unused slots, each at most once a row.
        coefficients (`torch.Tensor` of shape `(N, S)`): Their coefficients: values of float32, or points of the
            quantiser; 0 in unused slots.
        atoms (`int`): Number K of atoms.
        ordered (`bool`, defaults to `False`): Whether the order of the slots is kept; unused ones are then the last.
        scale (`torch.Tensor` of shape `(S,)`, *optional*): Half-widths of the quantiser; needed with `bits`, and all
            alike without `ordered`.
        bits (`int`, *optional*): Bits n of a quantised coefficient, 1 to 16. Defaults to `None`: float32.

    Returns:
        `bytes`: At most two bytes more than \(N \log_2 M\) bits of [`functional.count_supports`] and n, or 32, for each
        used slot.

    Raises:
        ValueError: If the shapes do not fit, a support is not valid, a coefficient is neither a float32 nor a point of
            the quantiser, or scales differ where the order is not kept.
    """
    if coefficients.shape != indices.shape:
        raise ValueError(
            f"`coefficients` must have the shape of `indices`, {tuple(indices.shape)}, got {tuple(coefficients.shape)}."
        )
    if bits is not None and not ordered and bool((scale != scale[:1]).any()):
        raise ValueError("`scale` must be the same for all slots where their order is not kept, got others.")
    slots = indices.detach().cpu().numpy()
    numbers = rank_supports(slots, atoms, ordered)
    supports = pack_numbers([(numbers, count_supports(atoms, slots.shape[1], ordered))])
    coefficients = coefficients.detach()
    used = indices >= 0
    if bits is None:
        values, exact = coefficients.float(), coefficients
        # one float32 is one symbol of 2³², by its bits
        symbols = values.cpu().contiguous().numpy().view(np.uint32).astype(np.int64)
        values = values.to(coefficients.dtype)
    else:
        cells = quantize_coefficients(coefficients, scale, bits)
        values, exact = dequantize_coefficients(cells, scale, bits), coefficients.to(scale.dtype)
        symbols = cells.cpu().numpy()
    if not bool(((values == exact) & values.isfinite() | ~used).all() & (coefficients[~used] == 0).all()):
        what = "float32" if bits is None else f"points of the quantiser with {bits} bits"
        raise ValueError(f"`coefficients` must be finite {what}, and 0 in unused slots, got others.")
    if not ordered:
        order = np.argsort(slots, axis=1)
        symbols, slots = np.take_along_axis(symbols, order, axis=1), np.take_along_axis(slots, order, axis=1)
    return supports + pack_numbers([(symbols[slots >= 0], 2 ** (bits or 32))])


def unpack_sparse(
    data: bytes,
    rows: int,
    sparsity: int,
    atoms: int,
    ordered: bool = False,
    scale: torch.Tensor | None = None,
    bits: int | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Supports and coefficients from bytes; the inverse of [`pack_sparse`], but for the order of the slots where it is not
    kept.

    Args:
        data (`bytes`): What was packed.
        rows (`int`): Number N of rows.
        sparsity (`int`): Slots S a row.
        atoms (`int`): Number K of atoms.
        ordered (`bool`, defaults to `False`): Whether the order was kept.
        scale (`torch.Tensor` of shape `(S,)`, *optional*): Half-widths of the quantiser; needed with `bits`, and all
            alike without `ordered`.
        bits (`int`, *optional*): Bits of a quantised coefficient. Defaults to `None`: float32.

    Returns:
        `tuple[torch.Tensor, torch.Tensor]`: Indices `(N, S)`, int64, −1 in unused slots, which are the last, and
        coefficients `(N, S)`, of the dtype of `scale`, or float32; on the CPU. Where the order was not kept, by falling
        magnitude.

    Raises:
        ValueError: If there are not exactly the bytes of such a code, or they are none, or a coefficient is not
            finite.
    """
    supports = count_supports(atoms, sparsity, ordered)
    size = packed_size([(rows, supports)])
    if len(data) < size:
        raise ValueError(f"`data` must have at least {size} bytes for {rows} supports, got {len(data)}.")
    (numbers,) = unpack_numbers(data[:size], [(rows, supports)])
    slots = unrank_supports(numbers, atoms, sparsity, ordered)
    used = slots >= 0
    (found,) = unpack_numbers(data[size:], [(int(used.sum()), 2 ** (bits or 32))])
    if bits is None:
        values = np.zeros(slots.shape, dtype=np.float32)
        values[used] = found.astype(np.uint32).view(np.float32)
        if not np.isfinite(values).all():
            raise ValueError("`data` must have finite coefficients, got NaN or infinity.")
        coefficients = torch.from_numpy(values)
    else:
        cells = np.zeros(slots.shape, dtype=np.int64)
        cells[used] = found
        points = dequantize_coefficients(torch.from_numpy(cells), scale.detach().cpu(), bits)
        coefficients = torch.where(torch.from_numpy(used), points, 0.0)
    indices = torch.from_numpy(slots)
    return (indices, coefficients) if ordered else by_magnitude(indices, coefficients)


def by_magnitude(indices: torch.Tensor, coefficients: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """
    The slots of sets of atoms by falling magnitude of their coefficients; of equal ones, as they were.

    Args:
        indices (`torch.Tensor` of shape `(N, S)`): Atoms, −1 in unused slots.
        coefficients (`torch.Tensor` of shape `(N, S)`): Their coefficients.

    Returns:
        `tuple[torch.Tensor, torch.Tensor]`: Both in the new order; unused slots last.
    """
    order = torch.where(indices >= 0, -coefficients.abs(), torch.inf).argsort(dim=1, stable=True)
    return indices.gather(1, order), coefficients.gather(1, order)


def _by_level(levels: Sequence[int]) -> list[tuple[int, list[int]]]:
    """Alphabet sizes, and the slots that have each."""
    return [(level, [slot for slot, own in enumerate(levels) if own == level]) for level in dict.fromkeys(levels)]


def _shortened(levels: Sequence[int]) -> str:
    return str(levels[0]) if len(set(levels)) == 1 else str(tuple(levels))
