r"""The sparse coders that `benchmark_sparse_coding.py` compares, and the float64 reference that judges their codes.

Each one is a `Coder`: `prepare` brings the inputs into the form that the implementation wants, outside the measured
time, and returns a call without arguments that does the work. What is worth knowing of the peers:

* SPAMS: `spams.omp` does not compute OMP. It takes the atom whose *inclusion* leaves the smallest residual,
  argmax (dᵀr)² / ‖(I − P) d‖², which is orthogonal least squares (OLS). So it is judged by the OLS reference, and is
  the peer of our `ols`. Given float32 and `L` only, spams-bin 2.6.14 may return zero or partial codes; with `eps=0.0`
  it does not.
* orthogonal-matching-pursuit-gpu: of its algorithms, `naive` (float32) and `v0_blas` (which takes float64 only) are
  the fast ones on a CPU; which of them is faster depends on the sizes, so both are rows. `naive` returns a dense code.
* scikit-learn works signal by signal, in as many processes as there are threads. It is timed on some of the signals,
  and the time is scaled; the overhead of a call makes this a few percent too high.
* `batch_omp` is Algorithm 1 of LASERS (2024) as it is printed, for a whole batch: Gram matrix, Cholesky factor that
  grows by a row a step, all correlations refreshed from G_τ γ, dense code.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from diffusers_lasers.functional import ols, omp, set_backend
from diffusers_lasers.utils.import_utils import requires


BACKENDS = ("torch", "fused")
SPAMS = "SPAMS"
# A signal whose reference residual is below this share of its length is coded exactly: what follows is rounding.
EXACT = 1e-6


@dataclass(frozen=True)
class Coder:
    """
    An implementation of sparse coding.

    Args:
        name (`str`): As the tables call it.
        selection (`str`): What it computes, `"omp"` or `"ols"`.
        prepare (`Callable`): From signals `(N, L)`, unit atoms `(L, K)`, sparsity and threads to the call that codes.
        require (`Callable`): Raises `ImportError` where the implementation is not there.
        per_signal (`bool`): Whether it is so slow that it is timed on some of the signals.
    """

    name: str
    selection: str
    prepare: Callable[[torch.Tensor, torch.Tensor, int, int], Callable[[], Any]]
    require: Callable[[], Any]
    per_signal: bool = False

    def timed_signals(self, signals: int, atoms: int) -> int:
        """How many of the signals are timed."""
        return min(signals, max(64, 2**20 // atoms)) if self.per_signal else signals


def batch_omp(signals: torch.Tensor, dictionary: torch.Tensor, sparsity: int) -> torch.Tensor:
    """
    Batch-OMP, Algorithm 1 of LASERS (2024) for all signals at once; no guard for what it leaves open.

    Args:
        signals (`torch.Tensor` of shape `(N, L)`): Signals.
        dictionary (`torch.Tensor` of shape `(L, K)`): Unit-norm atoms as columns.
        sparsity (`int`): Atoms a signal, at most L.

    Returns:
        `torch.Tensor` of shape `(N, K)`: The dense codes; NaN where an atom depends on the chosen ones.
    """
    gram = dictionary.t() @ dictionary
    initial = signals @ dictionary  # α⁰: (N, K)
    correlation = initial
    support = signals.new_empty(len(signals), 0, dtype=torch.long)
    factor = signals.new_ones(len(signals), 1, 1)  # L: the first atom's
    for step in range(sparsity):
        atom = correlation.abs().argmax(dim=1, keepdim=True)  # eq 19
        if step:
            shared = gram[support, atom].unsqueeze(-1)  # G of the chosen atoms and the new one: (N, s, 1)
            omega = torch.linalg.solve_triangular(factor, shared, upper=False).squeeze(-1)
            factor = F.pad(factor, (0, 1, 0, 1))
            factor[:, step, :step] = omega
            factor[:, step, step] = (1 - omega.square().sum(dim=1)).sqrt()
        support = torch.cat([support, atom], dim=1)  # eq 20
        weights = torch.cholesky_solve(initial.gather(1, support).unsqueeze(-1), factor)  # γ: (N, s + 1, 1), eq 21
        correlation = initial - (weights.transpose(1, 2) @ gram[support]).squeeze(1)  # eq 22
    return torch.zeros_like(initial).scatter_(1, support, weights.squeeze(-1))


def _ours(function: Callable, backend: str) -> Callable:
    def prepare(signals, dictionary, sparsity, threads):
        def run():
            set_backend(backend)
            return function(signals, dictionary, sparsity)

        return run

    return prepare


def _batch_omp(signals, dictionary, sparsity, threads):
    return lambda: batch_omp(signals, dictionary, sparsity)


def _spams(signals, dictionary, sparsity, threads):
    from spams import omp as spams_omp

    columns, atoms = np.asfortranarray(signals.numpy().T), np.asfortranarray(dictionary.numpy())
    return lambda: spams_omp(columns, atoms, L=sparsity, eps=0.0, numThreads=threads)


def _scikit_learn(signals, dictionary, sparsity, threads):
    from sklearn.decomposition import sparse_encode

    rows, atoms = signals.numpy(), np.ascontiguousarray(dictionary.numpy().T)
    return lambda: sparse_encode(rows, atoms, algorithm="omp", n_nonzero_coefs=sparsity, n_jobs=threads)


def _batched_naive(signals, dictionary, sparsity, threads):
    from orthogonal_matching_pursuit_gpu import run_omp

    return lambda: run_omp(dictionary, signals, sparsity, normalize=False, fit_intercept=False, alg="naive")


def _batched_blas(signals, dictionary, sparsity, threads):
    from orthogonal_matching_pursuit_gpu import omp_v0_blas

    rows, atoms = signals.double().numpy(), dictionary.double().numpy()

    def run():
        indices, coefficients = omp_v0_blas(atoms, rows, sparsity)
        return torch.from_numpy(indices), torch.from_numpy(coefficients).squeeze(-1)

    return run


def _package(name: str) -> Callable:
    return lambda: requires(name, "benchmark")


CODERS = (
    *(Coder(f"omp, {name}", "omp", _ours(omp, name), lambda name=name: set_backend(name)) for name in BACKENDS),
    *(Coder(f"ols, {name}", "ols", _ours(ols, name), lambda name=name: set_backend(name)) for name in BACKENDS),
    Coder(SPAMS, "ols", _spams, _package("spams")),
    Coder("omp-gpu naive", "omp", _batched_naive, _package("orthogonal_matching_pursuit_gpu")),
    Coder("omp-gpu v0_blas, float64", "omp", _batched_blas, _package("orthogonal_matching_pursuit_gpu")),
    Coder("Batch-OMP, Algorithm 1", "omp", _batch_omp, lambda: None),
    Coder("scikit-learn", "omp", _scikit_learn, _package("sklearn"), per_signal=True),
)


def sparse_codes(output: Any, sparsity: int, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """
    The first codes of what an implementation returned, in the form of ours.

    Args:
        output (`Any`): Pair of indices and coefficients `(N, S)`, sparse columns `(K, N)` or dense rows `(N, K)`.
        sparsity (`int`): Slots S of a signal.
        count (`int`): Number of signals n that are wanted.

    Returns:
        `tuple[torch.Tensor, torch.Tensor]`: Indices `(n, S)`, −1 in unused slots, and coefficients `(n, S)`, float64.
    """
    if isinstance(output, tuple):
        return output[0][:count].long(), output[1][:count].double()
    if hasattr(output, "indptr"):
        output = output[:, :count].toarray().T
    dense = torch.as_tensor(output[:count]).double()
    size = dense.abs()
    indices = torch.where(size.isnan(), math.inf, size).topk(min(sparsity, dense.shape[1]), dim=1).indices
    coefficients = dense.gather(1, indices)
    return torch.where(coefficients == 0, -1, indices), coefficients


def output_bytes(output: Any) -> int:
    """Size of what an implementation returned, in its own form."""
    if isinstance(output, tuple):
        return sum(part.nbytes for part in output)
    if hasattr(output, "indptr"):
        return output.indptr.nbytes + output.indices.nbytes + output.data.nbytes
    return output.nbytes


def greedy_reference(
    signals: torch.Tensor, dictionary: torch.Tensor, sparsity: int, selection: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    OMP or OLS in float64, refitted at each step by a fresh QR decomposition of the chosen atoms.

    Args:
        signals (`torch.Tensor` of shape `(n, L)`): Signals.
        dictionary (`torch.Tensor` of shape `(L, K)`): Unit-norm atoms as columns.
        sparsity (`int`): Atoms a signal; steps beyond L do nothing.
        selection (`str`): `"omp"`: largest |dᵀr|; `"ols"`: largest |dᵀr| / ‖(I − P) d‖.

    Returns:
        `tuple[torch.Tensor, torch.Tensor]`: Supports `(n, S)` in order of selection, −1 in unused slots, and norms
        `(n,)` of the residuals.
    """
    signals, atoms = signals.double(), dictionary.double()
    residual = signals
    outside = torch.ones(len(signals), atoms.shape[1], dtype=torch.float64)  # ‖(I − P) d‖², of every atom
    supports = torch.full((len(signals), sparsity), -1)
    for step in range(min(sparsity, atoms.shape[0], atoms.shape[1])):
        score = (residual @ atoms).square()
        if selection == "ols":
            score = score / outside.clamp_min(1e-12)
        score[outside < 1e-10] = -1.0  # the chosen atoms, and those that depend on them
        supports[:, step] = score.argmax(dim=1)
        basis = torch.linalg.qr(atoms.t()[supports[:, : step + 1]].transpose(1, 2)).Q  # (n, L, s)
        residual = signals - (basis @ (basis.transpose(1, 2) @ signals.unsqueeze(-1))).squeeze(-1)
        outside -= (basis[:, :, -1] @ atoms).square()
    return supports, residual.norm(dim=1)


def judge(
    codes: tuple[torch.Tensor, torch.Tensor],
    reference: tuple[torch.Tensor, torch.Tensor],
    signals: torch.Tensor,
    dictionary: torch.Tensor,
) -> dict[str, float | int | None]:
    """
    How good codes are, beside the float64 reference of the same selection.

    Signals that the reference codes exactly (residual within 1e-6 of the signal's norm) are left out, as their last
    atoms are chosen by rounding.

    Args:
        codes (`tuple`): Indices and coefficients, as `sparse_codes` returns them; n signals or fewer.
        reference (`tuple`): Supports and norms of residuals, as `greedy_reference` returns them.
        signals (`torch.Tensor` of shape `(n, L)`): Signals.
        dictionary (`torch.Tensor` of shape `(L, K)`): Unit-norm atoms as columns.

    Returns:
        `dict`: `checked` signals; `not_finite` of them with NaN or infinite residual; `support_agreement`, the share
        whose set of atoms is the reference's; `excess_mean` and `excess_max` of ‖y − Dγ‖ / reference − 1, and
        `relative_residual`, the mean of ‖y − Dγ‖ / ‖y‖, over the finite ones (`None` where there is none).
    """
    indices, coefficients = codes
    count = len(indices)
    supports, smallest = (part[:count] for part in reference)
    signals, rows = signals[:count].double(), dictionary.t().double()
    residual = (signals - (rows[indices.clamp_min(0)] * coefficients.unsqueeze(-1)).sum(dim=1)).norm(dim=1)
    norm = signals.norm(dim=1)
    kept = smallest > EXACT * norm
    finite = kept & residual.isfinite()
    same = (indices.sort(dim=1).values == supports.sort(dim=1).values).all(dim=1) & finite
    excess = residual[finite] / smallest[finite] - 1
    some = bool(finite.any())
    return {
        "checked": int(kept.sum()),
        "not_finite": int((kept & ~finite).sum()),
        "support_agreement": same.sum().item() / kept.sum().item() if kept.any() else None,
        "excess_mean": excess.mean().item() if some else None,
        "excess_max": excess.max().item() if some else None,
        "relative_residual": (residual / norm)[finite].mean().item() if some else None,
    }
