r"""The codebooks of a patch codec: their fit by faiss, their order and their pictures (Scribano et al., 2023, 3.2.1).

They are buffers whose shapes follow from the configuration, so that a codec that is not fitted can be built, saved and
loaded. Using them takes torch alone.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch

from ...functional.images.color import ycbcr_to_rgb
from ...functional.quantisers.ordering import codebook_order, score_order
from ...learning.codebooks import fit_quantizer
from ...learning.patch_sampling import sample_patches
from ...utils import config_checks as checks
from ...utils.import_utils import requires
from ...visualization import atom_tiles
from ..bottlenecks.rate_tables import RATE_WEIGHT
from .fitting_images import fitting_images


if TYPE_CHECKING:
    from PIL import Image

CHANNELS = ("y", "cb", "cr")


class PatchCodebooks:
    """
    Base of [`ModelBasedVQCodec`], which registers the buffers: for each channel `codebooks_*` `(slots, K, features)`
    and, of OPQ with several slots, `rotation_*` `(s², s²)`; and `fitted` `(3,)`.
    """

    _ready = False  # whether `fitted` was found to hold in all channels

    @property
    def notation(self) -> str:
        """The paper's name of the codec."""
        return f"{self.config.quantizer}-{{{'-'.join(map(str, self.config.bits))}}}"

    @property
    def codebooks(self) -> dict[str, torch.Tensor]:
        """Sub-codebooks `(slots, K, features)` of each channel: `"y"`, `"cb"` and `"cr"`."""
        return {channel: getattr(self, f"codebooks_{channel}") for channel in CHANNELS}

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
    def compression_ratio(self) -> float:
        """Bits of a patch of 8-bit RGB over those of its code (eq 23)."""
        return 24 * self.config.patch_size**2 / sum(self.config.bits)

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
    ) -> PatchCodebooks:
        """
        Fits all codebooks to a sample of the images' overlapping patches, by faiss, and sorts them. The codec changes
        only when all three channels are done.

        Args:
            images (`str`, `datasets.Dataset`, `torch.Tensor` or iterable): A folder, file or pattern as in
                [`load_image_dataset`]; a data set; images `(B, 3, H, W)` in [-1, 1] or of uint8; or any iterable of
                such tensors `(3, H, W)`, of pictures of any mode, or of arrays `(H, W, 3)` of uint8 or in [0, 1].
                Floating-point tensors are always read as in [-1, 1], also those without negative values.
            stride (`int`, defaults to 1): Pixels between patches.
            max_patches (`int`, defaults to 524288): Patches in the sample; its memory is 3 · 4 · s² bytes each, and
                about as much three times over for a while.
            flip (`bool`, defaults to `True`): Whether each image is also read upside down, as in the paper.
            seed (`int`, defaults to 0): Seed of sample and codebooks.
            iterations (`int`, defaults to 100): Iterations of k-means, see [`fit_quantizer`].
            threads (`int`, *optional*): Threads of faiss. Defaults to what it has.
            image_column (`str`, defaults to `"image"`): Column of a data set.
            progress (`bool`, defaults to `True`): Whether to show a bar.

        Returns:
            The codec itself.

        Raises:
            ValueError: If there are no images, they are out of range, or there are fewer patches than codewords.
            ImportError: If faiss is missing (`pip install diffusers_lasers[codec]`).
        """
        tqdm = requires("tqdm.auto", "codec").tqdm
        source = tqdm(fitting_images(images, image_column), desc="Patches", disable=not progress)
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
        for channel, (books, rotation) in zip(CHANNELS, results):
            getattr(self, f"codebooks_{channel}").copy_(books)
            if rotation is not None:
                getattr(self, f"rotation_{channel}").copy_(torch.from_numpy(rotation))
        self.fitted.fill_(True)
        return self.reorder()

    @torch.no_grad()
    def reorder(self, kind: str = "pca", generator: torch.Generator | None = None) -> PatchCodebooks:
        """
        Sorts each sub-codebook (section 3.2.1). The images that the codec can make stay the same, codes made before do
        not name them any more.

        Args:
            kind (`str`, defaults to `"pca"`): An order of [`codebook_order`]; `"pca"` is the paper's and what `fit`
                gives.
            generator (`torch.Generator`, *optional*): Source of randomness of `"random"`.

        Returns:
            The codec itself.

        Raises:
            ValueError: If the codec is not fitted or there is no such order.
        """
        self._check_fitted()
        for books in self.codebooks.values():
            books.copy_(torch.stack([book[codebook_order(book, kind, generator)] for book in books.float()]))
        return self

    def _costs(self, rate_weight: float | None, prior: Any) -> dict[str, torch.Tensor] | None:
        """Costs `(slots, K)` of the codewords of each channel, in units of its squared error; `None`: no costs."""
        checks.check_fields({"rate_weight": checks.Optional(RATE_WEIGHT)}, {"rate_weight": rate_weight})
        if not rate_weight:
            return None
        if prior is None:
            raise ValueError(f"`prior` must be given with a `rate_weight` above 0, got `rate_weight` {rate_weight}.")
        bits, found, first = prior.symbol_bits(self).symbols, {}, 0
        gains = ycbcr_to_rgb(torch.eye(3)[:, :, None]).square().sum(dim=(0, 2)).tolist()
        for (channel, book), gain in zip(self.codebooks.items(), gains):
            slots, codewords, _ = book.shape
            found[channel] = 3 * rate_weight / gain * bits[first : first + slots, :codewords]
            first += slots
        return found

    def _check_fitted(self) -> None:
        """
        Raises a `ValueError` where a channel is not fitted; not in a compiled graph, which reading a tensor would
        break.
        """
        if not self._ready and not torch.compiler.is_compiling():
            missing = [channel for channel, done in zip(CHANNELS, self.fitted.tolist()) if not done]
            if missing:
                what = "not fitted" if len(missing) == 3 else f"only fitted in part, {' and '.join(missing)} missing"
                raise ValueError(f"This {self.notation} codec is {what}: call `fit`, or load one that is.")
            self._ready = True

    def codeword_patches(self) -> dict[str, torch.Tensor]:
        """
        What each codeword adds to a patch, `(s², slots · K)` for each channel: the pieces of product quantisers stand
        in their places, and are turned back.
        """
        features, patches = self.config.patch_size**2, {}
        for channel, book in self.codebooks.items():
            slots, codewords, width = book.shape
            full = book.new_zeros(slots, codewords, features, dtype=torch.float32)
            for slot in range(slots):
                start = 0 if width == features else slot * width
                full[slot, :, start : start + width] = book[slot]
            rotation = self.rotation(channel)
            full = full if rotation is None else full @ rotation
            patches[channel] = full.flatten(0, 1).t()
        return patches

    def summary(self) -> dict[str, Any]:
        """Notation, slots, rate and order, as a dictionary that JSON can hold; see [`Coder.summary`]."""
        side, bits = self.config.patch_size, sum(self.config.bits)
        facts = {
            "notation": self.notation,
            "fitted": bool(self.fitted.all()),
            "pixels_per_patch": f"{side} × {side}",
            "slots": len(self.slot_bits),
            "bits_of_slots": list(self.slot_bits),
            "bits_per_patch": bits,
            "bits_per_pixel": bits / side**2,
            "compression_ratio": self.compression_ratio,
        }
        if facts["fitted"]:
            books = [book.float() for book in self.codebooks.values()]
            facts["order"] = _order([book for stack in books for book in stack])
            scores = [score_order(stack[0]).neighbour_distance for stack in books if len(stack[0]) > 1]
            facts["neighbour_distance"] = [score for score in scores if math.isfinite(score)]
        return {"codec": facts}

    def pictures(self, method: str = "pca") -> dict[str, Image.Image]:
        """The codewords of each channel as patches; see [`Coder.pictures`]."""
        tile = (self.config.patch_size, self.config.patch_size)
        patches = self.codeword_patches().items()
        return {f"codewords_{channel}.png": atom_tiles(words, tile) for channel, words in patches}


def _order(books: list[torch.Tensor]) -> str:
    """Which of the orders that need no search all sub-codebooks stand in."""
    for kind in ("pca", "norm"):
        if all(torch.equal(codebook_order(book, kind), torch.arange(len(book), device=book.device)) for book in books):
            return kind
    return "another"
