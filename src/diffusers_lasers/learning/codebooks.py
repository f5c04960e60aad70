r"""Codebooks fitted to signals with faiss (Scribano et al., 2023, sections 3.1.1–3.1.3).

* *VQ*, and each part of *PQ*: k-means.
* *OPQ*: alternates between an orthogonal matrix R and the codebooks (eq 14). Then k-means fits the rotated parts once
  more, with all signals.
* *RQ*: fits one stage after the other to the residuals of a beam search.

By default faiss uses at most 256 signals for each codeword. Here it uses all signals, up to a limit for OPQ and RQ,
which are expensive. On one machine, the same seed gives the same codebooks.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import numpy as np

from ..utils.import_utils import requires


__all__ = ["QUANTIZERS", "fit_quantizer"]

#: Kinds of quantisers.
QUANTIZERS = ("VQ", "PQ", "OPQ", "RQ")
_ROTATION_SIGNALS = 2**18  # largest number of signals for the alternation of OPQ
_RESIDUAL_SIGNALS = 2**18  # largest number of signals for the stages of RQ


@contextmanager
def _threads(faiss: ModuleType, count: int | None):
    """Sets the number of threads of faiss within a block."""
    before = faiss.omp_get_max_threads()
    if count is not None:
        faiss.omp_set_num_threads(count)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)


def fit_quantizer(
    signals: np.ndarray,
    kind: str,
    slots: int,
    bits: int,
    seed: int = 0,
    iterations: int = 100,
    threads: int | None = None,
    report: Callable[[str], Any] = lambda stage: None,
) -> tuple[np.ndarray, np.ndarray | None]:
    """
    Fits one quantiser.

    Args:
        signals (`numpy.ndarray` of shape `(N, n)`): Signals, float32; at least as many as codewords.
        kind (`str`): `"VQ"`, `"PQ"`, `"OPQ"` or `"RQ"`.
        slots (`int`): Number m of sub-quantisers. It is 1 for VQ and divides n for PQ and OPQ.
        bits (`int`): Bits of each sub-quantiser, which has 2^bits codewords.
        seed (`int`, defaults to 0): Seed.
        iterations (`int`, defaults to 100): Iterations of k-means. OPQ makes half as many alternations, and each stage
            of RQ a quarter as many iterations.
        threads (`int`, *optional*): Number of threads of faiss. Defaults to its current number.
        report (`Callable[[str], Any]`, *optional*): Called with the name of each finished stage.

    Returns:
        `tuple`: Codebooks `(m, 2^bits, d)`, float32, with d = n / m, or d = n for RQ; and the rotation R `(n, n)` of
        OPQ. The parts of a signal x are then those of R x. R is `None` for the other kinds and for m = 1.

    Raises:
        ValueError: If the arguments do not fit.
        ImportError: If faiss is missing (`pip install diffusers_lasers[codec]`).
    """
    if kind not in QUANTIZERS:
        raise ValueError(f"`kind` must be one of {QUANTIZERS}, got {kind!r}.")
    features = signals.shape[1]
    if kind == "VQ" and slots != 1:
        raise ValueError(f"`slots` must be 1 for VQ, got {slots!r}.")
    if kind in ("PQ", "OPQ") and features % slots:
        raise ValueError(f"`slots` must divide the {features} entries of a signal, got {slots!r}.")
    if len(signals) < 2**bits:
        raise ValueError(
            f"`signals` must hold at least one signal for each of {2**bits} codewords, got {len(signals)}."
        )
    faiss = requires("faiss", "codec")
    signals = np.ascontiguousarray(signals, dtype=np.float32)
    with _threads(faiss, threads):
        if kind == "RQ" and slots > 1:
            return _residual(faiss, signals, slots, bits, seed, iterations, report), None
        rotation = None
        if kind == "OPQ" and slots > 1:
            rotation = _rotation(faiss, signals, slots, bits, seed, iterations)
            report("rotation")
            signals = signals @ rotation.T
        books = []
        for part in np.split(signals, slots, axis=1):
            kmeans = faiss.Kmeans(
                part.shape[1],
                2**bits,
                niter=iterations,
                seed=seed + 1,
                max_points_per_centroid=2**31 - 1,
                min_points_per_centroid=1,
            )
            kmeans.train(np.ascontiguousarray(part))
            books.append(kmeans.centroids.copy())
            report("codebook")
        return np.stack(books), rotation


def _rotation(faiss: ModuleType, signals: np.ndarray, slots: int, bits: int, seed: int, iterations: int) -> np.ndarray:
    features = signals.shape[1]
    opq = faiss.OPQMatrix(features, slots)
    product = faiss.ProductQuantizer(features, slots, bits)
    product.cp.seed, product.cp.min_points_per_centroid, product.cp.max_points_per_centroid = seed + 1, 1, 2**31 - 1
    opq.pq, opq.niter, opq.max_train_points = product, max(1, iterations // 2), _ROTATION_SIGNALS
    subset = _subset(signals, _ROTATION_SIGNALS, seed)
    opq.train(subset)
    matrix = faiss.vector_to_array(opq.A).reshape(features, features)
    left, _, right = np.linalg.svd(matrix.astype(np.float64))  # faiss's matrix is orthogonal only in float32
    return np.ascontiguousarray(left @ right, dtype=np.float32)


def _residual(
    faiss: ModuleType,
    signals: np.ndarray,
    slots: int,
    bits: int,
    seed: int,
    iterations: int,
    report: Callable[[str], Any],
) -> np.ndarray:
    features = signals.shape[1]
    quantizer = faiss.ResidualQuantizer(features, slots, bits)
    quantizer.cp.seed, quantizer.cp.niter, quantizer.cp.min_points_per_centroid = seed + 1, max(1, iterations // 4), 1
    quantizer.cp.max_points_per_centroid = 2**31 - 1
    quantizer.train(_subset(signals, _RESIDUAL_SIGNALS, seed))
    for _ in range(slots):
        report("codebook")
    return faiss.vector_to_array(quantizer.codebooks).reshape(slots, 2**bits, features).copy()


def _subset(signals: np.ndarray, count: int, seed: int) -> np.ndarray:
    if len(signals) <= count:
        return signals
    rows = np.random.default_rng(seed).choice(len(signals), count, replace=False, shuffle=False)
    return np.ascontiguousarray(signals[np.sort(rows)])
