r"""The model of an index code: a table of frequencies for each slot.

With slots s and sites i, P(code) = ∏_i ∏_s p_s(k_{i s}). Slots of one alphabet share a bank, a table each.
"""

from __future__ import annotations

import numpy as np
import torch

from ...coding.frequencies import smoothed
from ...coding.symbol_streams import SymbolStream, Tables


class IndexModel:
    """
    Tables of an index code, and the walk over its symbols.

    Args:
        levels (`tuple[int, ...]`): Size of the alphabet of each slot.
    """

    def __init__(self, levels: tuple[int, ...]):
        self.levels = levels
        self.places = [levels[:slot].count(level) for slot, level in enumerate(levels)]  # of each slot in its bank

    def shapes(self) -> dict[str, tuple[int, int]]:
        """Tables and symbols of each bank."""
        return {f"symbols_{level}": (self.levels.count(level), level) for level in dict.fromkeys(self.levels)}

    def walk(
        self, stream: SymbolStream, shape: tuple[int, int, int], slots: int, indices: np.ndarray | None = None
    ) -> np.ndarray:
        """
        All symbols of a code, in order.

        Args:
            stream ([`SymbolStream`]): What becomes of them.
            shape (`tuple[int, int, int]`): Images, and sites down and across.
            slots (`int`): Slots a site.
            indices (`numpy.ndarray` of shape `(N, slots)`, *optional*): The code, where it is known.

        Returns:
            `numpy.ndarray` of shape `(N, slots)`: The code.
        """
        rows = np.arange(shape[0] * shape[1] * shape[2])
        found = np.empty((len(rows), slots), dtype=np.int64)
        for slot in range(slots):
            known = None if indices is None else indices[:, slot]
            found[:, slot] = stream.code(f"symbols_{self.levels[slot]}", self.places[slot], rows, known)
        return found

    def probabilities(self, counts: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Probabilities of each bank's symbols from their counts."""
        return {name: smoothed(found) for name, found in counts.items()}

    def least_bits(self, tables: Tables, slots: int) -> float:
        """Bits below which no site costs."""
        levels = zip(self.levels[:slots], self.places)
        return float(sum(tables.costs(f"symbols_{level}")[place].min() for level, place in levels))
