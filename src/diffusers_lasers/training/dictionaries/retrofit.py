r"""Bottlenecks for the latents of an autoencoder that stays as it is (LASERS, 2024, section 12.3).

The autoencoder reads every image once; its latents, on the denoiser's scale, are kept and the bottleneck's own `fit`
learns from them: online dictionary learning, faiss' k-means, gradients through FSQ's rounding, or statistics. The mean
of each channel is taken out first, since atoms and axes pass through the origin.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from diffusers import ModelMixin
from tqdm.auto import tqdm

from ...models.autoencoders.diffusers_latents import encode_latents, for_bottleneck
from ...models.bottlenecks import Bottleneck
from ..data.image_dataset import ImageDataset


__all__ = ["fit_bottleneck"]


def _batches(images: Any, batch_size: int) -> tuple[Iterable[torch.Tensor], int | None]:
    """Batches of images in [−1, 1], and how many there are, where that is known."""
    if isinstance(images, torch.Tensor):
        return images.split(batch_size), math.ceil(len(images) / batch_size)
    if isinstance(images, ImageDataset):
        return images.batches(batch_size), math.ceil(len(images) / batch_size)
    return images, len(images) if isinstance(images, Sequence) else None


def _check(bottleneck: Bottleneck, normalize: str) -> None:
    if not hasattr(bottleneck, "fit"):
        raise ValueError(f"`bottleneck` must have a `fit` method, got {type(bottleneck).__name__}.")
    if normalize not in ("mean", "channel", "none"):
        raise ValueError(f"`normalize` must be 'mean', 'channel' or 'none', got {normalize!r}.")


@torch.no_grad()
def collect_latents(
    autoencoder: ModelMixin,
    images: torch.Tensor | ImageDataset | Iterable[torch.Tensor],
    batch_size: int = 16,
    progress: bool = True,
) -> list[torch.Tensor]:
    """
    Latents of images on the denoiser's scale, in memory. The autoencoder's weights and training modes are left as they
    are; it runs in evaluation mode.

    Args:
        autoencoder (`ModelMixin`): Any autoencoder of images of diffusers, or [`AutoencoderDL`].
        images (`torch.Tensor` of shape `(N, 3, H, W)`, [`ImageDataset`] or an iterable of tensors `(B, 3, H, W)`):
            Images in [−1, 1]; the items of an iterable may differ in size.
        batch_size (`int`, defaults to 16): Images read at a time, where `images` is no iterable.
        progress (`bool`, defaults to `True`): Whether to show a bar.

    Returns:
        `list[torch.Tensor]`: Latents `(B, L, h, w)`, of video `(B, L, t, h, w)`, of each batch, float32, on the CPU.

    Raises:
        ValueError: If there are no images, or the autoencoder does not give latents, or not finite ones.
    """
    if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
        raise ValueError(f"`batch_size` must be a positive integer, got {batch_size!r}.")
    batches, total = _batches(images, batch_size)
    parameter = next(autoencoder.parameters())
    training, found = [module for module in autoencoder.modules() if module.training], []
    autoencoder.eval()
    try:
        for batch in tqdm(batches, total=total, desc="Latents", disable=not progress):
            latents = encode_latents(autoencoder, batch.to(parameter.device, parameter.dtype)).float().cpu()
            if not torch.isfinite(latents).all():
                raise ValueError("`autoencoder` must give finite latents, got NaN or infinity.")
            found.append(latents)
    finally:
        for module in training:
            module.training = True
    if not any(len(latents) for latents in found):
        raise ValueError("`images` must hold at least one image, got none.")
    return found


@torch.no_grad()
def fit_bottleneck(
    autoencoder: ModelMixin,
    images: torch.Tensor | ImageDataset | Iterable[torch.Tensor],
    bottleneck: Bottleneck,
    batch_size: int = 16,
    normalize: str = "mean",
    progress: bool = True,
    **fit_arguments: Any,
) -> Bottleneck:
    """
    Learns a bottleneck for the latents of a frozen autoencoder.

    Args:
        autoencoder (`ModelMixin`): Any autoencoder of images of diffusers, or [`AutoencoderDL`]; it is not changed.
        images (`torch.Tensor`, [`ImageDataset`] or an iterable of tensors): Images in [−1, 1], see [`collect_latents`].
        bottleneck ([`Bottleneck`]): What to fit, in place; one with a `fit` method.
        batch_size (`int`, defaults to 16): Images that the autoencoder reads at a time.
        normalize (`str`, defaults to `"mean"`): `"mean"` takes each channel's mean out and divides all by one number,
            so that squared errors keep their proportions; `"channel"` divides each channel by its standard deviation;
            `"none"` leaves latents as they are.
        progress (`bool`, defaults to `True`): Whether to show bars.
        **fit_arguments: Arguments of the bottleneck's `fit`, e.g. `passes` of [`DictionaryBottleneck`] or `seed`.

    Returns:
        [`Bottleneck`]: The bottleneck, in evaluation mode.

    Raises:
        ValueError: If the bottleneck has nothing to fit, `normalize` is unknown, or the latents do not fit it.
    """
    _check(bottleneck, normalize)
    latents = collect_latents(autoencoder, images, batch_size, progress)
    latents = [for_bottleneck(autoencoder, item, bottleneck.config.latent_channels) for item in latents]
    return fit_to_latents(bottleneck, latents, normalize, progress, **fit_arguments)


@torch.no_grad()
def fit_to_latents(
    bottleneck: Bottleneck,
    latents: list[torch.Tensor],
    normalize: str = "mean",
    progress: bool = True,
    **fit_arguments: Any,
) -> Bottleneck:
    """
    Learns a bottleneck from latents: the second half of [`fit_bottleneck`], for latents that serve several bottlenecks.

    Args:
        bottleneck ([`Bottleneck`]): What to fit, in place; one with a `fit` method.
        latents (`list[torch.Tensor]` of shapes `(B, L, h, w)`): Latents, as [`collect_latents`] gives them.
        normalize (`str`, defaults to `"mean"`): See [`fit_bottleneck`].
        progress (`bool`, defaults to `True`): Whether to show bars.
        **fit_arguments: Arguments of the bottleneck's `fit`.

    Returns:
        [`Bottleneck`]: The bottleneck, in evaluation mode.

    Raises:
        ValueError: If the bottleneck has nothing to fit, `normalize` is unknown, or the latents do not fit it.
    """
    _check(bottleneck, normalize)
    if len({item.shape[1:] for item in latents}) == 1:
        latents = [torch.cat(latents)]  # minibatches are then drawn from all of them
    if normalize != "none":
        count = sum(item[:, 0].numel() for item in latents)
        mean = sum(item.double().sum(dim=(0, 2, 3)) for item in latents) / count
        variance = sum((item.double() - mean[:, None, None]).square().sum(dim=(0, 2, 3)) for item in latents) / count
        scale = (variance if normalize == "channel" else variance.mean()).sqrt()
        bottleneck.set_latent_statistics(mean.float(), torch.where(scale > 0, scale, 1.0).float())
    bottleneck.fit(latents[0] if len(latents) == 1 else latents, progress=progress, **fit_arguments)
    return bottleneck.eval()
