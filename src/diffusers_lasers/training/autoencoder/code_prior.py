"""The prior of a trained autoencoder's codes, fitted at the end of its training and saved beside it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from accelerate import Accelerator

from ...models.autoencoders.autoencoder_dl import AutoencoderDL
from ...models.priors import FactorizedPrior
from ...models.priors.image_codes import fit_prior
from ..data.training_images import TrainingImages


FOLDER = "prior"
_SITES = 2**18  # whose codes the tables are fitted to, about


@dataclass(frozen=True)
class _Share:
    """This process's share of the first batches of a training, as often as wanted."""

    images: TrainingImages
    count: int  # batches of all processes, as many for each
    change: Callable[[torch.Tensor], torch.Tensor]

    def __iter__(self) -> Iterator[torch.Tensor]:
        accelerator, streamed = self.images.accelerator, self.images.args.streaming
        for number, batch in enumerate(self.images.first_batches(self.count)):
            # a stream is shared out already
            if streamed or number % accelerator.num_processes == accelerator.process_index:
                yield self.change(batch.to(accelerator.device))


def fit_code_prior(
    model: AutoencoderDL,
    accelerator: Accelerator,
    images: TrainingImages,
    change: Callable[[torch.Tensor], torch.Tensor],
) -> FactorizedPrior | None:
    """
    A prior fitted to codes of training images; all processes have to call it, and get the same.

    Args:
        model ([`AutoencoderDL`]): The model that is saved.
        accelerator (`accelerate.Accelerator`): The run's.
        images ([`TrainingImages`]): The run's images.
        change (`Callable`): What happens to images `(B, 3, H, W)` before they are coded: the degradation of a task.

    Returns:
        [`FactorizedPrior`] or `None`: The prior; `None` for a model without codes.
    """
    if not model.levels:
        return None
    args = images.args
    sites = args.train_batch_size * math.ceil(args.resolution / model.pixels_per_site) ** 2
    count = math.ceil(_SITES / sites)
    if not args.streaming:
        count = min(count, math.ceil(len(images.dataset) / args.train_batch_size))
    count = math.ceil(count / accelerator.num_processes) * accelerator.num_processes
    if args.streaming:
        count //= accelerator.num_processes
    return fit_prior(model, _Share(images, count, change))
