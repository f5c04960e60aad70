r"""Image metrics that record their protocol: range, averaging and network are stored with the value.

Images are (B, 3, H, W) in [-1, 1]. uint8 images are converted first, v/127.5 − 1, since uint8 arithmetic would wrap.
The PSNRs in Table 1 of the 2023 paper were computed on wrapped uint8 differences and are 3.7 to 8.8 dB too high. Values
outside [-1, 1] are an error. Every metric is the mean over images of a per-image value. So it depends neither on the
batch size nor on the number of ranks:

    PSNR(x, y) = 10 log₁₀ (2² / MSE(x, y)),       SSIM(x, y) = mean of the SSIM map (Wang et al., 2004).

SSIM is computed on images moved to [0, 1], because its luminance term is not invariant to shifts. Only positions whose
11×11 window lies inside the image count, as in Wang's definition and in scikit-image. torchmetrics averages over the
mirrored border too, which changes the value of small images, and its window is not separated, which takes ten times as
long. Values are computed in float64.
"""

from __future__ import annotations

import hashlib
import math
from typing import Any

import torch

from ..functional.images.psnr import image_psnr, mean_squared_errors
from ..models.perceptual import PerceptualSimilarity
from ..utils.import_utils import requires
from .states import keep_apart


requires("torchmetrics", extra="metrics")

from torchmetrics import Metric  # noqa: E402


__all__ = ["LPIPS", "PSNR", "SSIM"]


def as_images(images: torch.Tensor, name: str = "images") -> torch.Tensor:
    """
    Converts uint8 images to floats in [-1, 1], and checks the range of float images.

    Args:
        images (`torch.Tensor` of shape `(B, 3, H, W)`): uint8 in 0…255, or floating point in [-1, 1].
        name (`str`, defaults to `"images"`): Name of the argument, for the error.

    Returns:
        `torch.Tensor` of shape `(B, 3, H, W)`: Images in [-1, 1], in float64 for float64 images, else in float32.

    Raises:
        ValueError: If the shape, the dtype or the range does not fit.
    """
    if images.ndim != 4 or images.shape[1] != 3:
        raise ValueError(f"`{name}` must be of shape (B, 3, H, W), got {tuple(images.shape)}.")
    if images.dtype == torch.uint8:
        return images.float() / 127.5 - 1
    if not images.is_floating_point():
        raise ValueError(f"`{name}` must be uint8 in 0…255 or floating point in [-1, 1], got {images.dtype}.")
    images = images.to(torch.promote_types(images.dtype, torch.float32))
    if images.numel() > 0:
        low, high = images.aminmax()
        if not (low >= -1 and high <= 1):  # also refuses NaN
            raise ValueError(f"`{name}` must lie in [-1, 1], got values from {low:.4g} to {high:.4g}.")
    return images


class ImagePairMetric(Metric):
    """
    The mean over images of a value for each pair of reconstruction and reference. Subclasses define `scores`.

    `update(reconstructions, references)` takes two batches `(B, 3, H, W)`, uint8 or floats in [-1, 1]. `compute()`
    returns a 0-dim float64 tensor, and `protocol()` tells how it was computed. Sums are float64 and summed over ranks.

    Args:
        kwargs: Passed on to `torchmetrics.Metric`.
    """

    full_state_update = False
    is_differentiable = False
    __jit_unused_properties__ = [*Metric.__jit_unused_properties__, "num_images"]

    def __init__(self, **kwargs: Any):
        super().__init__(**kwargs)
        keep_apart(self)
        name = type(self).__name__.lower()
        self._sum, self._count = f"{name}_sum", f"{name}_images"
        self.add_state(self._sum, torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state(self._count, torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    @property
    def num_images(self) -> torch.Tensor:
        """Number of images so far, 0-dim int64."""
        return getattr(self, self._count)

    def scores(self, reconstructions: torch.Tensor, references: torch.Tensor) -> torch.Tensor:
        """Values `(B,)` of two batches of floats in [-1, 1]."""
        raise NotImplementedError

    @torch.no_grad()
    def update(self, reconstructions: torch.Tensor, references: torch.Tensor) -> None:
        """
        Adds a batch of pairs.

        Args:
            reconstructions (`torch.Tensor` of shape `(B, 3, H, W)`): Reconstructions, uint8 or floats in [-1, 1].
            references (`torch.Tensor` of shape `(B, 3, H, W)`): Original images, uint8 or floats in [-1, 1].

        Raises:
            ValueError: If the two differ in shape, or have another shape, type or range.
        """
        reconstructions = as_images(reconstructions, "reconstructions")
        references = as_images(references, "references")
        if reconstructions.shape != references.shape:
            raise ValueError(
                f"`reconstructions` must have the shape of `references`, {tuple(references.shape)}, got "
                f"{tuple(reconstructions.shape)}."
            )
        if len(references) == 0:
            return
        scores = self.scores(reconstructions, references).double().sum()
        setattr(self, self._sum, getattr(self, self._sum) + scores.to(self.num_images.device))
        setattr(self, self._count, self.num_images + references.shape[0])

    def compute(self) -> torch.Tensor:
        """The mean over all images seen by all ranks; NaN without images."""
        return getattr(self, self._sum) / self.num_images

    def protocol(self) -> dict[str, Any]:
        """How the value was computed, for JSON."""
        return {"average": "mean over images of the per-image value", "data_range": [-1, 1], "n": int(self.num_images)}


class PSNR(ImagePairMetric):
    r"""
    Creates a peak signal-to-noise ratio in dB, for the range 2 of images in [-1, 1].

    Args:
        average (`str`, defaults to `"images"`): `"images"` is the mean of the images' PSNRs. It is usual for sets of
            images, and infinite if one image is reproduced exactly. `"dataset"` is the PSNR of the mean MSE over
            images. It is never higher, by Jensen's inequality.
        kwargs: Passed on to `torchmetrics.Metric`.

    Raises:
        ValueError: If `average` is neither of them.
    """

    higher_is_better = True

    def __init__(self, average: str = "images", **kwargs: Any):
        super().__init__(**kwargs)
        if average not in ("images", "dataset"):
            raise ValueError(f"`average` must be 'images' or 'dataset', got {average!r}.")
        self.average = average

    def scores(self, reconstructions: torch.Tensor, references: torch.Tensor) -> torch.Tensor:
        """PSNRs `(B,)`, or MSEs for `average="dataset"`."""
        of_each = mean_squared_errors if self.average == "dataset" else image_psnr
        return of_each(reconstructions.double(), references.double())

    def compute(self) -> torch.Tensor:
        """PSNR in dB."""
        mean = super().compute()
        return -10 * torch.log10(mean / 4) if self.average == "dataset" else mean

    def protocol(self) -> dict[str, Any]:
        """How the value was computed, for JSON."""
        card = super().protocol() | {"unit": "dB", "channels": "RGB, one MSE over all"}
        if self.average == "dataset":
            card["average"] = "PSNR of the mean over images of the MSE"
        return card


class SSIM(ImagePairMetric):
    r"""
    Creates a structural similarity (Wang, Bovik, Sheikh, Simoncelli, "Image quality assessment", IEEE TIP 2004).

    It has an 11×11 Gaussian window (σ = 1.5), K₁ = 0.01, K₂ = 0.03 and the population covariance, on images moved to
    [0, 1]. The value is the mean over channels and over the positions where the window lies inside the image. It equals
    scikit-image's `structural_similarity(gaussian_weights=True, sigma=1.5, use_sample_covariance=False)`. Images must
    be 11×11 or larger.
    """

    higher_is_better = True

    def scores(self, reconstructions: torch.Tensor, references: torch.Tensor) -> torch.Tensor:
        """SSIMs `(B,)`."""
        if min(references.shape[-2:]) < 11:
            raise ValueError(f"`references` must be at least 11×11 for SSIM, got {tuple(references.shape)}.")
        pairs = zip(reconstructions, references)  # one by one: the maps of an image stay in the cache
        return torch.stack([_similarity(a.double() / 2 + 0.5, b.double() / 2 + 0.5) for a, b in pairs])

    def protocol(self) -> dict[str, Any]:
        """How the value was computed, for JSON."""
        return super().protocol() | {
            "data_range": [0, 1],
            "window": "Gaussian 11×11, sigma 1.5, inside the image",
            "channels": "mean over RGB",
        }


def _similarity(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """SSIM of two images `(C, H, W)` in [0, 1]."""
    maps = torch.stack([first, second, first.square(), second.square(), first * second])
    weights = [math.exp(-0.5 * (offset / 1.5) ** 2) for offset in range(-5, 6)]
    for axis in (-1, -2):
        size = maps.shape[axis] - 10
        total = maps.narrow(axis, 0, size) * (weights[0] / sum(weights))
        for offset, weight in enumerate(weights[1:], 1):
            total.add_(maps.narrow(axis, offset, size), alpha=weight / sum(weights))
        maps = total
    mean_a, mean_b, square_a, square_b, product = maps
    means, power = mean_a * mean_b, mean_a.square() + mean_b.square()
    luminance = (2 * means + 0.01**2) / (power + 0.01**2)
    structure = (2 * (product - means) + 0.03**2) / (square_a + square_b - power + 0.03**2)
    return (luminance * structure).mean()


class LPIPS(ImagePairMetric):
    """
    Creates an LPIPS 0.1 distance with a [`PerceptualSimilarity`] network. Images are not resized.

    Args:
        network ([`PerceptualSimilarity`]): The network with its weights, e.g.
            `PerceptualSimilarity.from_weights("squeeze", folder)`.
        kwargs: Passed on to `torchmetrics.Metric`.
    """

    higher_is_better = False
    feature_network = "network"

    def __init__(self, network: PerceptualSimilarity, **kwargs: Any):
        super().__init__(**kwargs)
        self.network = network

    def scores(self, reconstructions: torch.Tensor, references: torch.Tensor) -> torch.Tensor:
        """Distances `(B,)`."""
        return self.network(reconstructions, references, check_range=True).distances

    def protocol(self) -> dict[str, Any]:
        """How the value was computed, for JSON. `weights_sha256` is the hash of the parameters in order of their
        names."""
        digest = hashlib.sha256()
        for name, value in sorted(self.network.state_dict().items()):
            digest.update(name.encode() + value.detach().float().cpu().contiguous().numpy().tobytes())
        return super().protocol() | {
            "version": "0.1",
            "network": self.network.config.network,
            "resize": None,
            "weights_sha256": digest.hexdigest(),
        }
