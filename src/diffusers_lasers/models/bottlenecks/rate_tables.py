r"""Running tables of a code's symbols: what each costs an entropy coder, and when a cheaper one is worth its error.

A table holds counts n of a training's codes, decayed from step to step. With A symbols, symbol k costs

    b_k = −log₂ (n_k + ½) / (Σ_i n_i + A/2)

bits, so that one that was never seen has finite bits too (Krichevsky & Trofimov, 1981). What a site costs by them is
said in `coding/symbol_bits.py`. If the atoms of a sparse code are a set, all slots share their tables.

Entropy-constrained quantisation (Chou, Lookabaugh & Gray, 1989) takes the code with the least

    ‖y − ŷ‖² + w · bits,    w = λ σ² / v,

of a site. λ is the loss of one bit a latent value, beside a mean squared error of pixels. σ² is the running variance of
the latents, and v = ¼ stands for that of pixel values in [−1, 1]: a linear decoder makes of an error of the latents one
of pixels that is v / σ² times as large.
"""

from __future__ import annotations

import torch
from torch import nn

from ...coding.symbol_bits import FLOAT_BITS, SymbolBits
from ...coding.symbol_counts import SymbolCounts
from ...utils import config_checks as checks
from ...utils.distributed import all_reduce_sum


__all__ = ["IMAGE_VARIANCE", "RATE_WEIGHT", "RateTables"]

IMAGE_VARIANCE = 0.25  # v, of pixel values in [−1, 1]
RATE_WEIGHT = checks.Number(low=0.0, high=1e6)  # λ, in configurations


class RateTables(nn.Module):
    """
    Creates the running tables of a bottleneck, empty: until [`observe`] all symbols cost the same, and bits have no
    weight.

    Args:
        slots (`int`): Slots S of a site.
        symbols (`int`): Symbols K of each slot.
        coefficient_bits (`int`, *optional*): Bits n of a quantised coefficient of a sparse code, or 0 for floats.
            Defaults to `None`: an index code.

    Attributes:
        symbols (`torch.Tensor` of shape `(S, K)`): Counts of the symbols.
        cells (`torch.Tensor` of shape `(S, 2ⁿ)`): Counts of the cells of quantised coefficients; of a sparse code.
        sizes (`torch.Tensor` of shape `(S + 1,)`): Sites by the number of slots they use; of a sparse code.
        variance (`torch.Tensor` of shape `()`): Running variance σ² of the signals.
    """

    def __init__(self, slots: int, symbols: int, coefficient_bits: int | None = None):
        super().__init__()
        self.sparse = coefficient_bits is not None
        self.register_buffer("symbols", torch.zeros(slots, symbols))
        if self.sparse:
            self.register_buffer("cells", torch.zeros(slots, 2**coefficient_bits))
            self.register_buffer("sizes", torch.zeros(slots + 1))
        self.register_buffer("variance", torch.zeros(()))

    @torch.no_grad()
    def clear(self) -> None:
        """Empties the tables."""
        for table in self.buffers():
            table.zero_()

    @torch.no_grad()
    def observe(self, counts: SymbolCounts, signals: torch.Tensor, decay: float) -> None:
        """
        Adds the codes of a step, of all ranks, to the decayed tables.

        Args:
            counts ([`SymbolCounts`]): Counts of this rank's codes.
            signals (`torch.Tensor` of shape `(N, features)`): What was coded on this rank.
            decay (`float`): What remains of the tables, in [0, 1); 0 starts them anew.
        """
        tables = {"symbols": counts.symbols[:, 1:]}
        if self.sparse:
            tables |= {"cells": counts.cells, "sizes": counts.sizes}
        moments = [signals.new_full((1,), len(signals)), signals.sum(dim=0), signals.square().sum(dim=0)]
        parts = [part.flatten().float() for part in (*tables.values(), *moments)]
        found = all_reduce_sum(torch.cat(parts)).split([len(part) for part in parts])
        for (name, counted), seen in zip(tables.items(), found):
            getattr(self, name).mul_(decay).add_(seen.reshape(counted.shape))
        number, sums, squares = found[-3:]
        variance = (squares / number - (sums / number).square()).mean().clamp_min(0.0)
        self.variance.lerp_(variance.to(self.variance), 1 - decay)

    def weight(self, rate_weight: float) -> torch.Tensor:
        """w `()`: the squared error of a site that one bit is worth, for λ = `rate_weight`."""
        return rate_weight / IMAGE_VARIANCE * self.variance.float()

    def bits(self, ordered: bool = True) -> SymbolBits:
        """Bits of all symbols; the same in all slots if their order is not part of the code (`ordered`)."""
        symbols = _bits(self.symbols, ordered)
        if not self.sparse:
            return SymbolBits(symbols)
        floats = self.cells.shape[1] == 1
        cells = torch.full_like(self.cells, FLOAT_BITS) if floats else _bits(self.cells, ordered)
        return SymbolBits(symbols, cells, _bits(self.sizes.unsqueeze(0))[0], ordered)

    def set_coefficient_bits(self, bits: int | None) -> None:
        """Splits the counts of the coefficients' cells evenly, or merges them, for another number of bits."""
        slots, now = self.cells.shape
        cells = 2 ** (bits or 0)
        if cells < now:
            self.cells = self.cells.reshape(slots, cells, -1).sum(dim=2)
        else:
            self.cells = self.cells.repeat_interleave(cells // now, dim=1) * (now / cells)


def _bits(counts: torch.Tensor, ordered: bool = True) -> torch.Tensor:
    """Bits of the symbols of each row of counts; where not `ordered`, of the sum of the rows."""
    counts = counts.float()
    pooled = counts if ordered else counts.sum(dim=0, keepdim=True)
    smooth = pooled + 0.5
    return (smooth.sum(dim=1, keepdim=True).log2() - smooth.log2()).expand_as(counts)
