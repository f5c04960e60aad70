"""How often a code uses each symbol: what rates, tables of an entropy coder and choices by rate are made of."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from .code import Code
from .coefficients import quantize_coefficients


@dataclass(frozen=True)
class SymbolCounts:
    """
    Counts of a code's symbols over its sites, int64.

    Args:
        symbols (`torch.Tensor` of shape `(slots, 1 + largest level)`): Uses of each symbol in each slot; column 0
            counts unused slots.
        cells (`torch.Tensor` of shape `(slots, 2ⁿ)`): Uses of each quantised coefficient in each slot; one column of
            zeros where coefficients are floats or there are none.
        sizes (`torch.Tensor` of shape `(slots + 1,)`): Sites by the number of slots they use.
    """

    symbols: torch.Tensor
    cells: torch.Tensor
    sizes: torch.Tensor


def quantized_cells(code: Code, scale: torch.Tensor, bits: int) -> torch.Tensor:
    """Cells of a sparse code's coefficients `(sites, slots)`, int64; those of unused slots mean nothing."""
    coefficients = code.coefficients.flatten(0, 2).float()
    return quantize_coefficients(coefficients, scale[: code.slots].to(coefficients.device), bits)


@torch.no_grad()
def count_symbols(
    code: Code, levels: tuple[int, ...], scale: torch.Tensor | None = None, bits: int | None = None
) -> SymbolCounts:
    """
    Counts the symbols of a code.

    Args:
        code ([`Code`]): The code; it may have fewer slots than `levels`.
        levels (`tuple[int, ...]`): Size of the alphabet of each slot of the model that made it.
        scale (`torch.Tensor` of shape `(slots,)`, *optional*): Half-widths of the coefficients' quantiser.
        bits (`int`, *optional*): Bits of a quantised coefficient. Defaults to `None`: not counted.

    Returns:
        [`SymbolCounts`]: Counts, on the device of the code.
    """
    indices, slots = code.indices.flatten(0, 2), len(levels)
    symbols = torch.zeros(slots, max(levels) + 1, dtype=torch.int64, device=code.device)
    cells = torch.zeros(slots, 2 ** (bits or 0), dtype=torch.int64, device=code.device)
    symbols[code.slots :, 0] = len(indices)
    found = None if bits is None else quantized_cells(code, scale, bits)
    for slot in range(code.slots):
        used = indices[:, slot] >= 0
        symbols[slot].index_add_(0, indices[:, slot] + 1, torch.ones_like(indices[:, slot]))
        if found is not None:
            cells[slot].index_add_(0, found[:, slot], used.long())
    sizes = torch.zeros(slots + 1, dtype=torch.int64, device=code.device)
    used = (indices >= 0).sum(dim=1)
    return SymbolCounts(symbols, cells, sizes.index_add_(0, used, torch.ones_like(used)))
