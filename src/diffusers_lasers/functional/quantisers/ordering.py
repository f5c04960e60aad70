r"""The order of a codebook (Scribano et al., 2023, section 3.2.1): which codewords get neighbouring indices.

Diffusion on indices treats an index as a number. So a small error in the index should be a small error in the image.
The paper asks that neighbours in index are nearest in space (eqs 18 and 19; the inequality of eq 19 is printed
reversed). Its triples contain two neighbours. We ask the same of all triples,

    i < j < k   ⇒   ‖c_i − c_j‖ ≤ ‖c_i − c_k‖   and   ‖c_j − c_k‖ ≤ ‖c_i − c_k‖ .

The paper sorts codewords by their projection on the first principal component. That is the line of largest variance,
but not the order of smallest neighbour distance. The measures here compare it with a random order, the order of the
norms, a spectral order (Fiedler vector) and a travelling salesman's path (nearest neighbour and 2-opt).

The sign of an eigenvector is arbitrary. Here its largest entry is positive.
"""

from __future__ import annotations

from typing import NamedTuple

import torch


__all__ = ["ORDERS", "OrderScore", "codebook_order", "score_order"]

#: Names of the orders that `codebook_order` can compute.
ORDERS = ("pca", "random", "norm", "spectral", "salesman")


class OrderScore(NamedTuple):
    """
    How well an order keeps neighbours together.

    Args:
        neighbour_distance (`float`): Mean distance of codewords with neighbouring indices divided by the mean distance
            of all pairs; smaller is better.
        spearman (`float`): Rank correlation of |i − j| and ‖c_i − c_j‖ over all pairs; 1 is best.
        violations (`float`): Share of triples i < j < k that violate one of the inequalities; 0 is best.
    """

    neighbour_distance: float
    spearman: float
    violations: float


def _check(codebook: torch.Tensor) -> None:
    if codebook.ndim != 2 or len(codebook) < 1 or not codebook.is_floating_point():
        raise ValueError(
            f"`codebook` must be floating point of shape (codewords, features), got {codebook.dtype} of shape "
            f"{tuple(codebook.shape)}."
        )


def codebook_order(
    codebook: torch.Tensor, kind: str = "pca", generator: torch.Generator | None = None
) -> torch.Tensor:
    """
    Computes an order of the codewords.

    Args:
        codebook (`torch.Tensor` of shape `(codewords, features)`): Codewords as rows.
        kind (`str`, defaults to `"pca"`): `"pca"` (the paper), `"random"`, `"norm"`, `"spectral"` or `"salesman"`.
        generator (`torch.Generator`, *optional*): Source of randomness of `"random"`, on the CPU.

    Returns:
        `torch.Tensor` of shape `(codewords,)`: Index of the codeword at each place, int64. `codebook[order]` is the
        sorted codebook.

    Raises:
        ValueError: If `kind` is unknown or the codebook has another shape or type.
    """
    _check(codebook)
    if kind not in ORDERS:
        raise ValueError(f"`kind` must be one of {ORDERS}, got {kind!r}.")
    points, count = codebook.detach().double(), len(codebook)
    if kind == "random":
        return torch.randperm(count, generator=generator).to(codebook.device)
    if kind == "norm":
        return points.norm(dim=1).argsort(stable=True)
    if kind == "salesman":
        return _salesman(points)
    if kind == "pca":
        centred = points - points.mean(dim=0)
        direction = torch.linalg.eigh(centred.t() @ centred).eigenvectors[:, -1]
        values = centred @ _signed(direction)
    else:
        squared = torch.cdist(points, points).square()
        scale = squared.mean().clamp_min(torch.finfo(squared.dtype).tiny)
        affinity = torch.exp(-squared / scale)
        laplacian = torch.diag(affinity.sum(dim=1)) - affinity
        values = _signed(torch.linalg.eigh(laplacian).eigenvectors[:, min(1, count - 1)])
    return values.argsort(stable=True)


def _signed(vector: torch.Tensor) -> torch.Tensor:
    """The vector or its negative, so that the entry of largest magnitude is positive."""
    return vector * torch.where(vector[vector.abs().argmax()] < 0, -1.0, 1.0)


def _salesman(points: torch.Tensor) -> torch.Tensor:
    """A short open path through all points. It starts at the outermost point and goes to the nearest neighbours; 2-opt
    then shortens it as far as it can."""
    distances = torch.cdist(points, points).cpu()
    count = len(points)
    if count < 3:
        return torch.arange(count, device=points.device)
    path, left = [int(distances.sum(dim=1).argmax())], torch.ones(count, dtype=torch.bool)
    left[path[0]] = False
    while len(path) < count:
        path.append(int(torch.where(left, distances[path[-1]], torch.inf).argmin()))
        left[path[-1]] = False
    order = torch.tensor(path)
    for _ in range(20 * count):
        ordered = distances[order][:, order]
        step = ordered.diagonal(1)  # step[i]: from place i to i + 1
        # reversing places a + 1 … b replaces the steps (a, a + 1) and (b, b + 1) by (a, b) and (a + 1, b + 1)
        last = torch.cat([step, step.new_zeros(1)])
        across = torch.cat([ordered[1:, 1:], ordered.new_zeros(count - 1, 1)], dim=1)  # (a + 1, b + 1)
        gain = step.unsqueeze(1) + last.unsqueeze(0) - ordered[:-1] - across
        gain = gain.triu(2)
        best = int(gain.argmax())
        if gain.flatten()[best] <= 1e-12:
            break
        a, b = divmod(best, count)
        order[a + 1 : b + 1] = order[a + 1 : b + 1].flip(0)
    return order.to(points.device)


def score_order(codebook: torch.Tensor, max_triples: int = 200_000, seed: int = 0) -> OrderScore:
    """
    Measures how well the order of the rows of a codebook keeps neighbours together.

    Args:
        codebook (`torch.Tensor` of shape `(codewords, features)`): Codewords as rows, at least two.
        max_triples (`int`, defaults to 200000): Largest number of triples that are checked. If there are more, this
            number of random triples is drawn.
        seed (`int`, defaults to 0): Seed of the draw.

    Returns:
        [`OrderScore`]: Three measures.

    Raises:
        ValueError: If the codebook has another shape or fewer than two codewords.
    """
    _check(codebook)
    count = len(codebook)
    if count < 2:
        raise ValueError(f"`codebook` must have at least two codewords, got {count}.")
    points = codebook.detach().double().cpu()
    distances = torch.cdist(points, points)
    rows, columns = torch.triu_indices(count, count, 1)
    pairs = distances[rows, columns]
    gaps = (columns - rows).double()
    neighbour = distances.diagonal(1).mean() / pairs.mean().clamp_min(torch.finfo(pairs.dtype).tiny)
    ranks = torch.stack([_ranks(gaps), _ranks(pairs)])
    spearman = torch.corrcoef(ranks)[0, 1] if count > 2 else torch.ones(())
    if count < 3:
        return OrderScore(float(neighbour), float(spearman), 0.0)
    total = count * (count - 1) * (count - 2) // 6
    if total <= max_triples:
        triples = torch.combinations(torch.arange(count), 3).t()
    else:
        generator = torch.Generator().manual_seed(seed)
        triples = torch.rand(max_triples, count, generator=generator).topk(3, dim=1).indices.sort(dim=1).values.t()
    i, j, k = triples
    broken = (distances[i, j] > distances[i, k]) | (distances[j, k] > distances[i, k])
    return OrderScore(float(neighbour), float(spearman), float(broken.double().mean()))


def _ranks(values: torch.Tensor) -> torch.Tensor:
    """Ranks; equal values get the mean of their ranks."""
    unique, inverse, counts = values.unique(return_inverse=True, return_counts=True)
    ends = counts.cumsum(0).double()
    return (ends - (counts.double() - 1) / 2)[inverse]
