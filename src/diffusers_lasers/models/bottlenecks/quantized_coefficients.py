r"""Coefficients of a dictionary code at a stated rate: their ranges, learned while training, and the bits of a site.

With n bits a coefficient is one of 2ⁿ values of a range (`coding/coefficients.py`). The half-width of the range follows
the coefficients of the training steps, as a running mean: one for each slot in order of selection, so that the order is
part of the code, or one for all slots, so that a support is a set.
"""

from __future__ import annotations

import torch

from ...coding.coefficients import coefficient_scale, dequantize_coefficients, quantize_coefficients
from ...functional.rates import support_bits
from ...utils.distributed import all_gather, rank_and_world_size


SCALE_SAMPLES = 4096  # sites that a step's coefficient scale is read from
_SCALE_MEMORY = 100.0  # steps that the running scale remembers


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

    def _quantize(self, indices: torch.Tensor, coefficients: torch.Tensor) -> torch.Tensor:
        """Coefficients `(N, S)` on the quantiser's grid; unused slots stay 0."""
        bits = self.config.coefficient_bits
        if bits is None:
            return coefficients
        scale = self.slot_scales[: indices.shape[1]]
        cells = quantize_coefficients(coefficients, scale, bits)
        return torch.where(indices >= 0, dequantize_coefficients(cells, scale, bits), coefficients)  # 0, or NaN, stays

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
