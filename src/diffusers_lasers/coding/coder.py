r"""The interface of whatever makes codes: autoencoders, bottlenecks and patch codecs.

An autoencoder, its bottleneck and a patch codec turn their input into a code and back, write it as bytes and say what
it costs. A code of n sites whose slots have alphabets of \(A_1, …, A_S\) symbols costs \(n \sum_s \log_2 A_s\) bits; a
dictionary's costs less for its supports, and has coefficients.
"""

from __future__ import annotations

import math
from typing import Any

import torch

from .code import Code


__all__ = ["Coder"]


class Coder:
    """
    Base of all that makes codes. A subclass has `levels`, `encode_to_code`, `decode_from_code`, `pack` and `unpack`.

    Attributes:
        levels (`tuple[int, ...]`): Size of the alphabet of each slot; empty where there is no code.
        ordered (`bool`): Whether the order of a site's slots is part of the code, or they are a set.
        numeric (`bool`): Whether symbols are cells of a number in ascending order.
        coefficient_bits (`int`, *optional*): Bits of a coefficient; `None` for float32, and where there are none.
        slot_scales (`torch.Tensor` of shape `(S,)`, *optional*): Half-widths of the quantiser of coefficients; `None`
            where there are none.
        site_side (`int`): Side of a site, in positions of a code's `latent_size`.
    """

    levels: tuple[int, ...] = ()
    ordered: bool = True
    numeric: bool = False
    coefficient_bits: int | None = None
    slot_scales: torch.Tensor | None = None
    site_side: int = 1

    @property
    def fingerprint(self) -> int:
        """32 bits of all that decoding reads, by which a file is known to be this model's."""
        return self.coder._fingerprint()

    def _fingerprint(self) -> int:
        raise NotImplementedError

    @property
    def coder(self) -> Coder:
        """What makes the codes: this; for an autoencoder, its bottleneck."""
        return self

    @property
    def bits_per_site(self) -> float:
        """Nominal bits of one site's code."""
        return self.site_bits(len(self.levels))

    def site_bits(self, slots: int) -> float:
        """
        Nominal bits of one site with its first `slots` slots.

        Args:
            slots (`int`): Slots a site.

        Returns:
            `float`: Bits.
        """
        return float(sum(math.log2(level) for level in self.levels[:slots]))

    def bits(self, code: Code) -> float:
        """
        Nominal bits of a code.

        Args:
            code ([`Code`]): A code of this model.

        Returns:
            `float`: Bits of all its images together.
        """
        return code.num_sites * self.coder.site_bits(code.slots)

    def encode_to_code(self, *inputs: Any) -> Code:
        """The code of a batch."""
        raise NotImplementedError

    def decode_from_code(self, code: Code) -> Any:
        """What `code` stands for."""
        raise NotImplementedError

    def pack(self, code: Code) -> bytes:
        """A code as bytes."""
        raise NotImplementedError

    def unpack(self, data: bytes) -> Code:
        """The code of bytes that [`pack`] gave."""
        raise NotImplementedError

    def summary(self) -> dict[str, Any]:
        """
        Facts on the model beyond its configuration, for a reader.

        Returns:
            `dict[str, Any]`: What JSON can hold, by name: numbers, words, lists and dictionaries of them. Empty where
            there is nothing to tell.
        """
        return {}

    def pictures(self, method: str = "pca") -> dict[str, Any]:
        """
        Pictures of what the symbols stand for.

        Args:
            method (`str`, defaults to `"pca"`): How atoms are laid out in a plane: `"pca"` or `"umap"`.

        Returns:
            `dict[str, PIL.Image.Image or matplotlib.figure.Figure]`: Pictures by file name; empty where there are no
            atoms and no codewords.

        Raises:
            ImportError: If matplotlib or umap-learn is missing and needed (extra `visualization`).
        """
        return {}
