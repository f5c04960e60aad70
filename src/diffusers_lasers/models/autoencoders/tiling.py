r"""Large images and batches in parts: networks are applied to overlapping tiles, or to one image at a time, and merged.

Each tile's output is weighted by a trapezoid that is 0 within `margin` of an inner edge of the tile, where the map saw
padding instead of the neighbour, and rises linearly from there. Where the map's receptive field stays within `margin`
(the light and the residual networks) the merged result equals the untiled one; elsewhere (group norm, attention) the
ramps hide the seams.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.nn import functional as F


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


class TiledNetworks:
    """
    Base of [`AutoencoderDL`], whose `encoder` and `decoder` it runs in parts where that is switched on.

    Attributes:
        use_slicing (`bool`): Whether the images of a batch are processed one after the other.
        use_tiling (`bool`): Whether images larger than a tile are processed in tiles.
        tile_sample_min_size (`int`): Side of a tile, in pixels.
        tile_overlap_factor (`float`): Share of a tile that it has in common with its neighbour.
    """

    use_slicing = False
    use_tiling = False
    tile_sample_min_size = 512
    tile_overlap_factor = 0.25

    def _sliced(self, function: Callable, sample: torch.Tensor) -> torch.Tensor:
        """Applies `function` to one sample of the batch at a time where slicing is on."""
        if self.use_slicing and sample.shape[0] > 1:
            return torch.cat([function(part) for part in sample.split(1)])
        return function(sample)

    def _padded(self, sample: torch.Tensor) -> torch.Tensor:
        """Images whose sides are multiples of the downsampling factor, by repeating the last row and column."""
        height, width = sample.shape[-2:]
        pad = (0, -width % self.downsampling_factor, 0, -height % self.downsampling_factor)
        return F.pad(sample, pad, mode="replicate") if any(pad) else sample

    def _encode(self, sample: torch.Tensor) -> torch.Tensor:
        factor, sample = self.downsampling_factor, self._padded(sample)
        if self.use_tiling and max(sample.shape[-2:]) > self.tile_sample_min_size:
            return self._tiled(self.encoder, sample, factor, (1, factor))
        return self.encoder(sample)

    def _decode(self, latents: torch.Tensor) -> torch.Tensor:
        latents = latents.to(self.dtype)
        if self.use_tiling and max(latents.shape[-2:]) * self.downsampling_factor > self.tile_sample_min_size:
            return self._tiled(self.decoder, latents, 1, (self.downsampling_factor, 1))
        return self.decoder(latents)

    def _tiled(self, network: Callable, sample: torch.Tensor, positions: int, scale: tuple[int, int]) -> torch.Tensor:
        """Runs a network in tiles; `positions` input positions make one latent position."""
        tile = self.tile_sample_min_size // self.downsampling_factor
        # Reach of the convolutional networks in latent positions, at most: at each resolution of residual blocks these
        # and a 3 × 3 convolution, and the first and last ones.
        levels = len(self.config.block_out_channels) if self.config.backbone == "residual" else 1
        margin = levels * (self.config.layers_per_block + 1) + 3
        overlap = max(int(tile * self.tile_overlap_factor), 2 * margin + 1)
        if overlap >= tile:
            raise ValueError(
                f"`tile_sample_min_size` must be more than {overlap * self.downsampling_factor} pixels, of which "
                f"neighbouring tiles share at least {2 * margin + 1} latent positions, got {self.tile_sample_min_size}."
            )
        sizes = {"tile": tile * positions, "overlap": overlap * positions, "margin": margin * positions}
        return tiled_map(network, sample, **sizes, scale=scale, multiple=positions)
