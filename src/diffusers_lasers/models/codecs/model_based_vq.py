r"""The image codec of "Denoising Diffusion Models on Model-Based Latent Space" (Scribano et al., 2023, section 3.1).

    RGB → Y, Cb, Cr → patches of s × s pixels → for each channel a quantiser of its own → indices (B, c̄, h, w)

The quantisers are VQ, PQ, OPQ or RQ; `"OPQ-{32-8-8}"` gives 32 bits a patch to Y and 8 to Cb and Cr each, in sub-codebooks of 8 bits, so that c̄ = 6. Each
sub-codebook is sorted by its first principal component (section 3.2.1), so that neighbouring indices are similar.

faiss fits the codebooks; using them takes torch alone. They are buffers whose shapes follow from the configuration, so that a codec that is not
fitted can be built, saved and loaded; it says so when it is used. What differs from the paper: the colours are exactly invertible, and reconstructions
are floats that nobody rounds or wraps.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.autoencoders.vae import DecoderOutput
from diffusers.utils import BaseOutput
from diffusers.utils.accelerate_utils import apply_forward_hook
from PIL import Image

from ...coding import Coder, IndexCode
from ...coding.bit_fields import pack_indices, unpack_indices
from ...coding.checks import check_index, check_values, is_code
from ...coding.container import CodeHeader, check_sites, fingerprint, pack_container, unpack_container
from ...functional.images.color import rgb_to_ycbcr, ycbcr_to_rgb
from ...functional.images.patch_signals import latents_to_signals, patch_grid, signals_to_latents
from ...functional.quantisers.ordering import codebook_order
from ...functional.quantisers.subquantizers import decode_channels, encode_product, encode_residual
from ...functional.rates import entropy
from ...learning.codebooks import QUANTIZERS, fit_quantizer
from ...learning.patch_sampling import sample_patches
from ...utils import config_checks as checks
from ...utils.image_inputs import preprocess_images
from ...utils.image_sources import load_image_dataset, to_rgb, undecoded
from ...utils.import_utils import requires
from ...utils.model_loading import LasersModelMixin


__all__ = ["ModelBasedVQCodec", "ModelBasedVQCodecOutput"]

_CHANNELS = ("y", "cb", "cr")
_LARGEST = 1.01  # magnitude of a colour, with what resampling and half precision may add
_NOTATION = re.compile(r"(VQ|PQ|OPQ|RQ)-\{(\d+)-(\d+)-(\d+)\}")
_MAX_PIXELS = 2**28  # in an unpacked code: 16384 × 16384, above what Pillow opens


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


class ModelBasedVQCodec(LasersModelMixin, Coder, ModelMixin, ConfigMixin):
    r"""
    Codes images by fitted codebooks of YCbCr patches (Scribano et al., 2023).

    Args:
        quantizer (`str`, defaults to `"OPQ"`): `"VQ"`, `"PQ"`, `"OPQ"` or `"RQ"`.
        bits (`tuple[int, int, int]`, defaults to `(32, 8, 8)`): Bits a patch of Y, Cb and Cr.
        patch_size (`int`, defaults to 8): Side s of a patch in pixels.
        codebook_bits (`int`, defaults to 8): Bits of one sub-codebook of PQ, OPQ and RQ, 1 to 12, dividing each of `bits`. VQ has one
            codebook of all the bits, 16 at most.
        beam (`int`, defaults to 8): Partial sums that encoding by RQ keeps.

    Raises:
        ValueError: If the arguments are no codec; the message says what they may be.
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
        for channel, wanted in zip(_CHANNELS, bits):
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
                        f"`bits` / `codebook_bits` must divide the {features} pixels of a patch for {quantizer}, got {slots} of {channel}."
                    )
            width = features if quantizer == "RQ" else features // slots
            turned = features**2 if quantizer == "OPQ" and slots > 1 else 0
            deciding = {"bits": bits, "patch_size": patch_size, "codebook_bits": codebook_bits}
            checks.check_size(3 * (slots * 2**size * width + turned), **deciding)
            self.register_buffer(f"codebooks_{channel}", torch.zeros(slots, 2**size, width))
            if quantizer == "OPQ" and slots > 1:
                self.register_buffer(f"rotation_{channel}", torch.eye(features))
        self.register_buffer("fitted", torch.zeros(3, dtype=torch.bool))
        self._ready = False

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
            ValueError: If the notation is no such name, or names no codec.
        """
        match = _NOTATION.fullmatch(notation)
        if match is None:
            raise ValueError(f"`notation` must look like 'OPQ-{{32-8-8}}', with VQ, PQ, OPQ or RQ, got {notation!r}.")
        return cls(quantizer=match[1], bits=tuple(int(number) for number in match.groups()[1:]), **arguments)

    @property
    def notation(self) -> str:
        """The paper's name of the codec."""
        return f"{self.config.quantizer}-{{{'-'.join(map(str, self.config.bits))}}}"

    @property
    def codebooks(self) -> dict[str, torch.Tensor]:
        """Sub-codebooks `(slots, K, features)` of each channel: `"y"`, `"cb"` and `"cr"`."""
        return {channel: getattr(self, f"codebooks_{channel}") for channel in _CHANNELS}

    def rotation(self, channel: str) -> torch.Tensor | None:
        """The rotation `(s², s²)` that OPQ turns a channel's patches by before coding, in float32; else `None`."""
        rotation = getattr(self, f"rotation_{channel}", None)
        return None if rotation is None else rotation.float()

    @property
    def slot_bits(self) -> tuple[int, ...]:
        """Bits of each of the c̄ slots."""
        return tuple(book.shape[1].bit_length() - 1 for book in self.codebooks.values() for _ in range(book.shape[0]))

    @property
    def num_codewords(self) -> int:
        """Codewords |C| of the largest sub-codebook."""
        return 2 ** max(self.slot_bits)

    @property
    def levels(self) -> tuple[int, ...]:
        """Codewords of each of the c̄ slots."""
        return tuple(2**bits for bits in self.slot_bits)

    @property
    def downsampling_factor(self) -> int:
        """Side s of a patch, in pixels."""
        return self.config.patch_size

    # Rates

    def bits_per_pixel(self, height: int, width: int) -> float:
        """
        Nominal rate of an image's code.

        Args:
            height (`int`): Pixels down.
            width (`int`): Pixels across.

        Returns:
            `float`: Bits of the code divided by `height · width`; padding to whole patches counts.
        """
        rows, columns = patch_grid(height, width, self.config.patch_size)
        return rows * columns * self.bits_per_site / (height * width)

    @property
    def compression_ratio(self) -> float:
        """Bits of a patch of 8-bit RGB over those of its code (eq 23)."""
        return 24 * self.config.patch_size**2 / sum(self.config.bits)

    def entropy_bits_per_pixel(self, codes: torch.Tensor, image_size: tuple[int, int] | None = None) -> float:
        """
        Empirical rate: the zeroth-order entropy of each slot's indices over all given codes.

        Args:
            codes (`torch.Tensor` of shape `(B, c̄, h, w)`): Codes.
            image_size (`tuple[int, int]`, *optional*): Height and width of the images. Defaults to whole patches.

        Returns:
            `float`: Bits a pixel.
        """
        self._check_codes(codes)
        counts = [torch.bincount(slot.flatten(), minlength=self.num_codewords) for slot in codes.unbind(dim=1)]
        bits = sum(float(entropy(slot)) for slot in counts)
        rows, columns = codes.shape[-2:]
        height, width = image_size or (rows * self.config.patch_size, columns * self.config.patch_size)
        return bits * rows * columns / (height * width)

    # Fitting

    @torch.no_grad()
    def fit(
        self,
        images: Any,
        stride: int = 1,
        max_patches: int = 2**19,
        flip: bool = True,
        seed: int = 0,
        iterations: int = 100,
        threads: int | None = None,
        image_column: str = "image",
        progress: bool = True,
    ) -> ModelBasedVQCodec:
        """
        Fits all codebooks to a sample of the images' overlapping patches, by faiss, and sorts them. The codec changes only when all three channels are done.

        Args:
            images (`str`, `datasets.Dataset`, `torch.Tensor` or iterable): A folder, file or pattern as in [`load_image_dataset`]; a data set; images
                `(B, 3, H, W)` in [-1, 1] or of uint8; or any iterable of such tensors `(3, H, W)`, of pictures of any
                mode, or of arrays `(H, W, 3)` of uint8 or in [0, 1]. Floating-point tensors are what `encode` takes:
                that one without negative values were in [0, 1] is not guessed from image to image.
            stride (`int`, defaults to 1): Pixels between patches.
            max_patches (`int`, defaults to 524288): Patches in the sample; its memory is 3 · 4 · s² bytes each, and about as much three times over for a while.
            flip (`bool`, defaults to `True`): Whether each image is also read upside down, as in the paper.
            seed (`int`, defaults to 0): Seed of sample and codebooks.
            iterations (`int`, defaults to 100): Iterations of k-means, see [`fit_quantizer`].
            threads (`int`, *optional*): Threads of faiss. Defaults to what it has.
            image_column (`str`, defaults to `"image"`): Column of a data set.
            progress (`bool`, defaults to `True`): Whether to show a bar.

        Returns:
            [`ModelBasedVQCodec`]: This codec.

        Raises:
            ValueError: If there are no images, they are out of range, or there are fewer patches than codewords.
            ImportError: If faiss is missing (`pip install diffusers_lasers[codec]`).
        """
        tqdm = requires("tqdm.auto", "codec").tqdm
        source = tqdm(_images(images, image_column), desc="Patches", disable=not progress)
        patches, _ = sample_patches(source, self.config.patch_size, stride, max_patches, flip, seed)
        kind, stages = self.config.quantizer, []
        for book in self.codebooks.values():
            stages.append(book.shape[0] + (kind == "OPQ" and book.shape[0] > 1))
        results = []
        with tqdm(total=sum(stages), desc="Codebooks", disable=not progress) as bar:
            for number, (channel, book) in enumerate(self.codebooks.items()):
                bar.set_postfix(channel=channel)
                bits = book.shape[1].bit_length() - 1
                books, rotation = fit_quantizer(
                    patches[number].numpy(),
                    kind,
                    book.shape[0],
                    bits,
                    seed,
                    iterations,
                    threads,
                    lambda _: bar.update(),
                )
                results.append((torch.from_numpy(books), rotation))
        for channel, (books, rotation) in zip(_CHANNELS, results):
            getattr(self, f"codebooks_{channel}").copy_(books)
            if rotation is not None:
                getattr(self, f"rotation_{channel}").copy_(torch.from_numpy(rotation))
        self.fitted.fill_(True)
        return self.reorder()

    @torch.no_grad()
    def reorder(self, kind: str = "pca", generator: torch.Generator | None = None) -> ModelBasedVQCodec:
        """
        Sorts each sub-codebook (section 3.2.1). The images that the codec can make stay the same, codes made before do not name them any more.

        Args:
            kind (`str`, defaults to `"pca"`): An order of [`codebook_order`]; `"pca"` is the paper's and what `fit` gives.
            generator (`torch.Generator`, *optional*): Source of randomness of `"random"`.

        Returns:
            [`ModelBasedVQCodec`]: This codec.

        Raises:
            ValueError: If the codec is not fitted or there is no such order.
        """
        self._check_fitted()
        for books in self.codebooks.values():
            books.copy_(torch.stack([book[codebook_order(book, kind, generator)] for book in books.float()]))
        return self

    def _check_fitted(self) -> None:
        """
        Raises a `ValueError` where a channel is not fitted; not in a compiled graph, which reading a tensor would
        break.
        """
        if not self._ready and not torch.compiler.is_compiling():
            missing = [channel for channel, done in zip(_CHANNELS, self.fitted.tolist()) if not done]
            if missing:
                what = "not fitted" if len(missing) == 3 else f"only fitted in part, {' and '.join(missing)} missing"
                raise ValueError(f"This {self.notation} codec is {what}: call `fit`, or load one that is.")
            self._ready = True

    # Coding

    def _groups(self) -> list[tuple[int, tuple[str, ...]]]:
        """Channels that are searched at once, each group with its first one's number: those after each other with codebooks of one shape; RQ's stay alone."""
        shapes = [book.shape for book in self.codebooks.values()]
        alone = self.config.quantizer == "RQ"
        starts = [i for i in range(3) if i == 0 or alone or shapes[i] != shapes[i - 1]]
        return [(start, _CHANNELS[start:stop]) for start, stop in zip(starts, [*starts[1:], 3])]

    @apply_forward_hook
    @torch.no_grad()
    def encode(
        self, pixel_values: torch.Tensor, return_dict: bool = True
    ) -> ModelBasedVQCodecOutput | tuple[torch.Tensor, tuple[int, int]]:
        """
        Codes images, in float32 whatever the dtype of images and codec.

        Args:
            pixel_values (`torch.Tensor` of shape `(B, 3, H, W)`): RGB in [-1, 1]; of any size, its edge is repeated up to whole patches.
            return_dict (`bool`, defaults to `True`): Whether to return an output class instead of a tuple.

        Returns:
            [`ModelBasedVQCodecOutput`] or `tuple`: The codes `(B, c̄, ⌈H/s⌉, ⌈W/s⌉)` and the images' size.

        Raises:
            ValueError: If there are not three channels, or, outside compiled graphs, the codec is not fitted or, on
                the CPU, a value is not finite or out of range.
        """
        self._check_fitted()
        if pixel_values.ndim != 4 or pixel_values.shape[1] != 3 or not pixel_values.is_floating_point():
            raise ValueError(
                "`pixel_values` must be floating point of shape (batch, 3, height, width), got "
                f"{pixel_values.dtype} of shape {tuple(pixel_values.shape)}."
            )
        if _may_look(pixel_values):
            low, high = pixel_values.aminmax()
            if not (low >= -_LARGEST and high <= _LARGEST):
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
            ValueError: If codes are no such indices, or the size does not fit; outside compiled graphs, also if the
                codec is not fitted or, on the CPU, an index is out of range.
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
        Images of distributions over codewords: each slot decodes to its expected codeword (eq 21). Differentiable, and equal to `decode` for one-hot
        distributions.

        Args:
            probabilities (`torch.Tensor` of shape `(B, c̄, |C|, h, w)`): Distributions; entries beyond a smaller codebook are not read.
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
                f"`probabilities` must have shape (batch, {expected[0]}, {expected[1]}, h, w), got {tuple(probabilities.shape)}."
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

    # Codes as numbers and as bytes

    def _image_size(self, grid: tuple[int, int], image_size: tuple[int, int] | None) -> tuple[int, int]:
        """The given size, or that of whole patches where it is `None`, if it is one that `grid` patches cover."""
        side = self.config.patch_size
        size = (grid[0] * side, grid[1] * side) if image_size is None else image_size
        if (
            not isinstance(size, (tuple, list))
            or len(size) != 2
            or not all(isinstance(pixels, (int, torch.SymInt)) and pixels > 0 for pixels in size)
            or patch_grid(*size, side) != tuple(grid)
        ):
            raise ValueError(
                f"`image_size` must be one that {tuple(grid)} patches of {side} pixels cover, got {size!r}."
            )
        return tuple(size)

    def _check_codes(self, codes: torch.Tensor) -> None:
        slots = len(self.slot_bits)
        fitting = torch.is_tensor(codes) and codes.ndim == 4 and codes.shape[1] == slots and min(codes.shape[2:]) > 0
        if not fitting or codes.dtype != torch.int64:
            raise ValueError(f"`codes` must be int64 of shape (batch, {slots}, h, w), got {checks.described(codes)}.")
        if _may_look(codes):
            limits = 2 ** torch.tensor(self.slot_bits).view(1, -1, 1, 1)
            if bool(((codes < 0) | (codes >= limits)).any()):
                raise ValueError(
                    f"`codes` must be from 0 to 2^bits − 1 with bits {self.slot_bits}, got {int(codes.min())} to {int(codes.max())}."
                )

    def _last(self, like: torch.Tensor) -> torch.Tensor:
        return (2 ** torch.tensor(self.slot_bits, device=like.device) - 1).view(1, -1, 1, 1)

    def codes_to_latents(self, codes: torch.Tensor) -> torch.Tensor:
        """
        Indices as numbers in [-1, 1], the space of the continuous diffusion (section 3.2.1).

        Args:
            codes (`torch.Tensor` of shape `(B, c̄, h, w)`): Indices.

        Returns:
            `torch.Tensor` of shape `(B, c̄, h, w)`: 2 i / (|C| − 1) − 1 for each slot's |C|, float32.
        """
        self._check_codes(codes)
        return 2 * codes.float() / self._last(codes) - 1

    def latents_to_codes(self, latents: torch.Tensor) -> torch.Tensor:
        """
        The nearest indices; the inverse of [`codes_to_latents`]. Values beyond [-1, 1] get the first or last index.

        Args:
            latents (`torch.Tensor` of shape `(B, c̄, h, w)`): Numbers.

        Returns:
            `torch.Tensor` of shape `(B, c̄, h, w)`: Indices, int64.
        """
        last = self._last(latents)
        return torch.minimum(((latents.float() + 1) / 2 * last).round().clamp_min(0).long(), last)

    def _fingerprint(self) -> int:
        """32 bits of all that decoding reads. Weights count in half precision, so that a half-precision copy reads the same files."""
        facts = (self.notation, self.config.patch_size, self.slot_bits)
        return fingerprint(
            facts, {name: value.half() for name, value in self.state_dict().items() if name != "fitted"}
        )

    def encode_to_code(self, images: torch.Tensor) -> IndexCode:
        """
        The code of images, as a value: the same indices as of `encode`, slots last.

        Args:
            images (`torch.Tensor` of shape `(B, 3, H, W)`): RGB in [-1, 1].

        Returns:
            [`IndexCode`]: Indices `(B, h, w, c̄)` with the images' size; its latents are patches.

        Raises:
            ValueError: As `encode`.
        """
        output = self.encode(images)
        return self._code(output.codes, output.image_size)

    def decode_from_code(self, code: IndexCode, return_dict: bool = True) -> DecoderOutput | tuple[torch.Tensor]:
        """
        Images of a code, see `decode`.

        Args:
            code ([`IndexCode`]): A code of this codec.
            return_dict (`bool`, defaults to `True`): Whether to return an output class instead of a tuple.

        Returns:
            `DecoderOutput` or `tuple`: Images `(B, 3, H, W)` of the code's `image_size`, or of whole patches.

        Raises:
            ValueError: As `decode`, and if it is no code of this codec.
        """
        self._check_code(code)
        return self.decode(code.indices.permute(0, 3, 1, 2).contiguous(), code.image_size, return_dict)

    def _code(self, codes: torch.Tensor, image_size: tuple[int, int]) -> IndexCode:
        return IndexCode(codes.permute(0, 2, 3, 1).contiguous(), self.levels, tuple(codes.shape[-2:]), image_size)

    def _check_code(self, code: IndexCode) -> None:
        check_index(code, self.levels, nested=False, wanted=f"slots of levels {self.levels}")
        check_values(code, code.latent_size)

    def pack(self, code: IndexCode | torch.Tensor, image_size: tuple[int, int] | None = None) -> bytes:
        """
        A code as bytes: a header of 37, that of all codes ([`coding.pack_container`]), and exactly the nominal bits.

        Args:
            code ([`IndexCode`], or `torch.Tensor` of shape `(B, c̄, h, w)`): A code, or the indices of `encode`.
            image_size (`tuple[int, int]`, *optional*): Height and width of the images. Defaults to the code's, or to
                whole patches.

        Returns:
            `bytes`: What [`unpack`] reads.

        Raises:
            ValueError: If the code or the size do not fit.
        """
        if not is_code(code):
            self._check_codes(code)
            code = self._code(code, self._image_size(tuple(code.shape[-2:]), image_size))
        self._check_code(code)
        size = self._image_size(code.grid, image_size or code.image_size)
        payload = pack_indices(code.indices.flatten(0, 2), self.slot_bits)
        header = CodeHeader("patch", self._fingerprint(), len(code), code.grid, size, code.slots)
        return pack_container(header, payload)

    def unpack(self, data: bytes, max_pixels: int | None = None) -> IndexCode:
        """
        The code of bytes.

        Args:
            data (`bytes`): What [`pack`] gave, of this codec: same configuration, same codebooks. It may come from
                anybody: sizes are held against its length before memory is taken.
            max_pixels (`int`, *optional*): Most pixels of all images together. Defaults to 2²⁸.

        Returns:
            [`IndexCode`]: The code, on the codec's device.

        Raises:
            ValueError: If the bytes are cut off, changed, of another codec or format, no code of this codec, or have
                more pixels.
        """
        header, payload = unpack_container(data)
        name = f"{self.notation} codec of patches of {self.config.patch_size}"
        if header.kind != "patch":
            raise ValueError("`data` must be packed codes of a ModelBasedVQCodec, it holds those of a bottleneck.")
        if header.fingerprint != self._fingerprint():
            raise ValueError(f"`data` must be packed by this {name}, it is of another.")
        size, grid, slots = header.image_size, header.latent_size, len(self.slot_bits)
        if header.slots != slots or size is None or patch_grid(*size, self.config.patch_size) != grid:
            raise ValueError(
                f"`data` must have {slots} slots and as many patches as its image needs, its header names "
                f"{header.slots}, and {grid} for {size}."
            )
        padded = tuple(side * self.config.patch_size for side in grid)
        check_sites(header.batch, padded, _MAX_PIXELS if max_pixels is None else max_pixels, "max_pixels")
        indices = unpack_indices(payload, header.batch * grid[0] * grid[1], self.slot_bits)
        return IndexCode(indices.unflatten(0, (header.batch, *grid)), self.levels, grid, size).to(self.device)


def _may_look(values: torch.Tensor) -> bool:
    """Whether a check may read values: where nothing has to wait for them, and no compiled graph would break."""
    return values.device.type == "cpu" and values.numel() > 0 and not torch.compiler.is_compiling()


def _images(images: Any, column: str) -> Iterable[torch.Tensor]:
    """Images `(3, H, W)` in [-1, 1] from whatever `fit` takes."""
    if isinstance(images, Image.Image):
        images = [images]
    elif isinstance(images, str) or hasattr(images, "__fspath__"):
        images = load_image_dataset(train_data_dir=str(images), image_column=column)
    elif hasattr(images, "column_names"):
        images = (row[column] for row in undecoded(images, column))  # decoded below, as all images are

    def convert() -> Iterator[torch.Tensor]:
        for index, image in enumerate(images):
            if not torch.is_tensor(image):
                image = image if isinstance(image, np.ndarray) else to_rgb(image, f"image {index}")
                image = preprocess_images(image, name="images", signed=False)[0]
            elif image.dtype == torch.uint8:
                image = preprocess_images(image, name="images")[0]
            if image.ndim != 3 or image.shape[0] != 3 or not image.is_floating_point() or not image.numel():
                raise ValueError(
                    f"`images` must hold tensors (3, H, W) in [-1, 1], got {image.dtype} of shape {tuple(image.shape)}."
                )
            low, high = image.aminmax()
            if not (low >= -_LARGEST and high <= _LARGEST):
                raise ValueError(f"`images` must lie in [-1, 1], got {low.item():.4g} to {high.item():.4g}.")
            yield image.cpu()

    return convert()
