r"""Numbers from alphabets of any size as bytes, without the fraction of a bit that a field of whole bits wastes on
each.

n numbers below A take one of \(A^n\) values, \(n \log_2 A\) bits; fields of \(⌈\log_2 A⌉\) bits waste up to one bit
each. One number in mixed radix wastes nothing, but its arithmetic grows with the square of n. Here two numbers become
one below \(A²\), and so on pair by pair. An alphabet that has grown beyond 2³¹ writes its low bits as they are and goes
on with the rest, which is one of

    A' = ⌈A / 2^b⌉  with  2³⁰ < A' ≤ 2³¹ ,      so that  \(\log_2 (2^b A' / A)\) < 2⁻²⁹ bits  are lost

(the spill of Dodis, Pătraşcu and Thorup, "Changing base without losing space", STOC 2010). All pairs of a round are
computed at once. What is left over where their number is odd, and at the end, is one number in mixed radix. The result
has less than 1 + n / 2²⁸ bits more than \(n \log_2 A\).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


__all__ = ["pack_numbers", "packed_size", "unpack_numbers"]

_WIDTH = 31  # bits of an alphabet whose square is computed in int64
_FIELD = 32  # bits that are written at a time
_NARROW = 16  # bits of numbers that are read in the faster way
_ROWS = 2**16  # numbers that are read at a time, each in 32 bytes for a while


def pack_numbers(streams: Sequence[tuple[np.ndarray, int]]) -> bytes:
    r"""
    Numbers of one or more alphabets as bytes.

    Args:
        streams (`Sequence[tuple[numpy.ndarray, int]]`): Numbers `(n,)` and size A of their alphabet, each from 0 to A −
            1; int64, or Python's integers in an array of objects where A is 2⁶³ or more.

    Returns:
        `bytes`: ⌈b / 8⌉ bytes, with b less than \(1 + \sum n / 2^{28}\) bits above \(\sum n \log_2 A\).

    Raises:
        ValueError: If an alphabet is empty or a number outside it.
    """
    parts, tail, radix = [], 0, 1
    for numbers, base in streams:
        _check_base(base)
        numbers = np.asarray(numbers)
        if numbers.ndim != 1 or (len(numbers) and not 0 <= numbers.min() <= numbers.max() < base):
            raise ValueError(f"`streams` must hold numbers from 0 to {base - 1}, got others.")
        for count, shift, base in _rounds(len(numbers), base):
            if shift:
                parts.append(_to_bits(numbers & ((1 << shift) - 1), shift))
                numbers = (numbers >> shift).astype(np.int64)
            if base == 1:
                break
            if count % 2:
                tail, radix = tail * base + int(numbers[-1]), radix * base
            half = count // 2
            numbers = numbers[:half] * base + numbers[half : 2 * half]
    width = (radix - 1).bit_length()
    digits = np.frombuffer(f"{tail:0{width}b}".encode() if width else b"", dtype=np.uint8) - ord("0")
    return np.packbits(np.concatenate([*parts, digits])).tobytes()


def packed_size(streams: Sequence[tuple[int, int]]) -> int:
    """
    Bytes that [`pack_numbers`] gives.

    Args:
        streams (`Sequence[tuple[int, int]]`): How many numbers there are, and the size of their alphabet.

    Returns:
        `int`: Bytes.

    Raises:
        ValueError: If an alphabet is empty or a count negative.
    """
    return -(-sum(_bits(streams)) // 8)


def unpack_numbers(data: bytes, streams: Sequence[tuple[int, int]]) -> list[np.ndarray]:
    """
    Numbers from bytes; the inverse of [`pack_numbers`].

    Args:
        data (`bytes`): What was packed.
        streams (`Sequence[tuple[int, int]]`): How many numbers n there are, and the size A of their alphabet.

    Returns:
        `list[numpy.ndarray]`: Numbers `(n,)` of each stream, int64, or Python's integers in an array of objects where A
        is 2⁶³ or more.

    Raises:
        ValueError: If there are not exactly the bytes of so many numbers, or they are none that [`pack_numbers`] gives.
    """
    size = sum(_bits(streams))
    if len(data) != packed_size(streams):
        raise ValueError(f"`data` must have {packed_size(streams)} bytes for such numbers, got {len(data)}.")
    plans = [(count, base, _rounds(count, base)) for count, base in streams]
    left = [base for *_, rounds in plans for count, _, base in rounds if count % 2 and base > 1]
    bits = np.unpackbits(np.frombuffer(data, dtype=np.uint8))
    position, fields = 0, []
    for *_, rounds in plans:
        for count, shift, _ in rounds:
            fields.append(_from_bits(bits[position : position + count * shift], count, shift))
            position += count * shift
    tail = int(bits[position:size].astype("S1").tobytes() or b"0", 2)
    odd = []
    for base in reversed(left):
        tail, digit = divmod(tail, base)
        odd.append(digit)
    valid = tail == 0 and not bits[size:].any()
    results = []
    for length, alphabet, rounds in reversed(plans):
        numbers = np.zeros(0 if rounds else length, dtype=np.int64)
        for (count, shift, base), low in zip(reversed(rounds), (fields.pop() for _ in rounds)):
            if base == 1:
                numbers = np.zeros(count, dtype=np.int64)
            else:
                rest = [odd.pop(0)] if count % 2 else []
                numbers = np.concatenate([numbers // base, numbers % base, np.asarray(rest, dtype=np.int64)])
            if shift:
                wide = base > 1 and shift + _WIDTH > 63
                numbers = (numbers.astype(object if wide else low.dtype) << shift) | low
        valid = valid and (len(numbers) == 0 or bool(numbers.max() < alphabet))
        results.append(numbers.astype(object if alphabet >= 2**63 else np.int64))
    if not valid:
        raise ValueError("`data` must be what `pack_numbers` gave for such numbers, it is changed.")
    return results[::-1]


def _check_base(base: int) -> None:
    if isinstance(base, bool) or not isinstance(base, int) or base < 1:
        raise ValueError(f"The size of an alphabet must be a positive integer, got {base!r}.")


def _rounds(count: int, base: int) -> list[tuple[int, int, int]]:
    """
    Of each round: how many numbers, the low bits that are written of each, and the size of the alphabet that is left.
    """
    rounds = []
    while count and base > 1:
        power = base.bit_length() - 1
        shift = power if base == 1 << power else max(0, base.bit_length() - _WIDTH)
        base = ((base - 1) >> shift) + 1
        rounds.append((count, shift, base))
        count, base = count // 2, base * base
    return rounds


def _bits(streams: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """Bits that are written as they are, and those of the number that is left over."""
    fields, radix = 0, 1
    for count, base in streams:
        _check_base(base)
        if isinstance(count, bool) or not isinstance(count, (int, np.integer)) or count < 0:
            raise ValueError(f"A count of numbers must be an integer of at least 0, got {count!r}.")
        for numbers, shift, left in _rounds(count, base):
            fields += numbers * shift
            radix *= left if numbers % 2 else 1
    return fields, (radix - 1).bit_length()


def _to_bits(numbers: np.ndarray, width: int) -> np.ndarray:
    """Bits `(n · width,)`, uint8, number after number, the highest bit first."""
    columns = []
    for start in range(width, 0, -_FIELD):
        field = min(start, _FIELD)
        part = ((numbers >> (start - field)) & ((1 << field) - 1)).astype(">u4")
        columns.append(np.unpackbits(part.view(np.uint8).reshape(-1, 4), axis=1)[:, 32 - field :])
    return np.concatenate(columns, axis=1).ravel()


def _from_bits(bits: np.ndarray, count: int, width: int) -> np.ndarray:
    """The inverse of `_to_bits`: int64, or objects for fields wider than 62 bits."""
    rows = bits.reshape(count, width)
    if width <= _NARROW:  # a shift and a sum for each bit, of all numbers at once
        narrow = np.zeros(count, dtype=np.uint16)
        for column in range(width):
            narrow = narrow << 1 | rows[:, column]
        return narrow.astype(np.int64)
    numbers = np.zeros(count, dtype=np.int64 if width < 63 else object)
    for first in range(0, count, _ROWS):
        block = rows[first : first + _ROWS]
        for start in range(0, width, _FIELD):
            part = block[:, start : start + _FIELD]
            padded = np.zeros((len(block), 32), dtype=np.uint8)
            padded[:, 32 - part.shape[1] :] = part
            field = np.packbits(padded, axis=1).view(">u4").ravel().astype(numbers.dtype)
            numbers[first : first + _ROWS] = (numbers[first : first + _ROWS] << part.shape[1]) | field
    return numbers
