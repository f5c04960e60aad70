r"""A uniform sample of the overlapping patches of many images, in bounded memory (Scribano et al., 2023, section 4.1).

A set of images has millions of patches. Each patch gets a random key, and the patches with the smallest keys are kept.
This is sampling without replacement. It needs one pass over the images, which may come from any iterable. Colours are
YCbCr in [-1, 1].
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
import torch.nn.functional as F

from ..functional.images.color import rgb_to_ycbcr


__all__ = ["sample_patches"]


def sample_patches(
    images: Iterable[torch.Tensor],
    patch_size: int,
    stride: int = 1,
    max_patches: int = 2**19,
    flip: bool = True,
    seed: int = 0,
) -> tuple[torch.Tensor, int]:
    """
    Draws patches of images and, with `flip`, of their upside-down copies.

    Args:
        images (`Iterable[torch.Tensor]`): Images `(3, H, W)`, RGB in [-1, 1], of any sizes. An image that is smaller
            than a patch is padded by repeating its edge.
        patch_size (`int`): Side s of a patch, in pixels.
        stride (`int`, defaults to 1): Distance between patches, in pixels; 1 gives all patches.
        max_patches (`int`, defaults to 524288): Largest number of patches that are kept.
        flip (`bool`, defaults to `True`): Whether to take patches of the upside-down images too.
        seed (`int`, defaults to 0): Seed of the sample.

    Returns:
        `tuple[torch.Tensor, int]`: Patches `(3, N, s²)` of Y, Cb and Cr, float32, each in row-major order; and the
        number of patches before sampling.

    Raises:
        ValueError: If a number is below 1 or there is no image.
    """
    for name, value in (("patch_size", patch_size), ("stride", stride), ("max_patches", max_patches)):
        if value < 1:
            raise ValueError(f"`{name}` must be at least 1, got {value!r}.")
    generator = np.random.default_rng(seed)
    parts: list[torch.Tensor] = []
    keys: list[np.ndarray] = []
    held, limit, total = 0, np.inf, 0
    for image in images:
        spare = [max(0, patch_size - side) for side in image.shape[-2:]]
        image = (
            F.pad(image[None].float(), (0, spare[1], 0, spare[0]), mode="replicate")[0]
            if any(spare)
            else image.float()
        )
        colours = rgb_to_ycbcr(image)
        for view in (colours, colours.flip(-2)) if flip else (colours,):
            windows = view.unfold(1, patch_size, stride).unfold(2, patch_size, stride)  # (3, h, w, s, s), no copy
            rows, columns = windows.shape[1:3]
            drawn = generator.random(rows * columns)
            total += len(drawn)
            chosen = np.flatnonzero(drawn < limit)
            if len(chosen) > max_patches:  # in one large image; only those that can be kept are copied
                chosen = np.sort(chosen[np.argpartition(drawn[chosen], max_patches - 1)[:max_patches]])
            place = torch.from_numpy(chosen)
            parts.append(windows[:, place // columns, place % columns].flatten(2))  # (3, n, s²)
            keys.append(drawn[chosen])
            held += len(chosen)
            if held > 2 * max_patches:
                parts, keys, held, limit = _keep(parts, keys, max_patches)
    if not parts:
        raise ValueError("`images` must hold at least one image, got none.")
    parts, _, _, _ = _keep(parts, keys, max_patches)
    return parts[0], total


def _keep(
    parts: list[torch.Tensor], keys: list[np.ndarray], count: int
) -> tuple[list[torch.Tensor], list[np.ndarray], int, float]:
    """The patches with the `count` smallest keys, in their original order."""
    every = np.concatenate(keys)
    patches = torch.cat(parts, dim=1)
    if len(every) <= count:
        return [patches], [every], len(every), np.inf
    limit = np.partition(every, count - 1)[count - 1]
    kept = np.flatnonzero(every <= limit)
    return [patches[:, torch.from_numpy(kept)]], [every[kept]], len(kept), float(limit)
