r"""Indices as bytes, at exactly their bits: index after index, the highest bit first, zeros up to the next whole byte.

A slot of b bits takes b bits, so that a 32-8-8 code costs 48 bits a patch and not six int64. No header and no entropy
coding: what is written is the nominal rate.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch


__all__ = ["pack_indices", "unpack_indices"]

_BLOCK = 2**13  # rows at a time, whose bits are whole bytes: each bit is an int64 for a while


def _positions(bits: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """For each bit of a row, its slot and its weight's exponent."""
    for value in bits:
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= 32:
            raise ValueError(f"`bits` must hold integers from 1 to 32, got {value!r}.")
    slots = np.repeat(np.arange(len(bits)), bits)
    exponents = np.concatenate([np.arange(value - 1, -1, -1) for value in bits])
    return slots, exponents


def pack_indices(indices: torch.Tensor, bits: Sequence[int]) -> bytes:
    """
    Rows of indices as bytes.

    Args:
        indices (`torch.Tensor` of shape `(N, slots)`): Indices, integers.
        bits (`Sequence[int]`): Bits of each slot, from 1 to 32.

    Returns:
        `bytes`: ⌈N · Σ bits / 8⌉ bytes.

    Raises:
        ValueError: If the shapes do not fit, or an index needs more bits.
    """
    slots, exponents = _positions(bits)
    if indices.ndim != 2 or indices.shape[1] != len(bits):
        raise ValueError(f"`indices` must have shape (N, {len(bits)}), got {tuple(indices.shape)}.")
    values = indices.detach().cpu().numpy().astype(np.int64)
    if values.size and ((values < 0) | (values >= np.left_shift(1, np.asarray(bits, dtype=np.int64)))).any():
        raise ValueError(
            f"`indices` must be from 0 to 2^bits − 1 with bits {tuple(bits)}, got {values.min()} to {values.max()}."
        )
    blocks = (values[start : start + _BLOCK] for start in range(0, len(values), _BLOCK))
    return b"".join(np.packbits((block[:, slots] >> exponents & 1).astype(np.uint8)).tobytes() for block in blocks)


def unpack_indices(data: bytes, rows: int, bits: Sequence[int]) -> torch.Tensor:
    """
    Rows of indices from bytes; the inverse of [`pack_indices`].

    Args:
        data (`bytes`): What was packed.
        rows (`int`): Number N of rows.
        bits (`Sequence[int]`): Bits of each slot.

    Returns:
        `torch.Tensor` of shape `(N, slots)`: Indices, int64.

    Raises:
        ValueError: If there are not exactly the bytes of so many rows, or a padding bit is set.
    """
    slots, exponents = _positions(bits)
    size = rows * len(slots)
    if rows < 0 or len(data) != -(-size // 8):
        raise ValueError(
            f"`data` must have {-(-size // 8)} bytes for {rows} rows of {len(slots)} bits, got {len(data)}."
        )
    flat = np.unpackbits(np.frombuffer(data, dtype=np.uint8))
    if flat[size:].any():
        raise ValueError("`data` must end in zero bits after the last row, it does not.")
    values = np.zeros((rows, len(bits)), dtype=np.int64)
    starts = np.concatenate([[0], np.cumsum(bits)[:-1]])
    digits = flat[:size].reshape(rows, len(slots))
    for start in range(0, rows, _BLOCK):
        spread = digits[start : start + _BLOCK].astype(np.int64) << exponents
        values[start : start + _BLOCK] = np.add.reduceat(spread, starts, axis=1)
    return torch.from_numpy(values)
