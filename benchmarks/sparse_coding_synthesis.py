"""Times signals from codes: `synthesize` and its gradients, beside `F.embedding_bag` and the coding itself."""

from __future__ import annotations

import statistics

import torch
from sparse_coding_cases import Case
from sparse_coding_machine import interleaved
from torch.nn import functional as F
from tqdm import tqdm

from diffusers_lasers.functional import omp, set_backend, synthesize


def time_synthesis(case: Case, backends: list[str], rounds: int) -> dict[str, dict[str, float]]:
    """
    Seconds of `synthesize` and its gradients, beside `F.embedding_bag` and the forward `omp` of the same backend.

    Returns:
        `dict[str, dict[str, float]]`: For each backend, and for `F.embedding_bag`: medians of `forward`, of forward
        and backward to the `dictionary`, and to `both` dictionary and coefficients; and `omp`, which the peer has from
        the torch backend.
    """
    signals, dictionary = case.load()
    set_backend("torch")
    indices, coefficients = omp(signals, dictionary, case.sparsity)
    upstream, slots = torch.randn_like(signals), indices.clamp_min(0)

    def bag(atoms, weights):
        return F.embedding_bag(slots, atoms, per_sample_weights=weights, mode="sum")

    def task(backend, decode, atoms, leaves):
        leaf = atoms.clone().requires_grad_(leaves > 0)
        weights = coefficients.clone().requires_grad_(leaves > 1)

        def run():
            set_backend(backend)
            output = decode(leaf, weights)
            return torch.autograd.grad(output, [leaf, weights][:leaves], upstream) if leaves else output

        return run

    def code(backend):
        set_backend(backend)
        return omp(signals, dictionary, case.sparsity)

    def ours(atoms, weights):
        return synthesize(indices, weights, atoms)

    steps = ("forward", "dictionary", "both")
    tasks = {}
    for backend in backends:
        tasks[backend, "omp"] = lambda backend=backend: code(backend)
        tasks.update({(backend, step): task(backend, ours, dictionary, n) for n, step in enumerate(steps)})
    rows = dictionary.t().contiguous()
    tasks.update({("F.embedding_bag", step): task("torch", bag, rows, n) for n, step in enumerate(steps)})
    for run in tasks.values():
        run()
    with tqdm(total=len(tasks) * rounds, desc=f"synthesis, case {case.name}", leave=False) as bar:
        times = interleaved(tasks, rounds, bar)
    table: dict[str, dict[str, float]] = {}
    for (name, step), measured in times.items():
        table.setdefault(name, {})[step] = statistics.median(measured)
    table["F.embedding_bag"]["omp"] = table["torch"]["omp"]
    return table
