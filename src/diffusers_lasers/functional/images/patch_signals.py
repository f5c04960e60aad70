r"""Latents as signals: one signal for each patch of p × p sites.

A latent \(z \in \mathbb{R}^{L \times H \times W}\) becomes \(⌈H/p⌉⌈W/p⌉\) signals of \(p^2 L\) features (LASERS, 2024,
section 3.2, patch-level coding). The dictionary then has \(p^2 L\) rows; the paper's \(D \in \mathbb{R}^{K \times L}\)
leaves out the factor \(p^2\). Each signal holds the values of one patch of one image. The authors' release reshaped
where a transpose was needed, and so mixed patches and images in each column. Where p does not divide H or W, the
latents are padded on the right and below by repeating the edge, and cropped back afterwards.
"""

from __future__ import annotations

import torch
from torch.nn import functional as F


__all__ = ["latents_to_signals", "patch_grid", "signals_to_latents"]


def patch_grid(height: int, width: int, patch_size: int) -> tuple[int, int]:
    """
    Number of patches down and across that cover `height` × `width` sites.

    Args:
        height (`int`): Sites down.
        width (`int`): Sites across.
        patch_size (`int`): Side p of a patch, in sites.

    Returns:
        `tuple[int, int]`: `(⌈height / p⌉, ⌈width / p⌉)`.
    """
    return -(-height // patch_size), -(-width // patch_size)


def latents_to_signals(latents: torch.Tensor, patch_size: int = 1) -> torch.Tensor:
    """
    Unfolds latents into one signal for each patch.

    Args:
        latents (`torch.Tensor` of shape `(B, L, H, W)`): Latents.
        patch_size (`int`, defaults to 1): Side p of the non-overlapping patches, in sites.

    Returns:
        `torch.Tensor` of shape `(B·h·w, p²·L)` with `h, w` from [`patch_grid`]: signals in row-major order of image,
        row, column; features in order of channel, row, column inside the patch.
    """
    batch, channels, height, width = latents.shape
    rows, columns = patch_grid(height, width, patch_size)
    pad = (0, columns * patch_size - width, 0, rows * patch_size - height)
    if any(pad):
        latents = F.pad(latents, pad, mode="replicate")
    patches = latents.reshape(batch, channels, rows, patch_size, columns, patch_size)
    patches = patches.permute(0, 2, 4, 1, 3, 5)  # (B, h, w, L, p, p)
    return patches.reshape(batch * rows * columns, channels * patch_size * patch_size)


def signals_to_latents(signals: torch.Tensor, height: int, width: int, patch_size: int = 1) -> torch.Tensor:
    """
    Folds signals back into latents; the inverse of [`latents_to_signals`].

    Args:
        signals (`torch.Tensor` of shape `(B·h·w, p²·L)`): One signal for each patch.
        height (`int`): Sites down of the latents, before padding.
        width (`int`): Sites across of the latents, before padding.
        patch_size (`int`, defaults to 1): Side p of the patches, in sites.

    Returns:
        `torch.Tensor` of shape `(B, L, height, width)`: The latents.
    """
    rows, columns = patch_grid(height, width, patch_size)
    batch, channels = signals.shape[0] // (rows * columns), signals.shape[1] // (patch_size * patch_size)
    patches = signals.reshape(batch, rows, columns, channels, patch_size, patch_size)
    latents = patches.permute(0, 3, 1, 4, 2, 5).reshape(batch, channels, rows * patch_size, columns * patch_size)
    return latents[:, :, :height, :width]
