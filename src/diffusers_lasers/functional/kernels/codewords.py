"""Compiled kernels of codebooks: nearest codewords, and signals from codewords. For float32 on the CPU; see
`operators.py` for how they run."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn import functional as F

from ..operands import check_slots
from . import operators


_LOADS_PER_THREAD = 2**17  # values to read and add for each thread; with fewer, another thread does not pay off


@torch.library.custom_op("diffusers_lasers::nearest_codewords", mutates_args=(), device_types="cpu")
def fused_nearest_codewords(signals: torch.Tensor, codebooks: torch.Tensor) -> torch.Tensor:
    """
    Nearest codewords of all parts of signals, the first one on ties. Float32 on the CPU.

    Args:
        signals (`torch.Tensor` of shape `(N, m·d)`): Signals.
        codebooks (`torch.Tensor` of shape `(m, codewords, d)`): One codebook for each part.

    Returns:
        `torch.Tensor` of shape `(N, m)`: Indices, int64.

    Raises:
        ValueError: If the tensors do not fit.
    """
    sizes = operators.compiled_operands(codebooks=(codebooks, "m codewords d"), signals=(signals, "N features"))
    n, slots, count, features = sizes["N"], sizes["m"], sizes["codewords"], sizes["d"]
    if sizes["features"] != slots * features:
        raise ValueError(f"`signals` must have shape (N, {slots * features}), got {tuple(signals.shape)}.")
    signals = signals.contiguous()
    panels = -(-count // operators.PANEL)
    spare = panels * operators.PANEL - count
    wide = F.pad(codebooks, (0, 0, 0, spare)) if spare else codebooks
    packed = wide.reshape(slots, panels, operators.PANEL, features).transpose(2, 3).contiguous()
    offsets = F.pad(codebooks.square().sum(dim=2) / -2, (0, spare), value=-torch.inf).contiguous()
    indices = signals.new_empty(n, slots, dtype=torch.int64)
    threads = min(torch.get_num_threads(), 1 + signals.numel() * count // operators.PRODUCTS_PER_THREAD)
    operators._kernels.nearest(
        signals.data_ptr(),
        packed.data_ptr(),
        offsets.data_ptr(),
        indices.data_ptr(),
        n,
        slots * features,
        slots,
        features,
        panels,
        threads,
    )
    return indices


@fused_nearest_codewords.register_fake
def _(signals, codebooks):
    return signals.new_empty(signals.shape[0], codebooks.shape[0], dtype=torch.int64)


@torch.library.custom_op("diffusers_lasers::decode_codewords", mutates_args=(), device_types="cpu")
def fused_decode_codewords(indices: torch.Tensor, codebooks: Sequence[torch.Tensor], width: int) -> torch.Tensor:
    """
    Signals of several channels from codewords, float32 on the CPU, without gradients.

    Args:
        indices (`torch.Tensor` of shape `(N, Σ m)`): Indices of all channels' slots, int64.
        codebooks (`Sequence[torch.Tensor]` of shapes `(m, codewords, d)`): The codebooks of each channel.
        width (`int`): Features of a signal. A channel whose codewords have d = `width` features adds them up.
            Otherwise m·d is `width`, and the codewords are concatenated.

    Returns:
        `torch.Tensor` of shape `(channels, N, width)`: Signals.

    Raises:
        ValueError: If the tensors do not fit or an index is out of range.
    """
    if not codebooks:
        raise ValueError("`codebooks` must hold the codebooks of at least one channel, got none.")
    slots = 0
    for book in codebooks:
        sizes = operators.compiled_operands(codebooks=(book, "m codewords d"))
        slots += sizes["m"]
        if width not in (sizes["d"], sizes["m"] * sizes["d"]):
            raise ValueError(
                f"`codebooks` must give signals of {width} features, got one of shape {tuple(book.shape)}."
            )
    check_slots(indices, slots, torch.int64)
    n = len(indices)
    indices, codebooks = indices.contiguous(), [book.contiguous() for book in codebooks]
    rows = torch.tensor([[book.data_ptr(), *book.shape] for book in codebooks], device="cpu")
    signals = codebooks[0].new_empty(len(codebooks), n, width)
    inside = operators._kernels.codewords(
        rows.data_ptr(),
        indices.data_ptr(),
        signals.data_ptr(),
        len(codebooks),
        n,
        slots,
        width,
        min(torch.get_num_threads(), 1 + n * slots * width // _LOADS_PER_THREAD),
    )
    if not inside:
        raise ValueError(
            "`indices` must be at least 0 and below the number of codewords of their codebook, got "
            f"{int(indices.min())} to {int(indices.max())}."
        )
    return signals


@fused_decode_codewords.register_fake
def _(indices, codebooks, width):
    return codebooks[0].new_empty(len(codebooks), indices.shape[0], width)
