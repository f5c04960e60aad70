"""The codes of a patch codec: as values, as numbers for continuous diffusion, and as bytes; and what is refused.

A code has two layouts. [`IndexCode`] has slots last, as all codes; the tensors of `encode` and `decode` have them
first, `(B, c̄, h, w)`, as networks take them.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers.models.autoencoders.vae import DecoderOutput

from ...coding import IndexCode
from ...coding.bit_fields import pack_indices, unpack_indices
from ...coding.checks import check_index, check_values, is_code
from ...coding.container import CodeHeader, check_sites, fingerprint, pack_container, unpack_container
from ...functional.images.patch_signals import patch_grid
from ...functional.operands import may_look
from ...functional.rates import entropy
from ...utils.config_checks import described
from ..image_coder import ImageCoder


_MAX_PIXELS = 2**28  # in an unpacked code: 16384 × 16384, above what Pillow opens


class PatchCodes(ImageCoder):
    """Base of [`ModelBasedVQCodec`], whose `encode`, `decode` and codebooks it uses."""

    @property
    def downsampling_factor(self) -> int:
        """Side s of a patch, in pixels."""
        return self.config.patch_size

    @property
    def pixels_per_site(self) -> int:
        """Side s of a patch, in pixels."""
        return self.config.patch_size

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
            raise ValueError(f"`codes` must be int64 of shape (batch, {slots}, h, w), got {described(codes)}.")
        if may_look(codes):
            limits = 2 ** torch.tensor(self.slot_bits).view(1, -1, 1, 1)
            if bool(((codes < 0) | (codes >= limits)).any()):
                raise ValueError(
                    f"`codes` must be from 0 to 2^bits − 1 with bits {self.slot_bits}, got {int(codes.min())} to "
                    f"{int(codes.max())}."
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
        """
        32 bits of all that decoding reads. Weights count in half precision, so that a half-precision copy reads the
        same files.
        """
        facts = (self.notation, self.config.patch_size, self.slot_bits)
        return fingerprint(
            facts, {name: value.half() for name, value in self.state_dict().items() if name != "fitted"}
        )

    def encode_to_code(self, images: torch.Tensor, rate_weight: float | None = None, prior: Any = None) -> IndexCode:
        """
        The code of images, as a value: the same indices as of `encode`, slots last.

        Args:
            images (`torch.Tensor` of shape `(B, 3, H, W)`): RGB in [-1, 1].
            rate_weight (`float`, *optional*): λ, the loss of one bit a pixel; see `encode`.
            prior ([`FactorizedPrior`], *optional*): The codec's prior, whose bits count.

        Returns:
            [`IndexCode`]: Indices `(B, h, w, c̄)` with the images' size; its latents are patches.

        Raises:
            ValueError: As `encode`.
        """
        output = self.encode(images, rate_weight=rate_weight, prior=prior)
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
            data (`bytes`): What [`pack`] gave, of this codec: same configuration, same codebooks. It is
                not trusted: sizes are compared with its length before memory is taken.
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
