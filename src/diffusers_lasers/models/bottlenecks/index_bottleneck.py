r"""Bottlenecks whose codes are indices. Each gives only how signals become indices and back, q and d:

    k = q(z_e),   ẑ = d(k),   z_e + sg[ẑ − z_e]  goes on to the decoder,

with gradients copied straight through (LASERS, 2024, eq 7) and, where the configuration has a `commitment_weight` β,
the loss β‖z_e − sg[ẑ]‖² (third term of eq 3). Checks, losses, codes and their bytes stand here once.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers.utils.accelerate_utils import apply_forward_hook
from torch.nn import functional as F

from ...coding import IndexCode
from ...coding.checks import check_index
from ...coding.container import CodeHeader
from ...coding.payloads import pack_levels, unpack_levels
from ...coding.symbol_bits import SymbolBits
from ...functional.images.patch_signals import patch_grid
from .bottleneck import Bottleneck, BottleneckOutput
from .rated_codes import Choice


__all__ = ["IndexBottleneck"]


class IndexBottleneck(Bottleneck):
    """
    Base of the bottlenecks with an [`IndexCode`]. A subclass defines `levels`, `_quantize` and `_dequantize`; its own
    `_straight_through` where gradients pass in another way, and `_observe` where it learns from what it codes.
    """

    @apply_forward_hook
    @torch.no_grad()
    def encode(self, latents: torch.Tensor, rate_weight: float | None = None, prior: Any = None) -> IndexCode:
        """
        Codes latents.

        Args:
            latents (`torch.Tensor` of shape `(B, L, H, W)`): Latents.
            rate_weight (`float`, *optional*): λ of this call; see [`Bottleneck.encode_to_code`].
            prior ([`FactorizedPrior`], *optional*): Whose bits count.

        Returns:
            [`IndexCode`]: `h × w = ⌈H/p⌉ × ⌈W/p⌉` sites with an index for each slot.

        Raises:
            ValueError: If the latents have another number of channels or, on the CPU, are not finite; or λ and prior do
                not fit.
        """
        with torch.autocast(latents.device.type, enabled=False):
            choice = self._choice(rate_weight, prior)
            return self._code(self._quantize(self.finite_signals(latents), choice), latents)

    @apply_forward_hook
    def decode(self, code: IndexCode) -> torch.Tensor:
        """
        Latents of a code.

        Args:
            code ([`IndexCode`]): A code with the same levels; with residual quantisation, of all stages or only the
                first ones.

        Returns:
            `torch.Tensor` of shape `(B, L, H, W)`: Latents in float32.

        Raises:
            ValueError: If the code has other levels, more slots, other sites or, on the CPU, indices out of range.
        """
        self._check_code(code)
        with torch.autocast(code.device.type, enabled=False):
            return self.latents(self._dequantize(code.indices.flatten(0, 2)), code.latent_size, torch.float32)

    def forward(self, latents: torch.Tensor, return_dict: bool = True) -> BottleneckOutput | tuple:
        """
        Codes and decodes latents, with gradients straight through. What is learned from them in training counts from
        the next step on.

        Args:
            latents (`torch.Tensor` of shape `(B, L, H, W)`): Latents.
            return_dict (`bool`, defaults to `True`): Whether to return an output class instead of a tuple.

        Returns:
            [`BottleneckOutput`] or `tuple`: Latents in the dtype of the input, losses in float32 (zeros without
            `commitment_weight`), and the [`IndexCode`].
        """
        with torch.autocast(latents.device.type, enabled=False):
            signals = self.signals(latents)
            with torch.no_grad():
                indices = self._quantize(signals, self._choice())
                quantized = self._dequantize(indices[:, : self._kept_slots()])
            code, weight = self._code(indices, latents), self.config.get("commitment_weight")
            commitment_loss = signals.new_zeros(()) if weight is None else F.mse_loss(signals, quantized)
            output = BottleneckOutput(
                latents=self.latents(self._straight_through(signals, quantized), latents.shape[-2:], latents.dtype),
                loss=(weight or 0.0) * commitment_loss,
                commitment_loss=commitment_loss.detach(),
                codebook_loss=signals.new_zeros(()),
                code=code,
                rate=self._mean_rate(code, signals),
            )
            if self.training:
                self._observe(signals.detach(), indices)
        return output if return_dict else output.to_tuple()

    def _kept_slots(self) -> int | None:
        """First slots that `forward` decodes; `None` for all."""
        return None

    def _quantize(self, signals: torch.Tensor, choice: Choice | None = None) -> torch.Tensor:
        """Indices `(N, slots)` of signals `(N, p²·L)` in float32: the nearest, or those of a choice by bits."""
        raise NotImplementedError

    def _dequantize(self, indices: torch.Tensor) -> torch.Tensor:
        """Signals `(N, p²·L)` in float32 of indices `(N, slots)`."""
        raise NotImplementedError

    def _straight_through(self, signals: torch.Tensor, quantized: torch.Tensor) -> torch.Tensor:
        """The quantised signals, with the gradient of the signals."""
        return signals + (quantized - signals).detach()

    def _observe(self, signals: torch.Tensor, indices: torch.Tensor) -> None:
        """Learns from the signals of a training step and their indices; nothing by default."""

    def _code(self, indices: torch.Tensor, latents: torch.Tensor) -> IndexCode:
        size = tuple(latents.shape[-2:])
        shape = (latents.shape[0], *patch_grid(*size, self.patch_size), len(self.levels))
        return IndexCode(indices.reshape(shape), self.levels, size)

    def _code_of_signals(self, signals: torch.Tensor) -> IndexCode:
        return self._code_of_indices(self._quantize(signals, self._choice()))

    def _variance_under(self, bits: SymbolBits) -> torch.Tensor:
        total = torch.zeros((), device=bits.symbols.device)
        for slot, level in enumerate(self.levels):  # decoding adds something for each slot
            rows = torch.zeros(level, len(self.levels), dtype=torch.int64, device=total.device)
            rows[:, slot] = torch.arange(level, device=total.device)
            chance, parts = torch.exp2(-bits.symbols[slot, :level])[:, None], self._dequantize(rows)
            mean = (chance * parts).sum(dim=0)
            total += (chance * (parts - mean).square()).sum(dim=0).mean()
        return total

    def _code_of_indices(self, indices: torch.Tensor) -> IndexCode:
        """Indices `(N, slots)` as the code of N images of one site."""
        side = self.patch_size
        return IndexCode(indices[:, None, None], self.levels, (side, side))

    @property
    def _slots_wanted(self) -> str:
        """The slots of this bottleneck's codes, for a message."""
        return f"slots of levels {self.levels}"

    def _check_kind(self, code: IndexCode) -> None:
        check_index(code, self.levels, self._nested, self._slots_wanted)

    def _pack_payload(self, code: IndexCode) -> bytes:
        return pack_levels(code.indices.flatten(0, 2), code.levels)

    def _unpack_payload(self, header: CodeHeader, payload: bytes, rows: int, shape: tuple[int, ...]) -> IndexCode:
        levels = self.levels[: header.slots]
        indices = unpack_levels(payload, rows, levels).reshape(shape)
        return IndexCode(indices, levels, header.latent_size, header.image_size)
