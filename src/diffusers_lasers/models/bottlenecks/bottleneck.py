"""What every bottleneck can do: `encode` latents to a code, `decode` a code to latents, and both in `forward`."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.utils import BaseOutput

from ...coding import Code
from ...functional.images.patch_signals import latents_to_signals, patch_grid, signals_to_latents
from ...functional.operands import may_look
from ...utils.config_checks import CHANNELS, Integer, check_fields
from ...utils.model_loading import LasersModelMixin
from .packed_codes import PackedCodes
from .rated_codes import RatedCodes


__all__ = ["Bottleneck", "BottleneckOutput"]


@dataclass
class BottleneckOutput(BaseOutput):
    """
    Output of a bottleneck's `forward`.

    Args:
        latents (`torch.Tensor` of shape `(B, L, H, W)`): Latents after the bottleneck, through which gradients reach
            the encoder.
        loss (`torch.Tensor`): Weighted sum of the two losses below, 0-dimensional, to add to the reconstruction loss.
        commitment_loss (`torch.Tensor`): mean (z_e − sg[ẑ_e])², unweighted and without gradient, to log
            (LASERS, 2024, third term of eqs 3 and 13).
        codebook_loss (`torch.Tensor`): mean (sg[z_e] − ẑ_e)², likewise (second term); 0 where running
            means replace it.
        code ([`SparseCode`] or [`IndexCode`], *optional*): The code, without gradient.
        rate (`torch.Tensor`, *optional*): Mean bits of a latent value under the running tables, or the density, from
            before this step; 0-dimensional, without gradient. `None` for a bottleneck without.
    """

    latents: torch.Tensor
    loss: torch.Tensor | None = None
    commitment_loss: torch.Tensor | None = None
    codebook_loss: torch.Tensor | None = None
    code: Code | None = None
    rate: torch.Tensor | None = None


class Bottleneck(LasersModelMixin, PackedCodes, RatedCodes, ModelMixin, ConfigMixin):
    """
    Base of the bottlenecks. A subclass defines `encode`, `decode`, `forward`, `levels` and how codes become bytes,
    `initialize` where it learns from the first latents of a training, and `fit` where it can learn from fixed ones.
    Those whose codes are indices have all but the quantiser from [`IndexBottleneck`].

    Attributes:
        levels (`tuple[int, ...]`): Size of the alphabet of each slot; empty for a bottleneck without codes.
        patch_size (`int`): Side p of a site, in latent positions; a site has p²·`latent_channels` features.
        num_symbols (`int`): Atoms or codewords of each slot; 0 for a bottleneck without.
        latent_evenness (`float`): How even the latents of networks that start from images are: their variances are the
            principal components' to the power 1 − this. Measured (docs: reproduction/networks).
        latent_shift (`torch.Tensor` of shape `(L,)`): What is subtracted from each channel before coding, and added
            afterwards; 0 until [`set_latent_statistics`].
        latent_scale (`torch.Tensor` of shape `(L,)`): What each channel is then divided by, and multiplied by
            afterwards; 1 until then.
        tables (`torch.nn.Module`, *optional*): Running tables of its symbols, where a `rate_weight` above 0 needs
            them, else `None`.
    """

    latent_evenness = 0.25
    _supports_group_offloading = False
    _no_split_modules: list[str] = []
    # coding is in float32, also of a model that is loaded in half precision; a subclass adds its own tensors
    _keep_in_fp32_modules = ["latent_shift", "latent_scale"]
    _config_fields = {"latent_channels": CHANNELS}

    def __init__(self):
        super().__init__()
        channels = self.config.latent_channels
        self.register_buffer("latent_shift", torch.zeros(channels))
        self.register_buffer("latent_scale", torch.ones(channels))
        self.tables = None

    @property
    def patch_size(self) -> int:
        return self.config.get("patch_size", 1)

    @property
    def site_side(self) -> int:
        """The same, by the name that all makers of codes share."""
        return self.patch_size

    @property
    def num_symbols(self) -> int:
        """Symbols of the largest alphabet of a slot."""
        return max(self.levels, default=0)

    def encode_to_code(self, latents: torch.Tensor, rate_weight: float | None = None, prior: Any = None) -> Code:
        """
        The same as `encode`, by the name that all makers of codes share.

        Args:
            latents (`torch.Tensor` of shape `(B, L, H, W)`): Latents.
            rate_weight (`float`, *optional*): λ of this call, from 0: the loss of one bit a latent value, beside a mean
                squared error of pixels in [−1, 1]. 0 takes the nearest code, more takes the one of the least error plus
                λ · bits. Defaults to `None`: as the bottleneck was trained.
            prior ([`FactorizedPrior`], *optional*): The prior of this bottleneck, whose bits count where λ is given, as
                means over its contexts. Defaults to `None`: the running tables, of a bottleneck that was trained with
                a `rate_weight`.

        Returns:
            [`SparseCode`] or [`IndexCode`]: The code.

        Raises:
            ValueError: If the latents or λ do not fit, there is nothing that says what symbols cost, the prior is of
                another model, or the bottleneck is one of another library.
        """
        return self.encode(latents, rate_weight, prior)

    def decode_from_code(self, code: Code) -> torch.Tensor:
        """The same as `decode`, by the name that all makers of codes share."""
        return self.decode(code)

    def signals(self, latents: torch.Tensor) -> torch.Tensor:
        """
        Latents as float32 signals, one a site, shifted and scaled by the channels' statistics.

        Args:
            latents (`torch.Tensor` of shape `(B, L, H, W)`): Latents.

        Returns:
            `torch.Tensor` of shape `(B·h·w, p²·L)`: Signals.

        Raises:
            ValueError: If the latents have another number of channels.
        """
        channels = self.config.latent_channels
        if latents.ndim != 4 or latents.shape[1] != channels:
            raise ValueError(
                f"`latents` must have shape (batch, {channels}, height, width), got {tuple(latents.shape)}."
            )
        shift, scale = (part.float()[:, None, None] for part in (self.latent_shift, self.latent_scale))
        return latents_to_signals((latents.float() - shift) / scale, self.patch_size)

    def finite_signals(self, latents: torch.Tensor) -> torch.Tensor:
        """
        The same for coding by indices, which must not be made from NaN. The check synchronises, so that only the CPU
        has it.

        Args:
            latents (`torch.Tensor` of shape `(B, L, H, W)`): Latents.

        Returns:
            `torch.Tensor` of shape `(B·h·w, p²·L)`: Signals.

        Raises:
            ValueError: If the latents have another number of channels or, on the CPU, are not finite.
        """
        signals = self.signals(latents)
        if may_look(signals) and not torch.isfinite(signals).all():
            raise ValueError("`latents` must be finite, got NaN or infinity.")
        return signals

    def latents(self, signals: torch.Tensor, latent_size: tuple[int, int], dtype: torch.dtype) -> torch.Tensor:
        """
        Signals folded back into latents; the inverse of [`signals`].

        Args:
            signals (`torch.Tensor` of shape `(B·h·w, p²·L)`): Signals.
            latent_size (`tuple[int, int]`): Height and width of the latents.
            dtype (`torch.dtype`): Type of the result.

        Returns:
            `torch.Tensor` of shape `(B, L, H, W)`: Latents.
        """
        shift, scale = (part.float()[:, None, None] for part in (self.latent_shift, self.latent_scale))
        return (signals_to_latents(signals, *latent_size, self.patch_size) * scale + shift).to(dtype)

    @torch.no_grad()
    def set_latent_statistics(self, shift: torch.Tensor, scale: torch.Tensor | float = 1.0) -> None:
        """
        Sets what is subtracted from and divided out of each channel before coding. Atoms pass through the origin:
        latents whose channels have a mean other than 0 cost an atom for it at each site. Set it before `initialize` or
        `fit`.

        Args:
            shift (`torch.Tensor` of shape `(L,)`): Mean of each channel.
            scale (`torch.Tensor` of shape `(L,)` or `float`, defaults to 1.0): Unit of each channel; one for all keeps
                the mean squared error of the latents what is minimised.

        Raises:
            ValueError: If they have another shape, are not finite or a scale is not positive.
        """
        shift = torch.as_tensor(shift, dtype=torch.float32)
        scale = torch.as_tensor(scale, dtype=torch.float32)
        channels = self.latent_shift.shape
        if shift.shape != channels or scale.shape not in (channels, ()):
            raise ValueError(
                f"`shift` and `scale` must have shape {tuple(channels)}, got {tuple(shift.shape)} and "
                f"{tuple(scale.shape)}."
            )
        if not torch.isfinite(shift).all() or not (torch.isfinite(scale) & (scale > 0)).all():
            raise ValueError("`shift` and `scale` must be finite, and `scale` positive, got others.")
        self.latent_shift.copy_(shift)
        self.latent_scale.copy_(scale)

    def initialize(self, latents: torch.Tensor, generator: torch.Generator | None = None) -> None:
        """
        Initialises what is learned from data; call it once, on the first latents, before training. Nothing to do here.

        Args:
            latents (`torch.Tensor` of shape `(B, L, H, W)`): Latents of the untrained encoder.
            generator (`torch.Generator`, *optional*): Source of randomness.
        """

    def summary(self) -> dict[str, Any]:
        """Rate and geometry of a site, and whether statistics of the latents are set; see [`Coder.summary`]."""
        facts = {
            "bits_per_site": self.bits_per_site,
            "site": f"{self.patch_size} × {self.patch_size} latent positions",
            "features": self.patch_size**2 * self.config.latent_channels,
            "symbols": self.num_symbols,
        }
        if self.levels:
            facts["slots"] = len(self.levels)
        facts["latent_statistics"] = bool((self.latent_shift != 0).any() or (self.latent_scale != 1).any())
        return {"bottleneck": facts}


@torch.no_grad()
def sample_signals(
    bottleneck: Bottleneck, latents: torch.Tensor | Iterable[torch.Tensor], max_signals: int, seed: int
) -> torch.Tensor:
    """
    Random sites of latents, drawn without replacement; all of them where there are fewer.

    Args:
        bottleneck ([`Bottleneck`]): What the sites are for.
        latents (`torch.Tensor` of shape `(B, L, H, W)`, or an iterable of such tensors): Latents; an iterable is read
            twice.
        max_signals (`int`): Sites to take.
        seed (`int`): Seed of the draw.

    Returns:
        `torch.Tensor` of shape `(N, p²·L)`: Signals, float32, in the order of the latents, on the bottleneck's device.

    Raises:
        ValueError: If there are none, or they do not fit or are not finite.
    """
    check_fields({"max_signals": Integer()}, {"max_signals": max_signals})
    items = [latents] if torch.is_tensor(latents) else latents
    if iter(items) is items:
        raise ValueError("`latents` must be readable twice, got an iterator: give a list.")
    side = bottleneck.patch_size
    sizes = [item.shape[0] * math.prod(patch_grid(*item.shape[-2:], side)) for item in items]
    total, device = sum(sizes), bottleneck.latent_shift.device
    if total == 0:
        raise ValueError("`latents` must hold at least one image's, got none.")
    chosen = torch.randperm(total, generator=torch.Generator().manual_seed(seed))[:max_signals].sort().values
    taken, start = [], 0
    for item, size in zip(items, sizes, strict=True):
        rows = chosen[(chosen >= start) & (chosen < start + size)] - start
        signals = bottleneck.signals(item.to(device))[rows.to(device)]
        if not torch.isfinite(signals).all():
            raise ValueError("`latents` must be finite, got NaN or infinity.")
        taken.append(signals)
        start += size
    return torch.cat(taken)
