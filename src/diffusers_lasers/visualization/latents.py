r"""Pictures of latents and codes: the first principal component before and after a bottleneck, and the atoms of each
site.

Let \(x_n \in \mathbb{R}^L\) be the sites and \(m\) their mean. The first component is \(uᵀ(x_n - m)\), where \(u\) is
the top singular direction of the centred sites (LASERS, 2024, Figs. 5–6, 33, 36). Latents that are compared share
\(u\), \(m\) and the grey scale. Otherwise the pictures before and after quantisation could differ by a rotation, which
is not an error of the bottleneck. LASERS does not say whether its figures share them.
"""

from __future__ import annotations

import colorsys

import numpy as np
import torch
from PIL import Image

from .image_grids import image_grid


__all__ = ["component_grid", "first_component", "support_map"]

_TAIL = 0.005  # share of sites below the range of grey levels, and of those above it
_PANELS_PER_ROW = 8


@torch.no_grad()
def first_component(latents: torch.Tensor, reference: torch.Tensor | None = None) -> torch.Tensor:
    r"""
    Projects latents on the first principal direction of their sites, as grey levels (LASERS, 2024, Figs. 5–6, 33, 36).

    Direction, offset and scale come from all sites of `reference` together, so that all images share them. The sign of
    the direction makes its largest entry positive. 99 % of the sites of `reference` lie inside the range of grey
    levels.

    Args:
        latents (`torch.Tensor` of shape `(B, L, H, W)`): Latents, floating point.
        reference (`torch.Tensor` of shape `(B', L, H', W')`, *optional*): Latents that determine direction, offset and
            scale, for instance those before the bottleneck. Defaults to `latents`.

    Returns:
        `torch.Tensor` of shape `(B, 1, H, W)`: Grey levels in [-1, 1], float32, on the CPU. They are all 0 if all sites
        of the reference are equal.

    Raises:
        ValueError: If the shapes do not fit, or a value is not finite.
    """
    reference = latents if reference is None else reference
    for name, tensor in (("latents", latents), ("reference", reference)):
        if tensor.ndim != 4 or not tensor.is_floating_point() or tensor.numel() == 0:
            raise ValueError(
                f"`{name}` must be floating point of shape (B, L, H, W), got {tensor.dtype} of shape "
                f"{tuple(tensor.shape)}."
            )
        if not bool(tensor.isfinite().all()):
            raise ValueError(f"`{name}` must be finite, got NaN or infinite values.")
    if latents.shape[1] != reference.shape[1]:
        raise ValueError(
            f"`reference` must have the channels of `latents`, {latents.shape[1]}, got {reference.shape[1]}."
        )
    sites = reference.detach().cpu().double().movedim(1, -1).flatten(0, 2)  # (N, L)
    mean = sites.mean(dim=0)
    sites = sites - mean
    direction = torch.linalg.eigh(sites.t() @ sites).eigenvectors[:, -1]
    direction = direction * direction[direction.abs().argmax()].sign()
    ordered = (sites @ direction).sort().values
    low, high = (ordered[round(tail * (len(ordered) - 1))] for tail in (_TAIL, 1 - _TAIL))
    spread = (high - low) / 2
    scores = torch.einsum("blhw,l->bhw", latents.detach().cpu().double() - mean[:, None, None], direction)
    if not spread > 1e-12 * float(mean.abs().max()):
        return torch.zeros_like(scores, dtype=torch.float32).unsqueeze(1)
    return ((scores - (high + low) / 2) / spread).clamp(-1, 1).float().unsqueeze(1)


def component_grid(before: torch.Tensor, after: torch.Tensor, images: torch.Tensor | None = None) -> Image.Image:
    """
    Draws images, and below them the first component of their latents before and after a bottleneck, with the same
    direction and scale.

    Args:
        before (`torch.Tensor` of shape `(B, L, H, W)`): Latents of the encoder. They determine direction, offset and
            scale.
        after (`torch.Tensor` of shape `(B, L, H, W)`): The same latents after the bottleneck.
        images (`torch.Tensor` of shape `(B, 3, H', W')`, *optional*): The images, in [-1, 1].

    Returns:
        `PIL.Image.Image`: The picture, RGB, with three labelled rows, or two without `images`.

    Raises:
        ValueError: If the shapes do not fit, or latents are not finite.
    """
    if before.shape != after.shape:
        raise ValueError(f"`after` must have the shape of `before`, {tuple(before.shape)}, got {tuple(after.shape)}.")
    if images is not None and len(images) != len(before):
        raise ValueError(f"`images` must be as many as the latents, {len(before)}, got {len(images)}.")
    rows = [("image", images)] if images is not None else []
    rows += [("before", first_component(before)), ("after", first_component(after, before))]
    return image_grid(rows)


def support_map(indices: torch.Tensor, num_atoms: int, cell: int = 8) -> Image.Image:
    """
    Draws which atoms each site uses: one panel for each slot, in order of selection, with a colour for each atom.

    The colour of an atom depends only on its index, so that pictures of different images and sparsities can be
    compared. Colours differ in brightness as well as in hue. With hundreds of atoms, some look similar. Unused slots
    are black.

    Args:
        indices (`torch.Tensor` of shape `(h, w, slots)`): Atom of each slot of the code of one image, integers; -1
            marks an unused slot.
        num_atoms (`int`): Number of atoms K.
        cell (`int`, defaults to 8): Side of a site in the picture, in pixels.

    Returns:
        `PIL.Image.Image`: The picture, RGB, at most eight panels in a row.

    Raises:
        ValueError: If `indices` has another shape, an index is not from -1 to `num_atoms` - 1, or `cell` is below 1.
    """
    if indices.ndim != 3 or indices.numel() == 0 or indices.is_floating_point() or indices.is_complex():
        raise ValueError(
            f"`indices` must be integers of shape (h, w, slots), got {indices.dtype} of shape {tuple(indices.shape)}."
        )
    if num_atoms < 1 or cell < 1:
        raise ValueError(f"`num_atoms` and `cell` must be at least 1, got {num_atoms} and {cell}.")
    numbers = indices.detach().cpu().numpy().astype(np.int64)
    if numbers.min() < -1 or numbers.max() >= num_atoms:
        raise ValueError(
            f"`indices` must be from -1 to {num_atoms - 1}, got values from {numbers.min()} to {numbers.max()}."
        )
    colours = np.stack([np.zeros(3, np.uint8), *map(_atom_colour, range(numbers.max() + 1))])[numbers + 1]
    height, width, slots = numbers.shape
    columns = min(slots, _PANELS_PER_ROW)
    rows = -(-slots // columns)
    size = (columns * (cell * width + cell) - cell, rows * (cell * height + cell) - cell)
    picture = Image.new("RGB", size, "white")
    for slot in range(slots):
        panel = Image.fromarray(np.ascontiguousarray(colours[:, :, slot]))
        panel = panel.resize((cell * width, cell * height), Image.Resampling.NEAREST)
        row, column = divmod(slot, columns)
        picture.paste(panel, (column * cell * (width + 1), row * cell * (height + 1)))
    return picture


def _atom_colour(atom: int) -> np.ndarray:
    """The colour of an atom, from a low-discrepancy sequence in hue, saturation and brightness (Roberts, 2018)."""
    root = 1.2207440846057596  # the positive solution of x⁴ = x + 1
    hue, saturation, value = ((0.5 + (atom + 1) / root**power) % 1 for power in (1, 2, 3))
    colour = colorsys.hsv_to_rgb(hue, 0.35 + 0.65 * saturation, 0.45 + 0.55 * value)
    return np.round(255 * np.array(colour)).astype(np.uint8)
