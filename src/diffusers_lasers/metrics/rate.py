r"""The entropy of the symbols of codes, beside the nominal rate of the model.

The nominal rate of a model (`bits_per_site`) counts possible codes. The symbols that occur are less evenly distributed.
An ideal entropy coder with one static table for each slot d needs for each site

    Σ_d H(symbol_d)                                    for an index code (VQ, residual VQ, FSQ),
    Σ_d [H(index_d) + P(used_d) H(cell_d)]             for a sparse code with its order,
    H(s) + E[s] H(index) − E[log₂ s!] + E[s] H(cell)   for a sparse code whose support is a set of s atoms,

where an unused slot counts as a symbol and a cell is a quantised coefficient. The order of the atoms is part of a code
if its coefficients have a scale for each depth. The last form pools the slots. It is an upper bound of the entropy of
the set: the atoms of a set in random order have this distribution, and log₂ s! bits of order.

A float coefficient counts as 32 bits. The atoms of a site are coded as if they were independent. So evenly used atoms
cost slightly more than nominal, by about S (S − 1) / (2 K ln 2) bits. Tables are not counted. Entropies of few sites
are estimated too low, by about (K − 1) / (2 n ln 2) bits for each slot at n sites. The result is for comparing codes;
it is not the size of a file.
"""

from __future__ import annotations

import math
from typing import Any

import torch

from ..coding import Code, Coder
from ..coding.symbol_counts import count_symbols
from ..functional.rates import entropy
from ..utils.import_utils import requires
from .states import keep_apart


requires("torchmetrics", extra="metrics")

from torchmetrics import Metric  # noqa: E402


__all__ = ["CodeRate"]


class CodeRate(Metric):
    """
    Creates a streaming rate of a model's codes.

    `update(code)` adds codes. `compute()` returns a dict of 0-dim float64 tensors: `nominal_bits_per_pixel`,
    `entropy_bits_per_pixel` and `entropy_bits_per_site`. Counts are summed over ranks.

    Args:
        model ([`coding.Coder`]): The model that makes the codes: a bottleneck, an autoencoder or a patch codec. The
            quantiser of its coefficients is read once, here: make a new metric after `set_coefficient_bits`.
        kwargs: Passed on to `torchmetrics.Metric`.

    Raises:
        ValueError: If the model makes no codes.
    """

    full_state_update = False
    is_differentiable = False
    higher_is_better = False

    def __init__(self, model: Coder, **kwargs: Any):
        super().__init__(**kwargs)
        keep_apart(self)
        coder = model.coder
        if not coder.levels:
            raise ValueError(f"`model` must make codes, got {type(coder).__name__}, which makes none.")
        self.levels, self.ordered, self.bits = coder.levels, coder.ordered, coder.coefficient_bits
        self.nominal_bits_per_site, self.scale = coder.bits_per_site, coder.slot_scales
        slots = len(self.levels)
        # Column 0 of `symbols` counts unused slots.
        self.add_state("symbols", torch.zeros(slots, max(self.levels) + 1, dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("cells", torch.zeros(slots, 2 ** (self.bits or 0), dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("sizes", torch.zeros(slots + 1, dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("num_pixels", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    @torch.no_grad()
    def update(self, code: Code, num_pixels: int | None = None) -> None:
        """
        Adds the codes of a batch.

        Args:
            code ([`SparseCode`] or [`IndexCode`]): Codes of `model`.
            num_pixels (`int`, *optional*): Number of pixels of the batch's images, B·H·W. Defaults to that of the
                code's `image_size`.

        Raises:
            ValueError: If the code has another alphabet, or if neither `num_pixels` nor an `image_size` is given.
        """
        if (code.coefficients is None) != (self.scale is None) or code.levels != self.levels:
            raise ValueError(f"`code` must have slots {self.levels}, as `model` declared, got {code.levels}.")
        if num_pixels is None:
            if code.image_size is None:
                raise ValueError("`num_pixels` must be given for a code without `image_size`, got None.")
            num_pixels = len(code) * math.prod(code.image_size)
        counts = count_symbols(code, self.levels, self.scale, self.bits)
        self.symbols += counts.symbols.to(self.symbols.device)
        self.cells += counts.cells.to(self.cells.device)
        self.sizes += counts.sizes.to(self.sizes.device)
        self.num_pixels += num_pixels

    def compute(self) -> dict[str, torch.Tensor]:
        """Rates of all codes seen by all ranks."""
        sites = self.sizes.sum().double()
        share = self.symbols[:, 1:].sum(dim=1).double() / sites  # of sites that use each slot
        if self.ordered:
            bits = sum(entropy(row) for row in self.symbols)
            bits = bits + sum(used * entropy(row) for used, row in zip(share, self.cells))
        else:
            order = torch.tensor([math.lgamma(size + 1) / math.log(2) for size in range(self.sizes.numel())])
            mean_order = (self.sizes * order.to(self.sizes.device, torch.float64)).sum() / sites
            index_bits = entropy(self.symbols[:, 1:].sum(dim=0))
            cell_bits = 32.0 if self.bits is None else entropy(self.cells.sum(dim=0))
            bits = entropy(self.sizes) + share.sum() * (index_bits + cell_bits) - mean_order
        return {
            "nominal_bits_per_pixel": self.nominal_bits_per_site * sites / self.num_pixels,
            "entropy_bits_per_pixel": bits * sites / self.num_pixels,
            "entropy_bits_per_site": bits,
        }
