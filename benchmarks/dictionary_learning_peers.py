"""Online dictionary learning, ours and others', behind one signature, for `benchmark_dictionary_learning.py`.

A learner is prepared on a `Task` (conversions are not timed) and then called with a number of minibatches; it returns
a dictionary `(features, atoms)`. What to watch in the others:

* SPAMS, `trainDL` with `mode=3` (at most `lambda1` atoms a signal) and the start given as `D`. Its coder is orthogonal
  least squares, so that its peer is our `ols`; it draws its own fixed order of the signals. Besides, it lets atoms be
  shorter than 1, forgets everything older than two passes, and replaces unused and repeated atoms by random signals.
  Where its `omp` fails silently in float32 (`sparse_coding_peers.py`), `trainDL` was right; both precisions are rows,
  so that a failure would show.
* scikit-learn, `MiniBatchDictionaryLearning`, learns with an ℓ₁ penalty only. Its `alpha` is found by bisection such
  that the start codes a signal with S atoms on average, and its dictionary is judged, as all are, with S atoms a
  signal. `fit_algorithm="cd"`, the faster of the two, and `partial_fit` on the minibatches of a shuffled order, since
  `fit` stops at whole passes only.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from diffusers_lasers import OnlineDictionaryLearner
from diffusers_lasers.utils.import_utils import requires


ALPHA_SIGNALS = 300  # by which scikit-learn's penalty is set
ALPHA_STEPS = 12


@dataclass(frozen=True)
class Task:
    """What to learn from: float32 `signals (N, L)`, `start (L, K)` with unit atoms, S = `sparsity`, minibatches."""

    signals: torch.Tensor
    start: torch.Tensor
    sparsity: int
    batch_size: int
    threads: int
    seed: int


Fit = Callable[[int], torch.Tensor]


def _ours(task: Task, **arguments) -> Fit:
    arguments = {"init": task.start, "seed": task.seed, **arguments}
    atoms = task.start.shape[1]

    def fit(steps: int) -> torch.Tensor:
        learner = OnlineDictionaryLearner(atoms, task.sparsity, task.batch_size, **arguments)
        return learner.fit(task.signals, steps=steps, progress=False).dictionary

    return fit


def _spams(task: Task, dtype: type) -> Fit:
    spams = requires("spams", "benchmark")
    columns, start = (np.asfortranarray(matrix.numpy(), dtype=dtype) for matrix in (task.signals.t(), task.start))

    def fit(steps: int) -> torch.Tensor:
        dictionary = spams.trainDL(
            columns,
            D=start.copy(order="F"),
            mode=3,
            lambda1=task.sparsity,
            batchsize=task.batch_size,
            iter=steps,
            numThreads=task.threads,
            verbose=False,
        )
        return torch.from_numpy(np.ascontiguousarray(dictionary))

    return fit


@contextlib.contextmanager
def unconverged_ignored():
    """Hides the warning of scikit-learn, at nearly every minibatch, that a coder did not reach its tolerance."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", requires("sklearn.exceptions", "benchmark").ConvergenceWarning)
        yield


def lasso_penalty(task: Task) -> float:
    """The `alpha` with which the start codes a signal with S atoms on average."""
    decomposition = requires("sklearn.decomposition", "benchmark")
    signals, atoms = task.signals[:ALPHA_SIGNALS].numpy(), np.ascontiguousarray(task.start.numpy().T)
    low, high = 0.0, float(np.abs(signals @ atoms.T).max())
    for _ in range(ALPHA_STEPS):
        alpha = (low + high) / 2
        with unconverged_ignored():
            codes = decomposition.sparse_encode(signals, atoms, algorithm="lasso_cd", alpha=alpha)
        low, high = (alpha, high) if (codes != 0).sum(axis=1).mean() > task.sparsity else (low, alpha)
    return high


def _scikit_learn(task: Task) -> Fit:
    decomposition = requires("sklearn.decomposition", "benchmark")
    signals, alpha = task.signals.numpy(), lasso_penalty(task)

    def fit(steps: int) -> torch.Tensor:
        model = decomposition.MiniBatchDictionaryLearning(
            n_components=task.start.shape[1],
            alpha=alpha,
            fit_algorithm="cd",
            batch_size=task.batch_size,
            dict_init=np.ascontiguousarray(task.start.numpy().T),
            n_jobs=task.threads,
            random_state=task.seed,
        )
        random, order = np.random.default_rng(task.seed), np.empty(0, np.int64)
        with unconverged_ignored():
            for _ in range(steps):
                if len(order) == 0:
                    order = random.permutation(len(signals))
                model.partial_fit(signals[order[: task.batch_size]])
                order = order[task.batch_size :]
        return torch.from_numpy(model.components_.T.copy())

    return fit


LEARNERS: dict[str, Callable[[Task], Fit]] = {
    "omp": _ours,
    "ols": partial(_ours, pursuit="ols"),
    "omp, own start": partial(_ours, init="signals"),
    "SPAMS, float64": partial(_spams, dtype=np.float64),
    "SPAMS, float32": partial(_spams, dtype=np.float32),
    "scikit-learn": _scikit_learn,
}
# What the defaults of our learner are worth: one of them changed.
VARIANTS: dict[str, Callable[[Task], Fit]] = {
    "omp, random start": partial(_ours, init="random"),
    "omp, forgetting 0": partial(_ours, forgetting=0.0),
    "omp, forgetting 1": partial(_ours, forgetting=1.0),
    "omp, forgetting 2": partial(_ours, forgetting=2.0),
    "omp, forgetting 8": partial(_ours, forgetting=8.0),
    "omp, no revival": partial(_ours, revive_every=0),
    "omp, own start, no revival": partial(_ours, init="signals", revive_every=0),
    "omp, own start, revival every 10": partial(_ours, init="signals", revive_every=10),
}
