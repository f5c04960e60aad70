r"""What a bottleneck loses of latents, and what its codes cost, over batches.

The loss is NMSE = Σ ‖z − ẑ‖² / Σ ‖z − z̄‖² of latents z and decoded latents ẑ, and SNR = −10 log₁₀ NMSE in dB. A
bottleneck without codes stores its latents in half precision, for 16 bits a value.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch

from ..coding import Code
from ..metrics import AtomUsage, CodeRate, LatentNMSE
from ..models.bottlenecks import Bottleneck


class LatentFigures:
    """
    Collects the figures of one bottleneck.

    Args:
        bottleneck ([`models.bottlenecks.Bottleneck`]): The bottleneck.
        device (`torch.device` or `str`): Where it is.
    """

    def __init__(self, bottleneck: Bottleneck, device: torch.device | str):
        self.bottleneck = bottleneck
        self.nmse = LatentNMSE(bottleneck.config.latent_channels).to(device)
        self.rate = CodeRate(bottleneck).to(device) if bottleneck.levels else None
        self.usage: AtomUsage | None = None
        self.stored_bits = self.pixels = 0

    @torch.no_grad()
    def update(self, latents: torch.Tensor, image_size: tuple[int, int]) -> tuple[Code | None, torch.Tensor]:
        """The code of latents `(B, L, h, w)` of images of a size, `None` without one, and the decoded latents."""
        code = None
        if self.rate is None:
            decoded = latents.half().to(latents.dtype)
            self.stored_bits += 16 * latents.numel()
            self.pixels += len(latents) * math.prod(image_size)
        else:
            code = replace(self.bottleneck.encode(latents), image_size=tuple(image_size))
            decoded = self.bottleneck.decode(code)
            self.usage = self.usage or AtomUsage(code.codebook_sizes).to(latents.device)
            self.usage.update(code)
            self.rate.update(code)
        self.nmse.update(decoded, latents)
        return code, decoded

    def compute(self) -> dict[str, float | None]:
        """
        `latent_nmse`, `latent_snr_db`, `nominal_bits_per_pixel`, `entropy_bits_per_pixel` and the figures of
        [`metrics.AtomUsage`] over all batches; those of a code are `None` without one.
        """
        nmse = self.nmse.compute()
        figures: dict[str, Any] = {"latent_nmse": float(nmse), "latent_snr_db": float(-10 * torch.log10(nmse))}
        if self.rate is None:
            figures["nominal_bits_per_pixel"] = self.stored_bits / self.pixels
            return figures | dict.fromkeys(("entropy_bits_per_pixel", "perplexity", "active"))
        rates = self.rate.compute()
        figures |= {key: float(rates[key]) for key in ("nominal_bits_per_pixel", "entropy_bits_per_pixel")}
        return figures | {key: float(value) for key, value in self.usage.compute().items()}
