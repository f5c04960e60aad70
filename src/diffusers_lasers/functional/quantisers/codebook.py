r"""Vector quantisation with running-mean codebooks.

A codebook of K codewords \(e_k \in \mathbb{R}^L\) codes a signal by its nearest codeword (LASERS, 2024, eqs 1–2). It is
learned by exponential moving averages of the count \(N_k\) and the sum \(m_k\) of the signals assigned to each codeword
(van den Oord et al., 2017, appendix A.1),

    N_k ← λ N_k + (1 − λ) n_k,    m_k ← λ m_k + (1 − λ) Σ_{assigned} y,    e_k = m_k / N_k .

A codeword is dead if its count falls below a share of the mean count. It restarts at a random signal. Its statistics
are reset, so that the next average does not pull it back (espnet/espnet#6284 shows what happens otherwise).
"""

from __future__ import annotations

import torch
from torch.nn import functional as F

from ..kernels.codewords import fused_nearest_codewords
from ..kernels.operators import uses_fused
from ..operands import as_tensor, check_indices, check_operands


__all__ = ["codeword_statistics", "kmeans", "nearest_codewords", "update_codebook", "with_costs"]

_BLOCK_ELEMENTS = 2**26  # distances held at a time (signals × codewords)


def nearest_codewords(signals: torch.Tensor, codebook: torch.Tensor) -> torch.Tensor:
    """
    Index of the nearest codeword in Euclidean distance (LASERS, 2024, eq 1); the first one on ties.

    Args:
        signals (`torch.Tensor` or `numpy.ndarray` of shape `(N, features)`): Signals; N may be 0.
        codebook (`torch.Tensor` or `numpy.ndarray` of shape `(codewords, features)`): Codewords as rows, of the
            signals' type.

    Returns:
        `torch.Tensor` of shape `(N,)`: Indices, int64.

    Raises:
        ValueError: If the two are not floating-point matrices of the same type, device and number of features, or if
            there is no codeword.
    """
    signals, codebook = as_tensor("signals", signals).detach(), as_tensor("codebook", codebook).detach()
    check_operands(signals=(signals, "N features"), codebook=(codebook, "codewords features"))
    if uses_fused(signals) and uses_fused(codebook):
        return fused_nearest_codewords(signals, codebook.unsqueeze(0)).squeeze(1)
    half_norms = codebook.square().sum(dim=1) / 2
    blocks = signals.split(max(1, _BLOCK_ELEMENTS // codebook.shape[0]))
    return torch.cat([torch.addmm(half_norms, y, codebook.t(), alpha=-1.0).min(dim=1).indices for y in blocks])


def with_costs(
    signals: torch.Tensor, codebooks: torch.Tensor, costs: torch.Tensor, together: bool = True
) -> tuple[torch.Tensor, torch.Tensor]:
    r"""
    Appends features that make a codeword's cost a part of its squared distance. Any search for the nearest codeword, or
    for the nearest sum of one codeword of each stage, then minimises the squared error plus the costs.

    Stage j has a feature of its own, where signals have 0 and codeword k has \(\sqrt{cost_{jk}}\). A sum of codewords
    has such a root in each of these features, which adds \(\sum_j cost_{jk_j}\) to its squared distance. The parts of a
    product quantiser are searched one by one: one feature a part is enough.

    Args:
        signals (`torch.Tensor` of shape `(N, n)`; of a product quantiser `(N, m·n)`): Signals.
        codebooks (`torch.Tensor` of shape `(m, codewords, n)`): One codebook for each stage, or part.
        costs (`torch.Tensor` of shape `(m, codewords)`): Costs, at least 0, in units of the squared error.
        together (`bool`, defaults to `True`): Whether the codewords of all stages are added up, or those of a product
            quantiser stand side by side.

    Returns:
        `tuple[torch.Tensor, torch.Tensor]`: Signals `(N, n + m)` and codebooks `(m, codewords, n + m)`; of a product
        quantiser `(N, m·(n + 1))` and `(m, codewords, n + 1)`.
    """
    if not together:
        parts = F.pad(signals.unflatten(1, (len(costs), -1)), (0, 1))
        return parts.flatten(1), torch.cat([codebooks, costs.sqrt().unsqueeze(2)], 2)
    return F.pad(signals, (0, len(costs))), torch.cat(
        [codebooks, torch.diag_embed(costs.sqrt().t()).transpose(0, 1)], 2
    )


def codeword_statistics(
    signals: torch.Tensor, indices: torch.Tensor, codewords: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Count and sum of the signals assigned to each codeword.

    Args:
        signals (`torch.Tensor` of shape `(N, features)`): Signals.
        indices (`torch.Tensor` of shape `(N,)`): Codeword of each, int64.
        codewords (`int`): Number of codewords.

    Returns:
        `tuple[torch.Tensor, torch.Tensor]`: Counts `(codewords,)` and sums `(codewords, features)`, in the dtype of
        `signals`.

    Raises:
        ValueError: If the shapes or types do not fit or, on the CPU and outside `torch.compile`, an index is out of
            range.
    """
    check_operands(signals=(signals, "N features"))
    if isinstance(codewords, bool) or not isinstance(codewords, int) or not 1 <= codewords < 2**31:
        raise ValueError(f"`codewords` must be an integer from 1 to 2³¹ − 1, got {codewords!r}.")
    check_indices("indices", indices, codewords, of="codewords")
    if indices.shape != signals.shape[:1] or indices.device != signals.device:
        raise ValueError(
            f"`indices` must have shape ({signals.shape[0]},) on {signals.device}, got {tuple(indices.shape)} on "
            f"{indices.device}."
        )
    indices = indices.long()
    counts = signals.new_zeros(codewords).index_add_(0, indices, signals.new_ones(signals.shape[0]))
    sums = signals.new_zeros(codewords, signals.shape[1]).index_add_(0, indices, signals)
    return counts, sums


def update_codebook(
    running_counts: torch.Tensor,
    running_sums: torch.Tensor,
    counts: torch.Tensor,
    sums: torch.Tensor,
    candidates: torch.Tensor,
    decay: float,
    dead_share: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """
    One step of the running-mean codebook, with revival of dead codewords.

    Args:
        running_counts (`torch.Tensor` of shape `(codewords,)`): N_k before the step.
        running_sums (`torch.Tensor` of shape `(codewords, features)`): m_k before the step.
        counts (`torch.Tensor` of shape `(codewords,)`): n_k of this batch (over all ranks).
        sums (`torch.Tensor` of shape `(codewords, features)`): Sums of this batch (over all ranks).
        candidates (`torch.Tensor` of shape `(codewords, features)`): Signals of this batch. If codeword k is dead, it
            restarts at the k-th one.
        decay (`float`): λ, in [0, 1).
        dead_share (`float`): A codeword is dead if N_k is below this share of the mean of N. 0 disables revival.

    Returns:
        `tuple[torch.Tensor, torch.Tensor, torch.Tensor]`: The new counts, sums and codebook.
    """
    running_counts = decay * running_counts + (1 - decay) * counts
    running_sums = decay * running_sums + (1 - decay) * sums
    mean = running_counts.mean()
    dead = running_counts < dead_share * mean
    restart = (10 * dead_share * mean).clamp_max(mean)  # enough for about ln(10) / (1 − λ) steps without a signal
    running_counts = torch.where(dead, restart, running_counts)
    running_sums = torch.where(dead.unsqueeze(1), candidates * restart, running_sums)
    # Without revival an unused codeword does not move. Its count and sum must not vanish, so they are scaled up.
    lift = (1e-6 * mean / running_counts).clamp_min(1)
    running_counts, running_sums = running_counts * lift, running_sums * lift.unsqueeze(1)
    return running_counts, running_sums, running_sums / running_counts.unsqueeze(1)


def kmeans(
    signals: torch.Tensor, codewords: int, iterations: int = 10, generator: torch.Generator | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Lloyd's algorithm. It starts from distinct random signals. A codeword without signals restarts at a random signal.

    Args:
        signals (`torch.Tensor` of shape `(N, features)`): Signals, N ≥ 1. They are repeated if N < `codewords`.
        codewords (`int`): Number of codewords.
        iterations (`int`, defaults to 10): Number of assignments and means, at least 0.
        generator (`torch.Generator`, *optional*): Source of randomness, on the CPU or the signals' device.

    Returns:
        `tuple[torch.Tensor, torch.Tensor]`: The codebook `(codewords, features)` and the counts `(codewords,)` of its
        last assignment.

    Raises:
        ValueError: If `signals` is not a floating-point matrix with at least one row and one column, or a number is
            out of range.
    """
    if check_operands(signals=(signals, "N features"))["N"] == 0:
        raise ValueError("`signals` must hold at least one signal, got none.")
    for name, value, least in (("codewords", codewords, 1), ("iterations", iterations, 0)):
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ValueError(f"`{name}` must be an integer of at least {least}, got {value!r}.")
    device = signals.device if generator is None else generator.device

    def draw() -> torch.Tensor:
        order = torch.randperm(signals.shape[0], generator=generator, device=device)
        repeats = -(-codewords // signals.shape[0])
        return signals[order.repeat(repeats)[:codewords].to(signals.device)]

    codebook = draw()
    for _ in range(iterations):
        counts, sums = codeword_statistics(signals, nearest_codewords(signals, codebook), codewords)
        codebook = torch.where(counts.unsqueeze(1) > 0, sums / counts.clamp_min(1).unsqueeze(1), draw())
    counts, _ = codeword_statistics(signals, nearest_codewords(signals, codebook), codewords)
    return codebook, counts
