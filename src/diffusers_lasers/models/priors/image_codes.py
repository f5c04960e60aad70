"""The codes of many images, made while they are read: what a prior is fitted to.

With a weight of bits the codes depend on the prior, and the prior on the codes. So both are made in turns, as in the
training of entropy-constrained quantisers (Chou, Lookabaugh & Gray, 1989).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from ...coding import Code
from .factorized_prior import FactorizedPrior


_ROUNDS = 4  # of coding with a weight of bits and counting


@dataclass(frozen=True)
class ImageCodes:
    """
    Codes of batches of images. They can be read as often as the batches, and are made anew each time.

    Args:
        model ([`AutoencoderDL`] or [`ModelBasedVQCodec`]): The model.
        batches (`Iterable[torch.Tensor]`): Images `(B, 3, H, W)` in [-1, 1].
        rate_weight (`float`, *optional*): λ of the codes. Defaults to `None`: as the model was trained.
        prior ([`FactorizedPrior`], *optional*): Whose bits count where λ is given; it may be the one that is fitted.
    """

    model: Any
    batches: Iterable[torch.Tensor]
    rate_weight: float | None = None
    prior: FactorizedPrior | None = None

    def __iter__(self) -> Iterator[Code]:
        for images in self.batches:
            with torch.no_grad():
                yield self.model.encode_to_code(images.to(self.model.device), self.rate_weight, self.prior)


def fit_prior(
    model: Any, batches: Iterable[torch.Tensor], rate_weight: float | None = None, **arguments: Any
) -> FactorizedPrior:
    """
    A prior of the codes of images.

    Args:
        model ([`AutoencoderDL`] or [`ModelBasedVQCodec`]): The model.
        batches (`Iterable[torch.Tensor]`): Images `(B, 3, H, W)` in [-1, 1], which can be read again.
        rate_weight (`float`, *optional*): λ of the codes that it is for. They are made by the prior's own bits, four
            times in turns. Defaults to `None`: codes as the model was trained to make them.
        **arguments: Of [`FactorizedPrior.from_coder`].

    Returns:
        [`FactorizedPrior`]: The fitted prior, on the device of the model.
    """
    prior = FactorizedPrior.from_coder(model, **arguments).to(model.device).fit(ImageCodes(model, batches))
    for _ in range(_ROUNDS if rate_weight else 0):
        prior.fit(ImageCodes(model, batches, rate_weight, prior))
    return prior
