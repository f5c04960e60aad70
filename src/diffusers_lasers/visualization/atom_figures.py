r"""Pictures of dictionaries and codebooks: the atoms, their positions, their use and their similarity.

The use of atom k is its share \(p_k\) of the support slots. The perplexity \(2^{H(p)}\) is the number of equally used
atoms with the same entropy. The similarity of two atoms is \(|d_iᵀd_j|\), and the largest one is the mutual coherence.
For K atoms in L < K dimensions it is at least the bound of Welch (1974), \(\sqrt{(K-L)/(L(K-1))}\). LASERS (2024,
Figs. 7–8) shows atoms and their positions for a codebook and a dictionary.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image

from ..functional.dictionary import mutual_coherence, normalize_atoms
from ..functional.dictionary.coherence import welch_bound
from ..functional.rates import perplexity
from ..utils.import_utils import requires
from .figures import ACCENT, COLOURS, MUTED, new_figure
from .image_grids import to_image


if TYPE_CHECKING:
    from matplotlib.figure import Figure


__all__ = ["atom_map", "atom_tiles", "coherence_histogram", "usage_histogram"]

_TILE_SIDE, _GAP = 24, 4
# Blue and the accent colour. Greys could be taken for pixels of a tile.
_GROUND, _UNUSED = (86, 130, 170), (213, 94, 0)
_BLOCK = 1024  # rows of the Gram matrix that are held at a time
_BINS = 100


def atom_tiles(
    atoms: torch.Tensor,
    tile_shape: tuple[int, int] | None = None,
    usage: torch.Tensor | None = None,
    columns: int | None = None,
) -> Image.Image:
    """
    Draws atoms as grey tiles (LASERS, 2024, Figs. 7–8 a).

    Zero is mid-grey. The entry of largest magnitude of each atom is black or white.

    Args:
        atoms (`torch.Tensor` of shape `(features, K)`): Atoms as columns; a codebook is given transposed. Floating
            point, finite.
        tile_shape (`tuple[int, int]`, *optional*): Rows and columns of a tile, whose product is `features`. Defaults to
            the shape nearest to a square: 4 × 4 for 16 features, 1 × 17 for 17.
        usage (`torch.Tensor` of shape `(K,)`, *optional*): Number of uses of each atom. If it is given, the most used
            atoms come first, row by row, and atoms that are never used have an orange frame instead of a blue one.
        columns (`int`, *optional*): Tiles in a row, at least 1. Defaults to the square root of their number, rounded
            up.

    Returns:
        `PIL.Image.Image`: The picture, RGB.

    Raises:
        ValueError: If the shapes do not fit, an atom is not finite, or `columns` is below 1.
    """
    matrix = _atoms(atoms)
    features, count = matrix.shape
    if tile_shape is None:
        rows = next(rows for rows in range(math.isqrt(features), 0, -1) if features % rows == 0)
        tile_shape = (rows, features // rows)
    if len(tile_shape) != 2 or min(tile_shape) < 1 or tile_shape[0] * tile_shape[1] != features:
        raise ValueError(
            f"`tile_shape` must be two sides whose product is the features, {features}, got {tile_shape}."
        )
    if columns is not None and columns < 1:
        raise ValueError(f"`columns` must be at least 1, got {columns}.")
    columns = min(count, columns or math.ceil(math.sqrt(count)))
    order, unused = torch.arange(count), torch.zeros(count, dtype=torch.bool)
    if usage is not None:
        usage = _usage("usage", usage, count)
        order, unused = usage.argsort(descending=True, stable=True), usage == 0
    peak = matrix.abs().amax(dim=0)
    tiles = (matrix / torch.where(peak > 0, peak, 1.0)).t().reshape(count, 1, *tile_shape)
    scale = max(1, _TILE_SIDE // max(tile_shape))
    height, width = (scale * side for side in tile_shape)
    rows = -(-count // columns)
    picture = Image.new("RGB", (columns * (width + _GAP) + _GAP, rows * (height + _GAP) + _GAP), _GROUND)
    for place, atom in enumerate(order.tolist()):
        row, column = divmod(place, columns)
        left, top = _GAP + column * (width + _GAP), _GAP + row * (height + _GAP)
        if unused[atom]:
            edge = _GAP // 2
            picture.paste(_UNUSED, (left - edge, top - edge, left + width + edge, top + height + edge))
        picture.paste(to_image(tiles[atom]).resize((width, height), Image.Resampling.NEAREST), (left, top))
    return picture


def atom_map(atoms: torch.Tensor, usage: torch.Tensor | None = None, method: str = "umap", seed: int = 0) -> Figure:
    """
    Draws atoms as points of a plane, so that similar atoms are near each other (LASERS, 2024, Figs. 7–8 b).

    Distances are Euclidean. So an atom and its negative lie apart, although a sparse code can use either of them.

    Args:
        atoms (`torch.Tensor` of shape `(features, K)`): Atoms as columns; a codebook is given transposed. Floating
            point, finite, at least `(2, 4)`.
        usage (`torch.Tensor` of shape `(K,)`, *optional*): Number of uses of each atom. If it is given, size and colour
            of a point show its share, and atoms that are never used are crosses.
        method (`str`, defaults to `"umap"`): `"umap"` keeps neighbourhoods (McInnes et al., 2018; needs umap-learn).
            `"pca"` projects on the first two principal components.
        seed (`int`, defaults to 0): Seed of UMAP.

    Returns:
        `matplotlib.figure.Figure`: The figure, for [`save_figure`].

    Raises:
        ValueError: If the shapes do not fit, an atom is not finite, or `method` is unknown.
        ImportError: If matplotlib or umap-learn is missing (`pip install diffusers_lasers[visualization]`).
    """
    matrix = _atoms(atoms)
    count = matrix.shape[1]
    if min(matrix.shape[0] / 2, count / 4) < 1:
        raise ValueError(f"`atoms` must have at least 2 rows and 4 columns for a map, got {tuple(matrix.shape)}.")
    if usage is not None:
        usage = _usage("usage", usage, count)
    if method == "pca":
        points, labels = _principal_plane(matrix)
    elif method == "umap":
        umap = requires("umap", extra="visualization")
        reducer = umap.UMAP(n_neighbors=min(15, count - 1), random_state=seed, n_jobs=1, init="pca")
        points, labels = reducer.fit_transform(matrix.t().numpy()), ("UMAP 1", "UMAP 2")
    else:
        raise ValueError(f"`method` must be 'umap' or 'pca', got {method!r}.")
    figure, (axis,) = new_figure(width=6.5, height=5.5)
    axis.set(xlabel=labels[0], ylabel=labels[1], title=f"{count} atoms of {matrix.shape[0]} features")
    axis.set_aspect("equal", adjustable="datalim")
    size = max(4.0, min(40.0, 20000 / count))  # points²
    if usage is None:
        axis.scatter(*points.T, s=size, color=COLOURS[0], alpha=0.7, linewidths=0)
        return figure
    share = (100 * usage / usage.sum().clamp_min(1e-300)).numpy()
    used = share > 0
    if used.any():
        areas = size * (0.4 + 2 * np.sqrt(share[used] / share.max()))
        norm = requires("matplotlib.colors", extra="visualization").LogNorm()
        look = {"cmap": "viridis", "norm": norm, "edgecolors": "black", "linewidths": 0.3}
        dots = axis.scatter(*points[used].T, s=areas, c=share[used], **look)
        bar = figure.colorbar(dots, ax=axis, label="share of support slots, %").ax.yaxis
        bar.set_major_formatter("{x:g}")
        bar.set_minor_formatter("{x:g}" if share.max() < 10 * share[used].min() else "")
    if not used.all():
        label = f"never used: {int((~used).sum())}"
        axis.scatter(*points[~used].T, s=0.6 * size, c=ACCENT, marker="x", linewidths=1, label=label)
        axis.legend()
    return figure


def usage_histogram(counts: torch.Tensor, title: str | None = None) -> Figure:
    r"""
    Draws the share of support slots of each atom, the most used one first, and the perplexity \(2^{H(p)}\).

    The perplexity is the number of equally used atoms that gives the same entropy.

    Args:
        counts (`torch.Tensor` of shape `(K,)`): Number of uses of each atom or codeword over a data set, such as a row
            of `code.usage_counts()`.
        title (`str`, *optional*): Title. Defaults to the number of atoms.

    Returns:
        `matplotlib.figure.Figure`: The figure, for [`save_figure`].

    Raises:
        ValueError: If `counts` has another shape, a negative value, or only zeros.
        ImportError: If matplotlib is missing.
    """
    counts = _usage("counts", counts, None)
    if not counts.sum() > 0:
        raise ValueError("`counts` must hold at least one use, got none.")
    number = len(counts)
    share = (100 * counts / counts.sum()).sort(descending=True).values.numpy()
    effective, unused = float(perplexity(counts)), int((counts == 0).sum())
    figure, (axis,) = new_figure(width=7, height=4)
    axis.stairs(share, np.arange(number + 1) + 0.5, fill=True, color=COLOURS[0], alpha=0.8)
    axis.axhline(100 / number, color=MUTED, linestyle=":", label=f"even use, {100 / number:.3g} %")
    axis.axvline(effective, color=ACCENT, linestyle="--", label=f"perplexity {effective:.1f}")
    axis.plot([], [], " ", label=f"never used: {unused} of {number}")
    axis.set(
        xlabel="atoms, the most used first",
        ylabel="share of support slots, %",
        title=title if title is not None else f"Use of {number} atoms",
        xlim=(0.5, number + 0.5),
        ylim=(0, None),
    )
    axis.legend()
    return figure


@torch.no_grad()
def coherence_histogram(dictionary: torch.Tensor, title: str | None = None) -> Figure:
    r"""
    Draws a histogram of the similarities \(|d_iᵀd_j|\) of all pairs of normalised atoms, with the mutual coherence and
    the bound of Welch.

    Args:
        dictionary (`torch.Tensor` of shape `(features, K)`): Atoms as columns, of any length; `K >= 2`.
        title (`str`, *optional*): Title. Defaults to the size of the dictionary.

    Returns:
        `matplotlib.figure.Figure`: The figure, for [`save_figure`].

    Raises:
        ValueError: If `dictionary` is not a finite floating-point matrix of two or more columns.
        ImportError: If matplotlib is missing.
    """
    atoms = normalize_atoms(_atoms(dictionary, "dictionary"))
    features, count = atoms.shape
    if count < 2:
        raise ValueError(f"`dictionary` must have at least 2 columns, got {count}.")
    pairs = torch.zeros(_BINS, dtype=torch.float64)
    for start in range(0, count, _BLOCK):
        gram = (atoms[:, start : start + _BLOCK].t() @ atoms).abs().clamp_(max=1)
        gram.masked_fill_(torch.ones_like(gram, dtype=torch.bool).tril_(start), -1.0)  # each pair once; -1 is outside
        pairs += gram.histc(_BINS, 0, 1)
    coherence = float(mutual_coherence(atoms))
    bound = welch_bound(features, count)
    figure, (axis,) = new_figure(width=7, height=4)
    axis.stairs(
        (100 * pairs / pairs.sum()).numpy(), np.linspace(0, 1, _BINS + 1), fill=True, color=COLOURS[0], alpha=0.8
    )
    axis.axvline(coherence, color=ACCENT, linestyle="--", label=f"mutual coherence {coherence:.3f}")
    axis.axvline(bound, color=MUTED, linestyle=":", label=f"Welch bound {bound:.3f}")
    axis.set(
        xlabel="|inner product| of two distinct atoms",
        ylabel="share of pairs, %",
        title=title if title is not None else f"{count} atoms of {features} features",
        xlim=(0, 1.01),
        ylim=(0, None),
    )
    axis.legend(loc="upper center")
    return figure


def _atoms(atoms: torch.Tensor, name: str = "atoms") -> torch.Tensor:
    """Checks the matrix and returns it in float32 or float64 on the CPU."""
    if atoms.ndim != 2 or not atoms.is_floating_point() or atoms.numel() == 0:
        raise ValueError(
            f"`{name}` must be floating point of shape (features, K), got {atoms.dtype} of shape {tuple(atoms.shape)}."
        )
    atoms = atoms.detach().cpu().to(torch.promote_types(atoms.dtype, torch.float32))
    if not bool(atoms.isfinite().all()):
        raise ValueError(f"`{name}` must be finite, got NaN or infinite values.")
    return atoms


def _usage(name: str, usage: torch.Tensor, count: int | None) -> torch.Tensor:
    """Checks counts and returns them in float64 on the CPU."""
    if usage.ndim != 1 or len(usage) == 0 or (count is not None and len(usage) != count):
        raise ValueError(f"`{name}` must have the shape ({count or 'K'},), got {tuple(usage.shape)}.")
    usage = usage.detach().cpu().double()
    if not bool((usage >= 0).all() & usage.isfinite().all()):
        raise ValueError(f"`{name}` must hold counts of 0 or more, got {float(usage.min())}.")
    return usage


def _principal_plane(matrix: torch.Tensor) -> tuple[np.ndarray, tuple[str, str]]:
    """Projections `(K, 2)` of the columns on their first two principal components, and the labels of the axes. The
    coordinate of largest magnitude on each axis is positive."""
    centred = matrix.t().double()
    centred = centred - centred.mean(dim=0)
    values, vectors = torch.linalg.eigh(centred.t() @ centred)
    points = centred @ vectors.flip(-1)[:, :2]
    points = points * points.gather(0, points.abs().argmax(dim=0, keepdim=True)).sign()
    shares = values.flip(-1).clamp_min(0) / values.clamp_min(0).sum().clamp_min(1e-300)
    labels = [
        f"principal component {i + 1}, {100 * float(share):.0f} % of the variance"
        for i, share in enumerate(shares[:2])
    ]
    return points.numpy(), (labels[0], labels[1])
