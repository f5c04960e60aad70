r"""What the symbols of a code cost when each has a table of its own, without contexts.

An index code has bits for each symbol of each slot. A sparse code of s atoms a site costs the bits of s, of its atoms
and of the cells of their quantised coefficients; where its atoms are a set, log₂ s! bits of order are saved. A float
coefficient counts as 32 bits. Choices by rate are made with these bits, whether they come from the running tables of a
training or from a prior.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch


FLOAT_BITS = 32.0


@dataclass
class SymbolBits:
    """
    Bits of a code's symbols, float32.

    Args:
        symbols (`torch.Tensor` of shape `(S, K)`): Bits of each symbol of each slot; infinity beyond the levels of a
            slot.
        cells (`torch.Tensor` of shape `(S, 2ⁿ)`, *optional*): Bits of each cell of a quantised coefficient, or 32 in
            one column for floats; of a sparse code.
        sizes (`torch.Tensor` of shape `(S + 1,)`, *optional*): Bits of the number of slots that a site uses; of a
            sparse code.
        ordered (`bool`, defaults to `True`): Whether the order of a site's slots is part of the code.
    """

    symbols: torch.Tensor
    cells: torch.Tensor | None = None
    sizes: torch.Tensor | None = None
    ordered: bool = True

    def of(self, indices: torch.Tensor, cells: torch.Tensor | None = None) -> torch.Tensor:
        """
        Bits of sites.

        Args:
            indices (`torch.Tensor` of shape `(N, slots)`): Symbols of the first slots, int64; −1 where one is unused.
            cells (`torch.Tensor` of shape `(N, slots)`, *optional*): Quantised coefficients of a sparse code; zeros for
                floats.

        Returns:
            `torch.Tensor` of shape `(N,)`: Bits, float32.
        """
        used = indices >= 0
        found = _looked_up(self.symbols, indices.clamp_min(0))
        if self.sizes is not None:
            found = found + _looked_up(self.cells, cells)
        found = torch.where(used, found, 0.0).sum(dim=1)
        if self.sizes is not None:
            size = used.sum(dim=1)
            found = found + self.sizes[size]
            if not self.ordered:
                found = found - torch.lgamma(size + 1.0) / math.log(2.0)
        return found


def _looked_up(bits: torch.Tensor, symbols: torch.Tensor) -> torch.Tensor:
    """Bits `(N, slots)` of symbols `(N, slots)` by tables `(S, K)`, S ≥ slots."""
    return bits[: symbols.shape[1]].gather(1, symbols.t()).t()
