"""Checks of a reader of codes: the kind, the slots, and that symbols are in their alphabets."""

from __future__ import annotations

from typing import Any

import torch

from ..functional.operands import may_look
from .code import Code
from .codes import IndexCode, SparseCode


def is_code(value: Any) -> bool:
    """Whether a value is a code of any kind."""
    return isinstance(value, Code)


def check_sparse(code: Any, atoms: int, sparsity: int | None = None) -> None:
    """Raises a `ValueError` where `code` is not a sparse code of `atoms` atoms, or has not 1 to `sparsity` slots."""
    fitting = isinstance(code, SparseCode) and code.num_atoms == atoms
    if fitting and (sparsity is None or 1 <= code.sparsity <= sparsity):
        return
    most = "" if sparsity is None else f"at most {sparsity} out of "
    found = type(code).__name__
    if isinstance(code, Code):
        what = f"{getattr(code, 'num_atoms', 'no')} atoms"
        found += f" of {what if sparsity is None else tuple(code.indices.shape)}"
    raise ValueError(f"`code` must be a SparseCode of {most}{atoms} atoms, got {found}.")


def check_index(code: Any, levels: tuple[int, ...], nested: bool, wanted: str) -> None:
    """
    Raises a `ValueError` where `code` is not an index code whose slots have these levels; with `nested` it may have the
    first of them only. `wanted` names the slots in the message.
    """
    if isinstance(code, IndexCode):
        slots = code.slots if nested else len(levels)
        if slots and code.levels == levels[:slots]:
            return
    found = code.levels if isinstance(code, IndexCode) else type(code).__name__
    raise ValueError(f"`code` must have {wanted}, got {found}.")


def check_values(code: Code, grid: tuple[int, int]) -> None:
    """
    Raises a `ValueError` where a code has another grid of sites, an index outside its alphabet, or a coefficient that
    is not finite. Values are looked at on the CPU only, where nothing has to wait for them, and not in a compiled
    graph.
    """
    if code.grid != grid:
        raise ValueError(
            f"`code` must have {grid[0]} × {grid[1]} sites for latents of {code.latent_size}, got {code.grid}."
        )
    indices, low = code.indices, code._lowest
    if not may_look(indices):
        return
    if bool(((indices < low) | (indices >= torch.tensor(code.levels))).any()):
        raise ValueError(
            f"`code` must have indices from {low} to below its {max(code.levels)} symbols, got {int(indices.min())} "
            f"to {int(indices.max())}."
        )
    if code.coefficients is not None and not bool(torch.isfinite(code.coefficients).all()):
        raise ValueError("`code` must have finite coefficients, got NaN or infinity.")
