"""Compiled kernels for float32 on the CPU, behind custom operators of torch, and the choice between them and tensor operations.

`csrc/` has the kernels' source, with the mathematics. They are an optional extension: where no C compiler was at hand when the package
was installed, everything runs in tensor operations. An operator has a fake implementation, so that `torch.compile(fullgraph=True)` and
`torch.export` keep it as one node. The kernels hold no state between calls: they may be called from several threads, after a fork and in
data-loader workers, and use as many threads as `torch.get_num_threads()` says – torch's own where it runs on GNU's OpenMP.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import torch
from torch.nn import functional as F

from .arguments import unit_atoms
from .greedy_torch import greedy_pursuit_torch


try:
    from . import _kernels
except ImportError:
    _kernels = None

__all__ = ["get_backend", "set_backend"]


def _openmp_entry() -> int:
    """Address of `GOMP_parallel` in the OpenMP library that torch has loaded for all to see; 0 where there is none, as on macOS."""
    try:
        entry = ctypes.CDLL(None).GOMP_parallel
    except (AttributeError, OSError, TypeError):
        return 0
    return ctypes.cast(entry, ctypes.c_void_p).value or 0


if _kernels is not None:
    _kernels.use_team(_openmp_entry())

_BACKENDS = ("auto", "torch", "fused")
_backend = "auto"

_PANEL = 32  # atoms of a panel of the packed dictionary, as in csrc/pursuit.h
_PADDING = 128  # to which the number of atoms is padded
_MAX_GRAM_ATOMS = 8192  # 256 MiB
_GRAM_FROM = 96  # features × sparsity from which the Gram form is the faster one
_MAX_WORKSPACE = 2**24  # bytes that a thread may hold; larger problems take tensor operations
_PRODUCTS_PER_THREAD = 2**21  # multiply-adds below which another thread costs more than it brings
_LOADS_PER_THREAD = 2**17  # the same for values that are only read and added


def set_backend(backend: str) -> None:
    """
    Chooses what sparse coding runs on, for the whole process.

    Args:
        backend (`str`): `"auto"`, the default, takes the compiled kernels where they exist and apply (float32 on the CPU), and tensor
            operations elsewhere. `"torch"` takes tensor operations everywhere, `"fused"` is `"auto"` that insists on the kernels being there.

    Raises:
        ValueError: If there is no such backend.
        ImportError: If `"fused"` is asked for and the extension was not built.
    """
    global _backend
    if backend not in _BACKENDS:
        raise ValueError(f"`backend` must be one of {', '.join(map(repr, _BACKENDS))}, got {backend!r}.")
    if backend == "fused" and _kernels is None:
        raise ImportError(
            "The compiled kernels of diffusers_lasers are not there: they are built when the package is installed, where a C compiler is."
        )
    _backend = backend


def get_backend() -> str:
    """
    What sparse coding on float32 CPU tensors runs on.

    Returns:
        `str`: `"fused"` or `"torch"`.
    """
    return "fused" if _kernels is not None and _backend != "torch" else "torch"


def uses_fused(tensor: torch.Tensor) -> bool:
    """Whether the compiled kernels apply to `tensor` under the present backend."""
    return tensor.device.type == "cpu" and tensor.dtype == torch.float32 and get_backend() == "fused"


def fused_greedy_pursuit(
    signals: torch.Tensor, dictionary: torch.Tensor, sparsity: int, tolerance: float | None, orthogonal: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """OMP, or OLS where `orthogonal`, of float32 tensors on the CPU; arguments and result as those of `greedy_pursuit_torch`."""
    if _workspace(*dictionary.shape, sparsity) > _MAX_WORKSPACE:
        return greedy_pursuit_torch(signals, dictionary, sparsity, tolerance, orthogonal)
    return _greedy_pursuit(signals, dictionary, sparsity, -1.0 if tolerance is None else float(tolerance), orthogonal)


def _workspace(features: int, count: int, sparsity: int) -> int:
    """Bytes that a thread of either form holds at most."""
    width = count + _PADDING
    lanes = 32 * (features * (2 + sparsity) + sparsity * (sparsity + 5) // 2 + 2 * width)
    gram = 32 * (features + width) + 2 * (sparsity * (features + width + sparsity) + 2 * width)
    return 4 * max(lanes, gram)


@torch.library.custom_op("diffusers_lasers::greedy_pursuit", mutates_args=(), device_types="cpu")
def _greedy_pursuit(
    signals: torch.Tensor, dictionary: torch.Tensor, sparsity: int, tolerance: float, orthogonal: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    (n, features), count = signals.shape, dictionary.shape[1]
    atoms, scale = unit_atoms(dictionary)
    if not torch.isfinite(scale).all():
        return signals.new_full((n, sparsity), -1, dtype=torch.int64), signals.new_full((n, sparsity), float("nan"))
    width = -(-count // _PADDING) * _PADDING
    wide = atoms if width == count else F.pad(atoms, (0, width - count))
    packed = wide.view(features, width // _PANEL, _PANEL).transpose(0, 1).contiguous()
    rows, signals = atoms.t().contiguous(), signals.contiguous()
    gram = None
    if features * sparsity > _GRAM_FROM and 1 < sparsity and n >= count // 2 and count <= _MAX_GRAM_ATOMS:
        gram = signals.new_empty(count, width)
    indices = signals.new_empty(n, sparsity, dtype=torch.int64)
    coefficients = signals.new_empty(n, sparsity)
    threads = min(torch.get_num_threads(), 1 + n * sparsity * count * features // _PRODUCTS_PER_THREAD)
    _kernels.pursue(
        signals.data_ptr(),
        rows.data_ptr(),
        packed.data_ptr(),
        scale.data_ptr(),
        0 if gram is None else gram.data_ptr(),
        indices.data_ptr(),
        coefficients.data_ptr(),
        n,
        features,
        count,
        width // _PANEL,
        sparsity,
        tolerance,
        int(orthogonal),
        threads,
    )
    return indices, coefficients


@_greedy_pursuit.register_fake
def _(signals, dictionary, sparsity, tolerance, orthogonal):
    shape = (signals.shape[0], sparsity)
    return signals.new_empty(shape, dtype=torch.int64), signals.new_empty(shape)


def fused_synthesis_gradients(
    gradient: torch.Tensor,
    indices: torch.Tensor,
    coefficients: torch.Tensor,
    dictionary: torch.Tensor,
    wants_coefficients: bool,
    wants_dictionary: bool,
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """
    Gradients of `synthesize` for float32 tensors on the CPU; the same bits whatever the number of threads.

    Args:
        gradient (`torch.Tensor` of shape `(N, features)`): Gradient of the loss with respect to the signals.
        indices (`torch.Tensor` of shape `(N, sparsity)`): Atom of each slot, int64; −1 marks an unused slot.
        coefficients (`torch.Tensor` of shape `(N, sparsity)`): Their coefficients.
        dictionary (`torch.Tensor` of shape `(features, atoms)`): Atoms as columns.
        wants_coefficients (`bool`): Whether to compute the first result.
        wants_dictionary (`bool`): Whether to compute the second.

    Returns:
        `tuple[torch.Tensor | None, torch.Tensor | None]`: Gradients to the coefficients `(N, sparsity)` and to the dictionary.
    """
    to_coefficients, to_rows = _synthesis_gradients(
        gradient, indices, coefficients, dictionary, wants_coefficients, wants_dictionary
    )
    return to_coefficients if wants_coefficients else None, to_rows.t() if wants_dictionary else None


@torch.library.custom_op("diffusers_lasers::synthesis_gradients", mutates_args=(), device_types="cpu")
def _synthesis_gradients(
    gradient: torch.Tensor,
    indices: torch.Tensor,
    coefficients: torch.Tensor,
    dictionary: torch.Tensor,
    wants_coefficients: bool,
    wants_dictionary: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    (features, count), (n, sparsity) = dictionary.shape, indices.shape
    gradient, indices, coefficients = gradient.contiguous(), indices.long().contiguous(), coefficients.contiguous()
    if indices.numel() >= 2**31:
        raise ValueError(f"`indices` must have fewer than 2³¹ slots, got {indices.numel()}.")
    if indices.numel() and int(indices.max()) >= count:  # the kernel does not look
        raise ValueError(f"`indices` must be below the number of atoms ({count}), got {int(indices.max())}.")
    rows = dictionary.t().contiguous()
    to_coefficients = gradient.new_empty((n, sparsity) if wants_coefficients else 0)
    to_rows = gradient.new_empty((count, features) if wants_dictionary else 0)
    _kernels.synthesis_gradients(
        gradient.data_ptr(),
        indices.data_ptr(),
        coefficients.data_ptr(),
        rows.data_ptr(),
        to_rows.data_ptr() if wants_dictionary else 0,
        to_coefficients.data_ptr() if wants_coefficients else 0,
        n,
        features,
        count,
        sparsity,
        min(torch.get_num_threads(), 1 + n * sparsity * features // _PRODUCTS_PER_THREAD),
    )
    return to_coefficients, to_rows


@_synthesis_gradients.register_fake
def _(gradient, indices, coefficients, dictionary, wants_coefficients, wants_dictionary):
    return (
        gradient.new_empty(indices.shape if wants_coefficients else 0),
        gradient.new_empty((dictionary.shape[1], dictionary.shape[0]) if wants_dictionary else 0),
    )


def fused_block_update(
    rows: torch.Tensor, residual: torch.Tensor, coupling: torch.Tensor, inverse: torch.Tensor
) -> None:
    """
    Updates the atoms of a block in sequence, in place; `block_coordinate_update` says what the arguments are. Float32 on the CPU; `rows`,
    `residual` and `inverse` contiguous; `inverse` is 0 for atoms that stay.
    """
    _block_update(rows, residual, coupling if coupling.stride(1) == 1 else coupling.contiguous(), inverse)


@torch.library.custom_op("diffusers_lasers::block_update", mutates_args=("rows",), device_types="cpu")
def _block_update(rows: torch.Tensor, residual: torch.Tensor, coupling: torch.Tensor, inverse: torch.Tensor) -> None:
    _kernels.block_update(
        rows.data_ptr(), residual.data_ptr(), coupling.data_ptr(), inverse.data_ptr(), *rows.shape, coupling.stride(0)
    )


@_block_update.register_fake
def _(rows, residual, coupling, inverse):
    return None


@torch.library.custom_op("diffusers_lasers::nearest_codewords", mutates_args=(), device_types="cpu")
def fused_nearest_codewords(signals: torch.Tensor, codebooks: torch.Tensor) -> torch.Tensor:
    """
    Nearest codewords of all parts of signals, float32 on the CPU, the first one on ties.

    Args:
        signals (`torch.Tensor` of shape `(N, m·d)`): Signals.
        codebooks (`torch.Tensor` of shape `(m, codewords, d)`): One codebook a part.

    Returns:
        `torch.Tensor` of shape `(N, m)`: Indices, int64.
    """
    n, (slots, count, features) = signals.shape[0], codebooks.shape
    signals = signals.contiguous()
    panels = -(-count // _PANEL)
    spare = panels * _PANEL - count
    wide = F.pad(codebooks, (0, 0, 0, spare)) if spare else codebooks
    packed = wide.reshape(slots, panels, _PANEL, features).transpose(2, 3).contiguous()
    offsets = F.pad(codebooks.square().sum(dim=2) / -2, (0, spare), value=-torch.inf)
    indices = signals.new_empty(n, slots, dtype=torch.int64)
    threads = min(torch.get_num_threads(), 1 + signals.numel() * count // _PRODUCTS_PER_THREAD)
    _kernels.nearest(
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
        width (`int`): Features of a signal. A channel whose codewords have as many adds them up; otherwise m·d is `width`, and they stand one after the other.

    Returns:
        `torch.Tensor` of shape `(channels, N, width)`: Signals.

    Raises:
        IndexError: If an index names no codeword.
    """
    n, slots = indices.shape
    indices, codebooks = indices.contiguous(), [book.contiguous() for book in codebooks]
    rows = torch.tensor([[book.data_ptr(), *book.shape] for book in codebooks])
    signals = codebooks[0].new_empty(len(codebooks), n, width)
    inside = _kernels.codewords(
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
        raise IndexError(
            f"`indices` must be below the codewords of their codebook and not negative, got {int(indices.min())} to {int(indices.max())}."
        )
    return signals


@fused_decode_codewords.register_fake
def _(indices, codebooks, width):
    return codebooks[0].new_empty(len(codebooks), indices.shape[0], width)
