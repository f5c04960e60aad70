r"""Quantisers that code a vector by several indices (Scribano et al., 2023, sections 3.1.1–3.1.3).

*Product* quantisation cuts the vector, rotated or not, into m parts of n / m entries and codes each by its nearest
codeword,

    E(x) = (E_1(x⁽¹⁾), …, E_m(x⁽ᵐ⁾)),    D(i) = (c_{i¹}, …, c_{iᵐ})                              (eqs 11–13)

(eq 12 slices by m where n / m is meant). Vector quantisation is the case m = 1. *Residual* quantisation adds up one
codeword of each stage, D(i) = Σ_j c_{iʲ}  (eqs 15–17). A beam search looks for the best sum. The products x · c and
those of codewords of different stages are kept in tables, so that the search only looks numbers up and adds them.
"""

from __future__ import annotations

import torch

from ..kernels.codewords import fused_decode_codewords, fused_nearest_codewords
from ..kernels.operators import uses_fused
from ..operands import check_indices, check_operands, is_integer
from .codebook import nearest_codewords


__all__ = ["decode_channels", "decode_product", "decode_residual", "encode_product", "encode_residual"]

_BLOCK_ELEMENTS = 2**22  # scores held at a time in a beam search


def _check(signals: torch.Tensor, product: bool, codebooks: torch.Tensor) -> None:
    sizes = check_operands(codebooks=(codebooks, "m codewords d"), signals=(signals, "N features"))
    features = sizes["d"] * (sizes["m"] if product else 1)
    if sizes["features"] != features:
        raise ValueError(f"`signals` must have shape (N, {features}), got {tuple(signals.shape)}.")


def _flat_indices(indices: torch.Tensor, codebooks: torch.Tensor, all_slots: bool) -> torch.Tensor:
    """Checks indices and turns them into rows `(N, m)` of the stacked codebooks. There, an index out of range would be
    a codeword of another slot."""
    sizes = check_operands(codebooks=(codebooks, "m codewords d"))
    slots, codewords = sizes["m"], sizes["codewords"]
    check_indices("indices", indices, codewords, of="codewords")
    fitting = indices.ndim == 2 and (indices.shape[1] == slots if all_slots else 1 <= indices.shape[1] <= slots)
    if not fitting or indices.device != codebooks.device:
        raise ValueError(
            f"`indices` must have shape (N, {'' if all_slots else '1 to '}{slots}) on {codebooks.device}, got "
            f"{tuple(indices.shape)} on {indices.device}."
        )
    return indices + codewords * torch.arange(indices.shape[1], device=indices.device)


def encode_product(signals: torch.Tensor, codebooks: torch.Tensor) -> torch.Tensor:
    """
    The nearest codeword of each part, the first one on ties.

    Args:
        signals (`torch.Tensor` of shape `(N, m·d)`): Signals.
        codebooks (`torch.Tensor` of shape `(m, codewords, d)`): One codebook for each part.

    Returns:
        `torch.Tensor` of shape `(N, m)`: Indices, int64.

    Raises:
        ValueError: If shapes, types or devices do not fit.
    """
    _check(signals, True, codebooks)
    if uses_fused(signals) and uses_fused(codebooks):
        return fused_nearest_codewords(signals.detach(), codebooks.detach())
    parts = signals.unflatten(1, (codebooks.shape[0], -1)).unbind(dim=1)
    return torch.stack([nearest_codewords(part, book) for part, book in zip(parts, codebooks)], dim=1)


def decode_product(indices: torch.Tensor, codebooks: torch.Tensor) -> torch.Tensor:
    """
    The concatenated codewords of all parts. Differentiable in the codebooks.

    Args:
        indices (`torch.Tensor` of shape `(N, m)`): Indices, int64.
        codebooks (`torch.Tensor` of shape `(m, codewords, d)`): One codebook for each part.

    Returns:
        `torch.Tensor` of shape `(N, m·d)`: Signals.

    Raises:
        ValueError: If the shapes or types do not fit or, on the CPU and outside `torch.compile`, an index is out of
            range.
    """
    flat = _flat_indices(indices, codebooks, all_slots=True)
    return torch.nn.functional.embedding(flat, codebooks.flatten(0, 1)).flatten(1)


def encode_residual(signals: torch.Tensor, codebooks: torch.Tensor, beam: int = 8) -> torch.Tensor:
    """
    Indices of codewords whose sum approximates the signal, found by beam search.

    Args:
        signals (`torch.Tensor` of shape `(N, n)`): Signals.
        codebooks (`torch.Tensor` of shape `(m, codewords, n)`): One codebook for each stage.
        beam (`int`, defaults to 8): Number of partial sums that are kept after each stage; 1 is the greedy search.

    Returns:
        `torch.Tensor` of shape `(N, m)`: Indices, int64.

    Raises:
        ValueError: If shapes, types or devices do not fit, or `beam` is below 1.
    """
    _check(signals, False, codebooks)
    if isinstance(beam, bool) or not isinstance(beam, int) or beam < 1:
        raise ValueError(f"`beam` must be an integer of at least 1, got {beam!r}.")
    stages, codewords, _ = codebooks.shape
    norms = codebooks.square().sum(dim=2)  # (m, K)
    # products[j][i, a, b] = 2 c_{i,a} · c_{j,b} for the stages i before j
    products = [2 * torch.einsum("iaf,bf->iab", codebooks[:j], codebooks[j]) for j in range(stages)]
    block = max(1, _BLOCK_ELEMENTS // (codewords * beam))
    return torch.cat([_beam_search(part, codebooks, norms, products, beam) for part in signals.split(block)])


def _beam_search(
    signals: torch.Tensor, codebooks: torch.Tensor, norms: torch.Tensor, products: list[torch.Tensor], beam: int
) -> torch.Tensor:
    """Indices `(n, m)`. The cost of a path is ‖x − Σ c‖² − ‖x‖²."""
    count, (stages, codewords, _) = len(signals), codebooks.shape
    costs = signals.new_zeros(count, 1)
    paths = torch.zeros(count, 1, 0, dtype=torch.int64, device=signals.device)
    for stage in range(stages):
        alone = norms[stage] - 2 * (signals @ codebooks[stage].t())  # (n, K)
        scores = costs.unsqueeze(2) + alone.unsqueeze(1)  # (n, beam, K)
        for earlier in range(stage):
            scores += products[stage][earlier][paths[:, :, earlier]]
        kept = min(beam if stage < stages - 1 else 1, scores.shape[1] * codewords)
        costs, chosen = scores.flatten(1).topk(kept, dim=1, largest=False)
        parents, words = chosen // codewords, chosen % codewords
        paths = torch.cat([paths.gather(1, parents.unsqueeze(2).expand(-1, -1, stage)), words.unsqueeze(2)], dim=2)
    return paths[:, 0]


def decode_residual(indices: torch.Tensor, codebooks: torch.Tensor) -> torch.Tensor:
    """
    The sum of the codewords of all stages. Differentiable in the codebooks.

    Args:
        indices (`torch.Tensor` of shape `(N, m)`): Indices of all stages, or of the first ones only; int64.
        codebooks (`torch.Tensor` of shape `(m, codewords, n)`): One codebook for each stage.

    Returns:
        `torch.Tensor` of shape `(N, n)`: Signals.

    Raises:
        ValueError: If the shapes or types do not fit or, on the CPU and outside `torch.compile`, an index is out of
            range.
    """
    flat = _flat_indices(indices, codebooks, all_slots=False)
    return torch.nn.functional.embedding_bag(flat, codebooks.flatten(0, 1), mode="sum")


def decode_channels(indices: torch.Tensor, codebooks: list[torch.Tensor], width: int) -> torch.Tensor:
    """
    Signals of several channels, each of which has some of the slots. Differentiable in the codebooks.

    The codewords of a channel are added up if they have as many features as a signal, and concatenated otherwise.

    Args:
        indices (`torch.Tensor` of shape `(N, Σ m)`): Indices of all channels' slots, int64.
        codebooks (`list[torch.Tensor]` of shapes `(m, codewords, d)`): The codebooks of each channel, with d = `width`
            or m·d = `width`.
        width (`int`): Features of a signal.

    Returns:
        `torch.Tensor` of shape `(channels, N, width)`: Signals.

    Raises:
        ValueError: If the shapes or types do not fit or, on the CPU and outside `torch.compile`, an index is out of
            range.
    """
    if not isinstance(codebooks, (list, tuple)):
        raise ValueError(f"`codebooks` must be a list of one tensor for each channel, got {type(codebooks).__name__}.")
    if not codebooks:
        raise ValueError("`codebooks` must hold the codebooks of at least one channel, got none.")
    for book in codebooks:
        check_operands(codebooks=(book, "m codewords d"))
        if not isinstance(width, int) or width not in (book.shape[2], book.shape[0] * book.shape[2]):
            raise ValueError(
                f"`codebooks` must give signals of {width} features, got one of shape {tuple(book.shape)}."
            )
    sizes = [book.shape[0] for book in codebooks]
    if not is_integer(indices) or indices.ndim != 2 or indices.shape[1] != sum(sizes):
        raise ValueError(
            f"`indices` must have shape (N, {sum(sizes)}) and be integers, got "
            f"{getattr(indices, 'dtype', type(indices).__name__)} of shape {tuple(getattr(indices, 'shape', ()))}."
        )
    differentiable = torch.is_grad_enabled() and any(book.requires_grad for book in codebooks)
    if indices.dtype == torch.int64 and not differentiable and all(map(uses_fused, codebooks)):
        return fused_decode_codewords(indices, codebooks, width)
    parts = zip(indices.split(sizes, dim=1), codebooks)
    return torch.stack(
        [(decode_residual if book.shape[2] == width else decode_product)(part, book) for part, book in parts]
    )
