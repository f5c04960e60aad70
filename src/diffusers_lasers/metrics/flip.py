r"""FLIP: the visible difference between two images that are shown alternately (Andersson et al., HPG 2020).

LDR-FLIP filters both images by the eye's contrast sensitivity at a viewing distance (in pixels per degree). It compares
colours in a perceptually uniform space (ΔE_c), and edges and points (ΔE_f). The error at each pixel is

    ΔE = ΔE_c^(1 − ΔE_f)  in [0, 1].

The value is the mean over pixels, then over images. Maps come from the authors' own package, `flip-evaluator`.
"""

from __future__ import annotations

from typing import Any

import torch

from ..utils.import_utils import requires
from .image import ImagePairMetric, as_images


__all__ = ["FLIP", "flip_map"]

# The authors' default: 0.7 m from a display that is 0.7 m and 3840 pixels wide.
PIXELS_PER_DEGREE = 67.02064514160156


def flip_map(
    reference: torch.Tensor, test: torch.Tensor, magma: bool = False, pixels_per_degree: float = PIXELS_PER_DEGREE
) -> torch.Tensor:
    """
    Per-pixel FLIP errors of a batch, or their heat map.

    Args:
        reference (`torch.Tensor` of shape `(B, 3, H, W)`): Original sRGB images, uint8 or floats in [-1, 1].
        test (`torch.Tensor` of shape `(B, 3, H, W)`): Images to compare, uint8 or floats in [-1, 1].
        magma (`bool`, defaults to `False`): Whether to return the errors as colours of the magma map.
        pixels_per_degree (`float`, defaults to 67.02): Viewing distance, in pixels per degree.

    Returns:
        `torch.Tensor`: Errors `(B, H, W)` in [0, 1], or with `magma` colours `(B, 3, H, W)` in [-1, 1]. float32, on
        the CPU.

    Raises:
        ImportError: If `flip-evaluator` is not installed.
        ValueError: If the images differ in shape or are out of range.
    """
    flip = requires("flip_evaluator", extra="metrics")
    reference, test = as_images(reference, "reference"), as_images(test, "test")
    if reference.shape != test.shape:
        raise ValueError(
            f"`test` must have the shape of `reference`, {tuple(reference.shape)}, got {tuple(test.shape)}."
        )

    def arrays(images: torch.Tensor):  # (B, H, W, 3) in [0, 1]
        return (images.float() / 2 + 0.5).permute(0, 2, 3, 1).contiguous().cpu().numpy()

    maps = [
        torch.from_numpy(
            flip.evaluate(
                *pair, "LDR", applyMagma=magma, computeMeanError=False, parameters={"ppd": float(pixels_per_degree)}
            )[0]
        )
        for pair in zip(arrays(reference), arrays(test))
    ]  # each (H, W, 1), or (H, W, 3) with colours
    if not maps:
        return torch.zeros(0, *((3,) if magma else ()), *reference.shape[-2:])
    result = torch.stack(maps)
    return result.permute(0, 3, 1, 2).mul(2).sub(1).clamp(-1, 1).contiguous() if magma else result.squeeze(-1)


class FLIP(ImagePairMetric):
    """
    Creates a mean LDR-FLIP error, from 0 (no visible difference) to 1.

    Args:
        pixels_per_degree (`float`, defaults to 67.02): Viewing distance, in pixels per degree. The default is the
            authors': 0.7 m from a display that is 0.7 m and 3840 pixels wide.
        kwargs: Passed on to `torchmetrics.Metric`.

    Raises:
        ImportError: If `flip-evaluator` is not installed.
    """

    higher_is_better = False

    def __init__(self, pixels_per_degree: float = PIXELS_PER_DEGREE, **kwargs: Any):
        super().__init__(**kwargs)
        requires("flip_evaluator", extra="metrics")
        self.pixels_per_degree = pixels_per_degree

    def scores(self, reconstructions: torch.Tensor, references: torch.Tensor) -> torch.Tensor:
        """Mean errors `(B,)`."""
        errors = flip_map(references, reconstructions, pixels_per_degree=self.pixels_per_degree)
        return errors.double().mean(dim=(1, 2)).to(references.device)

    def protocol(self) -> dict[str, Any]:
        """How the value was computed, for JSON."""
        return super().protocol() | {"mode": "LDR, sRGB", "pixels_per_degree": self.pixels_per_degree}
