"""The codes of many images, made while they are read: what a prior is fitted to."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from ...coding import Code


@dataclass(frozen=True)
class ImageCodes:
    """
    Codes of batches of images. They can be read as often as the batches, and are made anew each time.

    Args:
        model ([`AutoencoderDL`] or [`ModelBasedVQCodec`]): The model.
        batches (`Iterable[torch.Tensor]`): Images `(B, 3, H, W)` in [-1, 1].
    """

    model: Any
    batches: Iterable[torch.Tensor]

    def __iter__(self) -> Iterator[Code]:
        for images in self.batches:
            with torch.no_grad():
                yield self.model.encode_to_code(images.to(self.model.device))
