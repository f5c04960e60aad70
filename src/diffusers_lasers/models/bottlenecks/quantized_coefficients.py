r"""Coefficients of a dictionary code at a stated rate: their ranges, learned while training, and the bits of a site.

With n bits a coefficient is one of 2ⁿ values of a range (`coding/coefficients.py`). The half-width of the range follows
the coefficients of the training steps, as a running mean: one for each slot in order of selection, so that the order is
part of the code, or one for all slots, so that a support is a set.
"""

from __future__ import annotations

import torch

from ...coding.coefficients import coefficient_scale, dequantize_coefficients, quantize_coefficients
from ...coding.symbol_bits import SymbolBits
from ...functional.quantisers.subquantizers import encode_product
from ...functional.rates import support_bits
from ...utils.distributed import all_gather, rank_and_world_size
from .rated_codes import Choice


SCALE_SAMPLES = 4096  # sites that a step's coefficient scale is read from
_SCALE_MEMORY = 100.0  # steps that the running scale remembers


def cheapest_cells(coefficients: torch.Tensor, scale: torch.Tensor, costs: torch.Tensor) -> torch.Tensor:
    """Cells `(N, S)` of the least (c − ĉ)² + cost for coefficients `(N, S)`, half-widths `(S,)` and costs `(S, 2ⁿ)`."""
    bits = costs.shape[1].bit_length() - 1
    cells = torch.arange(costs.shape[1], device=costs.device)
    points = dequantize_coefficients(cells.unsqueeze(1), scale, bits).t()  # (S, 2ⁿ)
    signals = torch.stack([coefficients, torch.zeros_like(coefficients)], dim=2).flatten(1)
    with torch.autocast(costs.device.type, enabled=False):
        return encode_product(signals, torch.stack([points, costs.sqrt()], dim=2))


class QuantizedCoefficients:
    """
    Base of [`DictionaryBottleneck`], which registers the buffers `coefficient_scale` `(S,)` and `scale_steps` `()`.
    """

    @property
    def coefficient_bits(self) -> int | None:
        """Bits of a coefficient; `None`: float32."""
        return self.config.coefficient_bits

    @property
    def ordered(self) -> bool:
        """Whether the order of a site's atoms is part of the code, as where each depth has a scale of its own."""
        return self._ordered(self.config.coefficient_bits)

    @property
    def slot_scales(self) -> torch.Tensor:
        """Half-widths `(S,)` of the quantised ranges: one a depth, or the largest for all."""
        scale = self.coefficient_scale.detach().float()
        return scale.max().expand_as(scale) if self.config.coefficient_scaling == "shared" else scale

    def site_bits(self, slots: int) -> float:
        """
        Bits of one site with so many slots: its support (of at most so many atoms; a set, or a sequence where each
        depth has a scale of its own) and as many coefficients of `coefficient_bits`, or 32 for float32.

        Args:
            slots (`int`): Slots a site.

        Returns:
            `float`: Bits.
        """
        bits = self.config.coefficient_bits
        return support_bits(self.config.num_atoms, slots, ordered=self.ordered) + slots * (bits or 32)

    def _ordered(self, bits: int | None) -> bool:
        """Whether the order of the atoms is part of a code with coefficients of so many bits."""
        return bits is not None and self.config.coefficient_scaling == "depth"

    def set_coefficient_bits(self, bits: int | None) -> None:
        """
        Switches the quantisation of coefficients, also of a model trained without.

        Args:
            bits (`int`, *optional*): Bits a coefficient, 1 to 16, or `None` for float32.

        Raises:
            ValueError: If `bits` is out of range.
        """
        self.register_to_config(coefficient_bits=bits)
        if self.tables is not None:
            self.tables.set_coefficient_bits(bits)

    def _quantize(
        self, indices: torch.Tensor, coefficients: torch.Tensor, choice: Choice | None = None
    ) -> torch.Tensor:
        """Coefficients `(N, S)` on the quantiser's grid; unused slots stay 0."""
        bits = self.config.coefficient_bits
        if bits is None:
            return coefficients
        scale = self.slot_scales[: indices.shape[1]]
        if choice is None:
            cells = quantize_coefficients(coefficients, scale, bits)
        else:
            cells = cheapest_cells(coefficients, scale, choice.cell_costs[: len(scale)])
        return torch.where(indices >= 0, dequantize_coefficients(cells, scale, bits), coefficients)  # 0, or NaN, stays

    def _cells(self, coefficients: torch.Tensor) -> torch.Tensor:
        """Cells `(N, slots)` of quantised coefficients, int64; zeros for floats."""
        bits = self.config.coefficient_bits
        if bits is None:
            return torch.zeros_like(coefficients, dtype=torch.int64)
        return quantize_coefficients(coefficients, self.slot_scales[: coefficients.shape[1]], bits)

    def _variance_under(self, bits: SymbolBits) -> torch.Tensor:
        if self.config.coefficient_bits is None:
            raise ValueError("`coefficient_bits` must be set for a `rate_weight` with a prior, got None.")
        chance = [torch.exp2(-part) for part in (bits.symbols, bits.cells, bits.sizes)]
        used = 1 - chance[2].cumsum(dim=0)[:-1]  # (S,): whether a site has more than so many atoms
        cells = torch.arange(chance[1].shape[1], device=used.device)[:, None]
        points = dequantize_coefficients(cells, self.slot_scales, self.config.coefficient_bits).t()  # (S, 2ⁿ)
        mean, square = ((chance[1] * part).sum(dim=1) for part in (points, points.square()))
        atoms = chance[0] @ self.dictionary.detach().float().t()  # (S, p²·L): the mean atom of each slot
        total = used * square - (used * mean).square() * atoms.square().sum(dim=1)
        return total.sum() / atoms.shape[1]

    @torch.no_grad()
    def _track_scale(self, indices: torch.Tensor, coefficients: torch.Tensor) -> None:
        """Moves the running coefficient scale towards this batch's. The first step sets it."""
        self.scale_steps += 1
        momentum = (1 / self.scale_steps).clamp_min(1 / _SCALE_MEMORY)
        self.coefficient_scale.lerp_(self._batch_scale(indices, coefficients), momentum)

    def _batch_scale(self, indices: torch.Tensor, coefficients: torch.Tensor) -> torch.Tensor:
        """
        The coefficient scale `(S,)` of the batches of all ranks, which have one size; an unused slot keeps the running
        one.
        """
        step = max(1, -(-indices.shape[0] * rank_and_world_size()[1] // SCALE_SAMPLES))
        indices, coefficients = all_gather(indices[::step]), all_gather(coefficients[::step])
        now = coefficient_scale(coefficients, indices >= 0)
        return torch.where(now > 0, now, self.coefficient_scale.float()).to(self.coefficient_scale)
