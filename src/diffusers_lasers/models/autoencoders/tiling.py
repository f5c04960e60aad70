r"""Tiled processing: apply a local map to overlapping tiles and merge the results.

Each tile's output is weighted by a trapezoid that is 0 within `margin` of an inner edge of the tile, where the map saw
padding instead of the neighbour, and rises linearly from there. Where the map's receptive field stays within `margin`
(the light networks) the merged result equals the untiled one; elsewhere (group norm, attention) the ramps hide the
seams.
"""

from __future__ import annotations

from collections.abc import Callable

import torch


__all__ = ["tiled_map"]


def tiled_map(
    function: Callable[[torch.Tensor], torch.Tensor],
    sample: torch.Tensor,
    tile: int,
    overlap: int,
    margin: int,
    scale: tuple[int, int],
    multiple: int = 1,
) -> torch.Tensor:
    """
    Applies `function` tile by tile.

    Args:
        function (`Callable`): Maps `(B, C, H, W)` to `(B, C', H·up/down, W·up/down)`.
        sample (`torch.Tensor` of shape `(B, C, H, W)`): Input; H and W multiples of `multiple`.
        tile (`int`): Side of a tile, in input positions; a multiple of `multiple`.
        overlap (`int`): Input positions that neighbouring tiles share, `2 · margin < overlap < tile`.
        margin (`int`): Input positions at an inner edge of a tile whose outputs are dropped.
        scale (`tuple[int, int]`): `(up, down)`: output positions for each `down` input positions.
        multiple (`int`, defaults to 1): Tiles start at multiples of this.

    Returns:
        `torch.Tensor`: The merged output.
    """
    height, width = sample.shape[-2:]
    up, down = scale
    merged = total = None
    for top, bottom in _spans(height, tile, overlap, multiple):
        for left, right in _spans(width, tile, overlap, multiple):
            part = function(sample[..., top:bottom, left:right])
            rows = _weights(part.shape[-2], top > 0, bottom < height, overlap * up // down, margin * up // down)
            columns = _weights(part.shape[-1], left > 0, right < width, overlap * up // down, margin * up // down)
            weight = (rows[:, None] * columns[None, :]).to(part)
            if merged is None:
                shape = (*part.shape[:-2], height * up // down, width * up // down)
                merged, total = part.new_zeros(shape), part.new_zeros(shape[-2:])
            window = (..., slice(top * up // down, bottom * up // down), slice(left * up // down, right * up // down))
            merged[window] += part * weight
            total[window] += weight
    return merged / total


def _spans(size: int, tile: int, overlap: int, multiple: int) -> list[tuple[int, int]]:
    """Tiles `(start, end)` that cover `size` with at least `overlap` in common; the last one is moved back to fit."""
    if size <= tile:
        return [(0, size)]
    stride = max(multiple, (tile - overlap) // multiple * multiple)
    starts = list(range(0, size - tile, stride)) + [size - tile]
    return [(start, start + tile) for start in starts]


def _weights(size: int, inner_start: bool, inner_end: bool, overlap: int, margin: int) -> torch.Tensor:
    """Trapezoid `(size,)`: 0 within `margin` of an inner edge, then a linear rise to 1 over the rest of the overlap."""
    position = torch.arange(size, dtype=torch.float32) + 0.5
    ramp = max(1.0, overlap - 2.0 * margin)
    weight = torch.ones(size)
    if inner_start:
        weight = torch.minimum(weight, ((position - margin) / ramp).clamp(0, 1))
    if inner_end:
        weight = torch.minimum(weight, ((size - position - margin) / ramp).clamp(0, 1))
    return weight
