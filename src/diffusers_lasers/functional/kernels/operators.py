"""Compiled kernels for float32 on the CPU as custom operators of torch, and the choice between them and tensor
operations.

The source of the kernels, with the mathematics, is in `csrc/`. They are an optional extension: if there was no C
compiler when the package was installed, everything runs in tensor operations. Each operator has a fake implementation,
so that `torch.compile(fullgraph=True)` and `torch.export` keep it as one node. The kernels keep no state between calls:
they may be called from several threads, after a fork and in data-loader workers. They use `torch.get_num_threads()`
threads, which are torch's own if torch runs on GNU's OpenMP (`threads.py`).
"""

from __future__ import annotations

import torch
from torch.nn import functional as F

from ..operands import Operand, check_indices, check_operands, check_slots, check_sparsity
from ..unit_atoms import unit_atoms
from .threads import openmp_entry


try:
    from . import _kernels
except ImportError:
    _kernels = None

__all__ = ["get_backend", "set_backend"]

if _kernels is not None:
    _kernels.use_team(openmp_entry())

_NOT_BUILT = (
    "The compiled kernels of diffusers_lasers are not installed: they are built when the package is installed with a C "
    "compiler."
)
_BACKENDS = ("auto", "torch", "fused")
_backend = "auto"

PANEL = 32  # atoms of a panel of the packed dictionary, as in csrc/pursuit.h
_PADDING = 128  # the number of atoms is padded to a multiple of this
_MAX_GRAM_ATOMS = 8192  # their Gram matrix takes 256 MiB
# The Gram form is used from this number of features on. The choice depends on the shape of the atoms only, so that a
# code does not depend on the batch and supports are nested.
_GRAM_FROM = 24
_MAX_WORKSPACE = 2**24  # bytes that a thread may use
PRODUCTS_PER_THREAD = 2**21  # multiply-adds for each thread; with fewer, another thread does not pay off


def set_backend(backend: str) -> None:
    """
    Chooses how sparse coding is computed, in the entire process.

    Args:
        backend (`str`): `"auto"`, the default, uses the compiled kernels where they are installed and apply (float32 on
            the CPU), and tensor operations elsewhere. `"torch"` uses tensor operations everywhere. `"fused"` is like
            `"auto"`, but raises an error if the kernels are not installed.

    Raises:
        ValueError: If `backend` is unknown.
        ImportError: If `backend` is `"fused"` and the kernels were not built.
    """
    global _backend
    if backend not in _BACKENDS:
        raise ValueError(f"`backend` must be one of {', '.join(map(repr, _BACKENDS))}, got {backend!r}.")
    if backend == "fused" and _kernels is None:
        raise ImportError(_NOT_BUILT)
    _backend = backend


def get_backend() -> str:
    """
    The backend of sparse coding for float32 tensors on the CPU.

    Returns:
        `str`: `"fused"` for the compiled kernels, `"torch"` for tensor operations.
    """
    return "fused" if _kernels is not None and _backend != "torch" else "torch"


def uses_fused(tensor: torch.Tensor) -> bool:
    """Whether the compiled kernels are used for `tensor` under the current backend."""
    return tensor.device.type == "cpu" and tensor.dtype == torch.float32 and get_backend() == "fused"


def compiled_operands(**operands: Operand) -> dict[str, int]:
    """Checks the operands of every call of C, also where an operator is called by its name in `torch.ops`."""
    if _kernels is None:
        raise ImportError(_NOT_BUILT)
    return check_operands(torch.float32, device="cpu", **operands)


def holds_pursuit(features: int, atoms: int, sparsity: int) -> bool:
    """Whether a pursuit of this size fits into the workspace of a thread. Larger ones run in tensor operations."""
    return _workspace(features, atoms, sparsity) <= _MAX_WORKSPACE


def fused_greedy_pursuit(
    signals: torch.Tensor, dictionary: torch.Tensor, sparsity: int, tolerance: float | None, orthogonal: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Runs OMP, or OLS if `orthogonal`, for float32 tensors on the CPU and a size that `holds_pursuit` allows. The
    arguments are those of [`omp`].

    Returns:
        `tuple[torch.Tensor, torch.Tensor]`: Indices and coefficients, `(N, sparsity)` each.
    """
    return _greedy_pursuit(signals, dictionary, sparsity, -1.0 if tolerance is None else float(tolerance), orthogonal)


def _workspace(features: int, count: int, sparsity: int) -> int:
    """The most bytes that a thread of either form uses."""
    width = count + _PADDING
    lanes = 32 * (features * (2 + sparsity) + sparsity * (sparsity + 5) // 2 + 2 * width)
    gram = 32 * (features + width) + 2 * (sparsity * (features + width + sparsity) + 2 * width)
    return 4 * max(lanes, gram)


@torch.library.custom_op("diffusers_lasers::greedy_pursuit", mutates_args=(), device_types="cpu")
def _greedy_pursuit(
    signals: torch.Tensor, dictionary: torch.Tensor, sparsity: int, tolerance: float, orthogonal: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    sizes = compiled_operands(signals=(signals, "N features"), dictionary=(dictionary, "features atoms"))
    n, features, count = sizes["N"], sizes["features"], sizes["atoms"]
    check_sparsity(sparsity, count)
    atoms, scale = unit_atoms(dictionary)
    if not torch.isfinite(scale).all():
        return signals.new_full((n, sparsity), -1, dtype=torch.int64), signals.new_full((n, sparsity), float("nan"))
    width = -(-count // _PADDING) * _PADDING
    wide = atoms if width == count else F.pad(atoms, (0, width - count))
    packed = wide.view(features, width // PANEL, PANEL).transpose(0, 1).contiguous()
    rows, signals = atoms.t().contiguous(), signals.contiguous()
    gram_form = features >= _GRAM_FROM and count <= _MAX_GRAM_ATOMS
    gram = None  # if few of its rows are needed, the kernel computes each when it needs it, with the same bits
    if gram_form and sparsity > 1 and n * sparsity >= count // 4:
        gram = signals.new_empty(count, width)
    indices = signals.new_empty(n, sparsity, dtype=torch.int64)
    coefficients = signals.new_empty(n, sparsity)
    threads = min(torch.get_num_threads(), 1 + n * sparsity * count * features // PRODUCTS_PER_THREAD)
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
        width // PANEL,
        sparsity,
        tolerance,
        int(orthogonal),
        int(gram_form),
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
    Gradients of `synthesize` for float32 tensors on the CPU. The result does not depend on the number of threads.

    Args:
        gradient (`torch.Tensor` of shape `(N, features)`): Gradient of the loss with respect to the signals.
        indices (`torch.Tensor` of shape `(N, sparsity)`): Atom of each slot, int64; −1 marks an unused slot.
        coefficients (`torch.Tensor` of shape `(N, sparsity)`): Their coefficients.
        dictionary (`torch.Tensor` of shape `(features, atoms)`): Atoms as columns.
        wants_coefficients (`bool`): Whether to compute the gradient to the coefficients.
        wants_dictionary (`bool`): Whether to compute the gradient to the dictionary.

    Returns:
        `tuple[torch.Tensor | None, torch.Tensor | None]`: Gradients to the coefficients `(N, sparsity)` and to the
        dictionary.
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
    sizes = compiled_operands(
        gradient=(gradient, "N features"),
        coefficients=(coefficients, "N sparsity"),
        dictionary=(dictionary, "features atoms"),
    )
    n, features, count, sparsity = sizes["N"], sizes["features"], sizes["atoms"], sizes["sparsity"]
    check_slots(indices, sparsity, n=n)
    if indices.numel() >= 2**31:
        raise ValueError(f"`indices` must have fewer than 2³¹ slots, got {indices.numel()}.")
    check_indices("indices", indices, count, least=-1)  # the kernel does not check them
    gradient, indices, coefficients = gradient.contiguous(), indices.long().contiguous(), coefficients.contiguous()
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
        min(torch.get_num_threads(), 1 + n * sparsity * features // PRODUCTS_PER_THREAD),
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
    Updates the atoms of a block in sequence and in place. `block_coordinate_update` explains the arguments. All are
    float32 on the CPU; `rows`, `residual` and `inverse` are contiguous. `inverse` is 0 for atoms that do not change.
    """
    _block_update(rows, residual, coupling, inverse)


@torch.library.custom_op("diffusers_lasers::block_update", mutates_args=("rows",), device_types="cpu")
def _block_update(rows: torch.Tensor, residual: torch.Tensor, coupling: torch.Tensor, inverse: torch.Tensor) -> None:
    compiled_operands(
        rows=(rows, "atoms features"),
        residual=(residual, "atoms features"),
        coupling=(coupling, "atoms atoms"),
        inverse=(inverse, "atoms"),
    )
    if not rows.is_contiguous():
        raise ValueError(f"`rows` must be contiguous to be overwritten, got strides {rows.stride()}.")
    coupling = coupling if coupling.stride(1) == 1 else coupling.contiguous()
    residual, inverse = residual.contiguous(), inverse.contiguous()
    _kernels.block_update(
        rows.data_ptr(), residual.data_ptr(), coupling.data_ptr(), inverse.data_ptr(), *rows.shape, coupling.stride(0)
    )


@_block_update.register_fake
def _(rows, residual, coupling, inverse):
    return None
