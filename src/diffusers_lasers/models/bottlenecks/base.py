"""What every bottleneck of an autoencoder can do: `encode` latents to a code, `decode` a code to latents, and both in `forward`."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.utils import BaseOutput

from ...coding import CodeHeader, IndexCode, SparseCode, pack_levels, unpack_levels
from ...functional.patches import latents_to_signals, patch_grid, signals_to_latents
from ...utils.config_checks import CHANNELS
from ...utils.model_loading import LasersModelMixin
from .packing import check_code, pack_code, unpack_code


__all__ = ["Bottleneck", "BottleneckOutput"]


@dataclass
class BottleneckOutput(BaseOutput):
    """
    Output of a bottleneck's `forward`.

    Args:
        latents (`torch.Tensor` of shape `(B, L, H, W)`): Latents after the bottleneck, through which gradients reach the encoder.
        loss (`torch.Tensor`): Weighted sum of the two losses below, 0-dimensional, to add to the reconstruction loss.
        commitment_loss (`torch.Tensor`): mean (z_e − sg[ẑ_e])², unweighted and without gradient, to log
            (LASERS, 2024, third term of eqs 3 and 13).
        codebook_loss (`torch.Tensor`): mean (sg[z_e] − ẑ_e)², likewise (second term); 0 where running
            means replace it.
        code ([`SparseCode`] or [`IndexCode`], *optional*): The code, without gradient.
    """

    latents: torch.Tensor
    loss: torch.Tensor | None = None
    commitment_loss: torch.Tensor | None = None
    codebook_loss: torch.Tensor | None = None
    code: SparseCode | IndexCode | None = None


class Bottleneck(LasersModelMixin, ModelMixin, ConfigMixin):
    """
    Base of the bottlenecks. A subclass defines `encode`, `decode`, `forward`, `bits_per_site` and `num_symbols`, `initialize` where it
    learns from the first latents of a training, and `fit` where it can learn from fixed ones.

    Attributes:
        patch_size (`int`): Side p of a site, in latent positions; a site has p²·`latent_channels` features.
        num_symbols (`int`): Atoms or codewords of each slot; 0 for a bottleneck without.
        latent_shift (`torch.Tensor` of shape `(L,)`): What is subtracted from each channel before coding, and added afterwards; 0 until
            [`set_latent_statistics`].
        latent_scale (`torch.Tensor` of shape `(L,)`): What each channel is then divided by, and multiplied by afterwards; 1 until then.
    """

    _supports_group_offloading = False
    _no_split_modules: list[str] = []
    # buffers and parameters of all subclasses: coding is in float32, also of a model that is loaded in half precision
    _keep_in_fp32_modules = [
        *("latent_shift", "latent_scale", "dictionary", "coefficient_scale", "codebook", "counts", "sums"),
        *("quantizer", "mean", "basis", "low", "steps", "points"),
    ]
    _config_fields = {"latent_channels": CHANNELS}
    num_symbols: int = 0
    _decoding_config: tuple[str, ...] = ()  # what decoding reads beside the weights and the patch size
    _kind = "index"  # of its codes, in a file
    _nested = False  # whether the first slots of a code are a code

    def __init__(self):
        super().__init__()
        channels = self.config.latent_channels
        self.register_buffer("latent_shift", torch.zeros(channels))
        self.register_buffer("latent_scale", torch.ones(channels))

    @property
    def patch_size(self) -> int:
        return self.config.get("patch_size", 1)

    @property
    def bits_per_site(self) -> float:
        """Nominal bits of one site's code."""
        raise NotImplementedError

    def bits(self, height: int, width: int) -> float:
        """
        Nominal bits of the code of latents of `height` × `width` positions.

        Args:
            height (`int`): Latent positions down.
            width (`int`): Latent positions across.

        Returns:
            `float`: Bits.
        """
        rows, columns = patch_grid(height, width, self.patch_size)
        return rows * columns * self.bits_per_site

    @property
    def levels(self) -> tuple[int, ...]:
        """Size of the alphabet of each slot of an index code; empty for a bottleneck without such codes."""
        return ()

    @property
    def _max_slots(self) -> int:
        return len(self.levels)

    @property
    def _slots_wanted(self) -> str:
        """The slots of this bottleneck's codes, for a message."""
        return f"slots of levels {self.levels}"

    def _check_kind(self, code: SparseCode | IndexCode) -> None:
        """Raises a `ValueError` where `code` is no code, or one of other slots; looks at no tensor."""
        if isinstance(code, IndexCode):
            slots = len(code.levels) if self._nested else self._max_slots
            if slots and code.levels == self.levels[:slots]:
                return
        raise ValueError(f"`code` must have {self._slots_wanted}, got {getattr(code, 'levels', type(code).__name__)}.")

    def _check_code(self, code: SparseCode | IndexCode) -> None:
        """The same, and that its sites fit and, on the CPU and outside compiled graphs, its values."""
        check_code(self, code)

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
        The same for coding by indices, which must not be made from NaN. The check synchronises, so that only the CPU has it.

        Args:
            latents (`torch.Tensor` of shape `(B, L, H, W)`): Latents.

        Returns:
            `torch.Tensor` of shape `(B·h·w, p²·L)`: Signals.

        Raises:
            ValueError: If the latents have another number of channels or, on the CPU, are not finite.
        """
        signals = self.signals(latents)
        if signals.device.type == "cpu" and not torch.compiler.is_compiling() and not torch.isfinite(signals).all():
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
        Sets what is subtracted from and divided out of each channel before coding. Atoms pass through the origin: latents whose channels
        have a mean other than 0 cost an atom for it at each site. Set it before `initialize` or `fit`.

        Args:
            shift (`torch.Tensor` of shape `(L,)`): Mean of each channel.
            scale (`torch.Tensor` of shape `(L,)` or `float`, defaults to 1.0): Unit of each channel; one for all keeps the mean squared error of the
                latents what is minimised.

        Raises:
            ValueError: If they have another shape, are not finite or a scale is not positive.
        """
        shift = torch.as_tensor(shift, dtype=torch.float32)
        scale = torch.as_tensor(scale, dtype=torch.float32)
        channels = self.latent_shift.shape
        if shift.shape != channels or scale.shape not in (channels, ()):
            raise ValueError(
                f"`shift` and `scale` must have shape {tuple(channels)}, got {tuple(shift.shape)} and {tuple(scale.shape)}."
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

    # Codes as bytes

    def pack(self, code: SparseCode | IndexCode) -> bytes:
        """
        A code as bytes: a header of 37, and the nominal bits (`bits_per_site` for each site; less where slots of a sparse code are unused) rounded up to whole bytes,
        two at most beyond them.

        Args:
            code ([`SparseCode`] or [`IndexCode`]): A code of this bottleneck.

        Returns:
            `bytes`: What [`unpack`] reads, with the same weights.

        Raises:
            ValueError: If the code is of another bottleneck or damaged, has no such indices or a coefficient that is
                not finite, or the bottleneck makes none.
        """
        return pack_code(self, code)

    def unpack(self, data: bytes, max_sites: int | None = None) -> SparseCode | IndexCode:
        """
        The code of packed bytes. It decodes to the same latents, bit for bit. Where a support is a set (coefficients of float32, or with one scale for all) its slots come
        back by falling magnitude of their coefficients: cut such a code to fewer atoms before packing it.

        Args:
            data (`bytes`): What [`pack`] gave. It may come from anybody: sizes are held against its length before
                memory is taken.
            max_sites (`int`, *optional*): Most sites of all images together. Defaults to 2²⁴, an image of 16384 × 16384
                pixels where a site has 4 × 4 of them, and to 2¹⁶ where a site costs no bits, with one codeword.

        Returns:
            [`SparseCode`] or [`IndexCode`]: The code, on the bottleneck's device.

        Raises:
            ValueError: If the bytes are cut off, changed, something else, packed by a bottleneck with other weights,
                no code of this one, or have more sites.
        """
        return unpack_code(self, data, max_sites)

    def _pack_payload(self, code: SparseCode | IndexCode) -> tuple[bytes, int | None]:
        """Bytes of a code without header, and the bits of its coefficients."""
        self._check_kind(code)
        return pack_levels(code.indices.flatten(0, 2), code.levels), None

    def _unpack_payload(self, header: CodeHeader, payload: bytes) -> SparseCode | IndexCode:
        """The inverse of `_pack_payload`, of a header with this bottleneck's fingerprint."""
        levels = self.levels[: header.slots]
        grid = patch_grid(*header.latent_size, self.patch_size)
        indices = unpack_levels(payload, header.batch * math.prod(grid), levels)
        shape = (header.batch, *grid, len(levels))
        return IndexCode(indices.reshape(shape), levels, header.latent_size, header.image_size)


def check_positive(**arguments: int) -> None:
    """Raises a `ValueError` naming the first argument that is not an integer from 1 to 2³¹ − 1."""
    for name, value in arguments.items():
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value < 2**31:
            raise ValueError(f"`{name}` must be an integer from 1 to 2³¹ − 1, got {value!r}.")


@torch.no_grad()
def sample_signals(
    bottleneck: Bottleneck, latents: torch.Tensor | Iterable[torch.Tensor], max_signals: int, seed: int
) -> torch.Tensor:
    """
    Random sites of latents, drawn without replacement; all of them where there are fewer.

    Args:
        bottleneck ([`Bottleneck`]): What the sites are for.
        latents (`torch.Tensor` of shape `(B, L, H, W)`, or an iterable of such tensors): Latents; an iterable is read twice.
        max_signals (`int`): Sites to take.
        seed (`int`): Seed of the draw.

    Returns:
        `torch.Tensor` of shape `(N, p²·L)`: Signals, float32, in the order of the latents, on the bottleneck's device.

    Raises:
        ValueError: If there are none, or they do not fit or are not finite.
    """
    check_positive(max_signals=max_signals)
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
