r"""The image codec of "Denoising Diffusion Models on Model-Based Latent Space" (Scribano et al., 2023, section 3.1).

    RGB → Y, Cb, Cr → patches of s × s pixels → for each channel a quantiser of its own → indices (B, c̄, h, w)

The quantisers are VQ, PQ, OPQ or RQ; `"OPQ-{32-8-8}"` gives 32 bits a patch to Y and 8 to Cb and Cr each, in
sub-codebooks of 8 bits, so that c̄ = 6. Each sub-codebook is sorted by its first principal component (section 3.2.1),
so that neighbouring indices are similar.

faiss fits the codebooks; using them takes torch alone. A codec that is not fitted can be built, saved and loaded; a
`ValueError` says so when it is used. What differs from the paper: the colours are exactly invertible, and
reconstructions are floats that are neither rounded nor wrapped.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.autoencoders.vae import DecoderOutput
from diffusers.utils import BaseOutput
from diffusers.utils.accelerate_utils import apply_forward_hook

from ...functional.images.color import rgb_to_ycbcr, ycbcr_to_rgb
from ...functional.images.patch_signals import latents_to_signals, patch_grid, signals_to_latents
from ...functional.operands import may_look
from ...functional.quantisers.codebook import with_costs
from ...functional.quantisers.subquantizers import decode_channels, encode_product, encode_residual
from ...learning.codebooks import QUANTIZERS
from ...utils import config_checks as checks
from ...utils.model_loading import LasersModelMixin
from .fitting_images import LARGEST
from .patch_codebooks import CHANNELS, PatchCodebooks
from .patch_codes import PatchCodes


__all__ = ["ModelBasedVQCodec", "ModelBasedVQCodecOutput"]

_NOTATION = re.compile(r"(VQ|PQ|OPQ|RQ)-\{(\d+)-(\d+)-(\d+)\}")


@dataclass
class ModelBasedVQCodecOutput(BaseOutput):
    """
    Output of [`ModelBasedVQCodec.encode`].

    Args:
        codes (`torch.Tensor` of shape `(B, c̄, h, w)`): Indices, int64: the slots of Y, then of Cb, then of Cr.
        image_size (`tuple[int, int]`): Height and width of the images, to crop to after decoding.
    """

    codes: torch.Tensor
    image_size: tuple[int, int] | None = None


class ModelBasedVQCodec(LasersModelMixin, PatchCodebooks, PatchCodes, ModelMixin, ConfigMixin):
    r"""
    Codes images by fitted codebooks of YCbCr patches (Scribano et al., 2023).

    Args:
        quantizer (`str`, defaults to `"OPQ"`): `"VQ"`, `"PQ"`, `"OPQ"` or `"RQ"`.
        bits (`tuple[int, int, int]`, defaults to `(32, 8, 8)`): Bits a patch of Y, Cb and Cr.
        patch_size (`int`, defaults to 8): Side s of a patch in pixels.
        codebook_bits (`int`, defaults to 8): Bits of one sub-codebook of PQ, OPQ and RQ, 1 to 12, dividing each of
            `bits`. VQ has one codebook of all the bits, 16 at most.
        beam (`int`, defaults to 8): Partial sums that encoding by RQ keeps.

    Raises:
        ValueError: If an argument is out of range, or the arguments do not fit each other.
    """

    _supports_group_offloading = False
    _no_split_modules: list[str] = []
    _config_fields = {
        "quantizer": checks.Word(*QUANTIZERS),
        "bits": checks.Sequence(checks.Integer(1, 2**14), least=3, most=3),
        "patch_size": checks.Integer(1, 2**10),
        "codebook_bits": checks.Integer(1, 12),
        "beam": checks.Integer(1, 2**16),
    }

    @register_to_config
    def __init__(
        self,
        quantizer: str = "OPQ",
        bits: tuple[int, int, int] = (32, 8, 8),
        patch_size: int = 8,
        codebook_bits: int = 8,
        beam: int = 8,
    ):
        super().__init__()
        features = patch_size * patch_size
        for channel, wanted in zip(CHANNELS, bits):
            if quantizer == "VQ":
                if wanted > 16:
                    raise ValueError(
                        f"`bits` must be at most 16 for VQ, a codebook of 65536, got {wanted} of {channel}."
                    )
                slots, size = 1, wanted
            else:
                slots, size = wanted // codebook_bits, codebook_bits
                if wanted % codebook_bits:
                    raise ValueError(
                        f"`bits` must be multiples of `codebook_bits`, {codebook_bits}, for {quantizer}, got {wanted}."
                    )
                if quantizer != "RQ" and features % slots:
                    raise ValueError(
                        f"`bits` / `codebook_bits` must divide the {features} pixels of a patch for {quantizer}, got "
                        f"{slots} of {channel}."
                    )
            width = features if quantizer == "RQ" else features // slots
            turned = features**2 if quantizer == "OPQ" and slots > 1 else 0
            deciding = {"bits": bits, "patch_size": patch_size, "codebook_bits": codebook_bits}
            checks.check_size(3 * (slots * 2**size * width + turned), **deciding)
            self.register_buffer(f"codebooks_{channel}", torch.zeros(slots, 2**size, width))
            if quantizer == "OPQ" and slots > 1:
                self.register_buffer(f"rotation_{channel}", torch.eye(features))
        self.register_buffer("fitted", torch.zeros(3, dtype=torch.bool))

    @classmethod
    def from_notation(cls, notation: str, **arguments: Any) -> ModelBasedVQCodec:
        """
        An unfitted codec, named as in the paper.

        Args:
            notation (`str`): E.g. `"OPQ-{32-8-8}"`: kind, and bits a patch of Y, Cb and Cr.
            **arguments: Further arguments of the class.

        Returns:
            [`ModelBasedVQCodec`]: The codec.

        Raises:
            ValueError: If the notation has another form, or names a codec that cannot be built.
        """
        match = _NOTATION.fullmatch(notation)
        if match is None:
            raise ValueError(f"`notation` must look like 'OPQ-{{32-8-8}}', with VQ, PQ, OPQ or RQ, got {notation!r}.")
        return cls(quantizer=match[1], bits=tuple(int(number) for number in match.groups()[1:]), **arguments)

    def _groups(self) -> list[tuple[int, tuple[str, ...]]]:
        """
        Groups of channels that are searched at once, each with the number of its first channel: neighbours whose
        codebooks have one shape. Channels of RQ are searched alone.
        """
        shapes = [book.shape for book in self.codebooks.values()]
        alone = self.config.quantizer == "RQ"
        starts = [i for i in range(3) if i == 0 or alone or shapes[i] != shapes[i - 1]]
        return [(start, CHANNELS[start:stop]) for start, stop in zip(starts, [*starts[1:], 3])]

    @apply_forward_hook
    @torch.no_grad()
    def encode(
        self,
        pixel_values: torch.Tensor,
        return_dict: bool = True,
        rate_weight: float | None = None,
        prior: Any = None,
    ) -> ModelBasedVQCodecOutput | tuple[torch.Tensor, tuple[int, int]]:
        """
        Codes images, in float32 whatever the dtype of images and codec.

        Args:
            pixel_values (`torch.Tensor` of shape `(B, 3, H, W)`): RGB in [-1, 1]; of any size, its edge is repeated up
                to whole patches.
            return_dict (`bool`, defaults to `True`): Whether to return an output class instead of a tuple.
            rate_weight (`float`, *optional*): λ, from 0: the loss of one bit a pixel, beside the mean squared error of
                RGB in [-1, 1]. Patches take the codewords of the least error plus λ · bits, where errors of Y, Cb and
                Cr count by what they do to RGB, each channel alone. Defaults to `None`: the nearest, as with 0.
            prior ([`FactorizedPrior`], *optional*): The codec's prior, whose bits count, as means over its contexts;
                needed for a λ above 0.

        Returns:
            [`ModelBasedVQCodecOutput`] or `tuple`: The codes `(B, c̄, ⌈H/s⌉, ⌈W/s⌉)` and the images' size.

        Raises:
            ValueError: If there are not three channels, or, outside compiled graphs, the codec is not fitted or, on
                the CPU, a value is not finite or out of range; or λ and prior do not fit.
        """
        self._check_fitted()
        costs = self._costs(rate_weight, prior)
        if pixel_values.ndim != 4 or pixel_values.shape[1] != 3 or not pixel_values.is_floating_point():
            raise ValueError(
                "`pixel_values` must be floating point of shape (batch, 3, height, width), got "
                f"{pixel_values.dtype} of shape {tuple(pixel_values.shape)}."
            )
        if may_look(pixel_values):
            low, high = pixel_values.aminmax()
            if not (low >= -LARGEST and high <= LARGEST):
                raise ValueError(f"`pixel_values` must lie in [-1, 1], got {low.item():.4g} to {high.item():.4g}.")
        size, side = tuple(pixel_values.shape[-2:]), self.config.patch_size
        rows, columns = patch_grid(*size, side)
        codes = []
        with torch.autocast(pixel_values.device.type, enabled=False):
            colours = rgb_to_ycbcr(pixel_values.float())
            for first, channels in self._groups():
                signals = latents_to_signals(colours[:, first : first + len(channels)], side)  # (B h w, channels · s²)
                rotations = [self.rotation(channel) for channel in channels]
                if rotations[0] is not None:
                    parts = signals.chunk(len(channels), dim=1)
                    signals = torch.cat([part @ rotation.t() for part, rotation in zip(parts, rotations)], dim=1)
                books = torch.cat([getattr(self, f"codebooks_{channel}") for channel in channels]).float()
                if costs is not None:
                    together = self.config.quantizer == "RQ"
                    wanted = torch.cat([costs[channel] for channel in channels])
                    signals, books = with_costs(signals, books, wanted, together)
                if self.config.quantizer == "RQ":
                    indices = encode_residual(signals, books, self.config.beam)
                else:
                    indices = encode_product(signals, books)
                codes.append(indices.unflatten(0, (pixel_values.shape[0], rows, columns)))
        codes = torch.cat(codes, dim=-1).permute(0, 3, 1, 2).contiguous()
        return ModelBasedVQCodecOutput(codes=codes, image_size=size) if return_dict else (codes, size)

    @apply_forward_hook
    def decode(
        self, codes: torch.Tensor, image_size: tuple[int, int] | None = None, return_dict: bool = True
    ) -> DecoderOutput | tuple[torch.Tensor]:
        """
        Images of codes; neither rounded nor clamped.

        Args:
            codes (`torch.Tensor` of shape `(B, c̄, h, w)`): Indices, int64.
            image_size (`tuple[int, int]`, *optional*): Height and width to crop to. Defaults to whole patches.
            return_dict (`bool`, defaults to `True`): Whether to return an output class instead of a tuple.

        Returns:
            `DecoderOutput` or `tuple`: Images `(B, 3, H, W)` in about [-1, 1], in the codec's dtype.

        Raises:
            ValueError: If `codes` have another type or shape, or the size does not fit; outside compiled graphs, also
                if the codec is not fitted or, on the CPU, an index is out of range.
        """
        self._check_fitted()
        self._check_codes(codes)
        signals = self._decode_patches(codes)
        sample = self._assemble(signals, codes.shape[0], codes.shape[-2:], image_size)
        return DecoderOutput(sample=sample) if return_dict else (sample,)

    def _decode_patches(self, codes: torch.Tensor) -> torch.Tensor:
        """Patches of Y, Cb and Cr, `(3, B h w, s²)`."""
        books = []
        for channel, book in self.codebooks.items():
            book, rotation = book.float(), self.rotation(channel)
            if rotation is not None:  # Rᵀ (c_1, …, c_m) = Σ_j R_jᵀ c_j: turned codewords are fewer than patches
                with torch.autocast(book.device.type, enabled=False):
                    book = torch.bmm(book, rotation.unflatten(0, (book.shape[0], -1)))
            books.append(book)
        indices = codes.permute(0, 2, 3, 1).flatten(0, 2)  # (B h w, c̄)
        return decode_channels(indices, books, self.config.patch_size**2)

    @apply_forward_hook
    def decode_soft(
        self, probabilities: torch.Tensor, image_size: tuple[int, int] | None = None, return_dict: bool = True
    ) -> DecoderOutput | tuple[torch.Tensor]:
        """
        Images of distributions over codewords: each slot decodes to its expected codeword (eq 21). Differentiable, and
        equal to `decode` for one-hot distributions.

        Args:
            probabilities (`torch.Tensor` of shape `(B, c̄, |C|, h, w)`): Distributions; entries beyond a smaller
                codebook are not read.
            image_size (`tuple[int, int]`, *optional*): Height and width to crop to. Defaults to whole patches.
            return_dict (`bool`, defaults to `True`): Whether to return an output class instead of a tuple.

        Returns:
            `DecoderOutput` or `tuple`: Images `(B, 3, H, W)`.

        Raises:
            ValueError: If the codec is not fitted or the shape does not fit.
        """
        self._check_fitted()
        expected = (len(self.slot_bits), self.num_codewords)
        if probabilities.ndim != 5 or tuple(probabilities.shape[1:3]) != expected:
            raise ValueError(
                f"`probabilities` must have shape (batch, {expected[0]}, {expected[1]}, h, w), got "
                f"{tuple(probabilities.shape)}."
            )
        signals, first = [], 0
        with torch.autocast(probabilities.device.type, enabled=False):
            for channel, book in self.codebooks.items():
                slots, codewords, _ = book.shape
                weights = probabilities[:, first : first + slots, :codewords].float()
                parts = torch.einsum("bmkhw,mkd->bhwmd", weights, book.float())
                parts = parts.sum(dim=3) if self.config.quantizer == "RQ" else parts.flatten(3)
                rotation = self.rotation(channel)
                signals.append(parts.flatten(0, 2) if rotation is None else parts.flatten(0, 2) @ rotation)
                first += slots
        sample = self._assemble(signals, probabilities.shape[0], probabilities.shape[-2:], image_size)
        return DecoderOutput(sample=sample) if return_dict else (sample,)

    def _assemble(
        self,
        signals: torch.Tensor | list[torch.Tensor],
        batch: int,
        grid: tuple[int, int],
        image_size: tuple[int, int] | None,
    ) -> torch.Tensor:
        """Images of the three channels' decoded signals `(B h w, s²)`."""
        side = self.config.patch_size
        height, width = self._image_size(grid, image_size)
        with torch.autocast(signals[0].device.type, enabled=False):
            planes = [signals_to_latents(signal, height, width, side) for signal in signals]
            return ycbcr_to_rgb(torch.cat(planes, dim=1)).to(self.dtype)

    def forward(self, pixel_values: torch.Tensor, return_dict: bool = True) -> DecoderOutput | tuple[torch.Tensor]:
        """
        Codes images and decodes them.

        Args:
            pixel_values (`torch.Tensor` of shape `(B, 3, H, W)`): RGB in [-1, 1].
            return_dict (`bool`, defaults to `True`): Whether to return an output class instead of a tuple.

        Returns:
            `DecoderOutput` or `tuple`: Reconstructions of the same size.
        """
        output = self.encode(pixel_values)
        return self.decode(output.codes, output.image_size, return_dict=return_dict)
