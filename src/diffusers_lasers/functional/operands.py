"""Checks of tensors before functions and compiled operators use them: the C code checks no sizes itself.

A shape is written as the names of its sizes, such as `"N features"`. In one call, a name stands for the same number
everywhere. Checks of shapes, types and devices take microseconds and read no values. Values are checked
(`check_indices`) only on the CPU and outside `torch.compile`. On a GPU the host would have to wait for them, and there
torch's own kernels stop the process at an index that is out of range.
"""

from __future__ import annotations

import warnings

import numpy as np
import torch


_MAY_BE_ZERO = ("N", "sparsity")
_LARGEST = 2**31 - 256  # the kernels count atoms and codewords in 32 bits, with room for padding

Operand = tuple[torch.Tensor, str]


def as_tensor(name: str, values: torch.Tensor | np.ndarray) -> torch.Tensor:
    """
    Returns a tensor unchanged, and a NumPy array as a tensor on the CPU, which shares its memory where possible.

    Args:
        name (`str`): Name of the argument, for the error.
        values (`torch.Tensor` or `numpy.ndarray`): A tensor or an array.

    Returns:
        `torch.Tensor`: The same numbers.

    Raises:
        ValueError: If `values` is neither, or has a type that tensors do not have.
    """
    if isinstance(values, torch.Tensor):
        return values
    if not isinstance(values, np.ndarray):
        raise ValueError(f"`{name}` must be a tensor or an array of NumPy, got {type(values).__name__}.")
    if not values.dtype.isnative or min(values.strides, default=0) < 0:
        values = np.array(values, dtype=values.dtype.newbyteorder("="))  # a tensor cannot share such memory
    try:
        with warnings.catch_warnings():  # nothing here writes into an argument
            warnings.filterwarnings("ignore", "The given NumPy array is not writ")
            return torch.from_numpy(values)
    except TypeError as error:
        raise ValueError(f"`{name}` must be of a type that tensors have, got {values.dtype}.") from error


def check_operands(
    dtype: torch.dtype | None = None, *, device: str | None = None, mixed: bool = False, **operands: Operand
) -> dict[str, int]:
    """
    Raises an error for tensors that do not fit each other.

    Args:
        dtype (`torch.dtype`, *optional*): Type that all must have. Defaults to `None`: any one floating-point type.
        mixed (`bool`, defaults to `False`): Whether floating-point types may differ.
        device (`str`, *optional*): Type of device where all must be. Defaults to `None`: any one device.
        operands (`tuple[torch.Tensor, str]`): Tensors by name, each with its shape, e.g. `"N features"`. All sizes
            except N and sparsity are at least 1.

    Returns:
        `dict[str, int]`: The sizes by name.

    Raises:
        ValueError: If a tensor has another shape, type, device or layout.
    """
    sizes: dict[str, int] = {}
    first = None
    for name, (tensor, shape) in operands.items():
        names = shape.split()
        if not isinstance(tensor, torch.Tensor):
            raise ValueError(f"`{name}` must be a tensor of shape ({', '.join(names)}), got {type(tensor).__name__}.")
        first = tensor if first is None else first
        wanted = f"`{name}` must be a tensor of shape ({', '.join(names)})"
        if tensor.ndim != len(names):
            raise ValueError(f"{wanted}, got shape {tuple(tensor.shape)}.")
        for size, length in zip(names, tensor.shape):
            if sizes.setdefault(size, length) != length:
                raise ValueError(f"{wanted} with {size} = {sizes[size]}, got shape {tuple(tensor.shape)}.")
            if size not in _MAY_BE_ZERO and not 1 <= length < _LARGEST:
                raise ValueError(f"{wanted} with {size} from 1 to {_LARGEST - 1}, got shape {tuple(tensor.shape)}.")
        wrong = tensor.dtype != dtype if dtype else not (mixed or tensor.dtype == first.dtype)
        if wrong or not tensor.is_floating_point():
            kind = dtype or (first.dtype if first.is_floating_point() and not mixed else "floating point")
            raise ValueError(f"`{name}` must be of {kind}, got {tensor.dtype}.")
        if tensor.device.type != device if device else tensor.device != first.device:
            raise ValueError(f"`{name}` must be on {device or first.device}, got {tensor.device}.")
        if tensor.layout != torch.strided:
            raise ValueError(f"`{name}` must be a dense tensor, got layout {tensor.layout}.")
    return sizes


def is_integer(tensor: torch.Tensor) -> bool:
    """Whether `tensor` is a tensor of an integer type that indices may have."""
    return isinstance(tensor, torch.Tensor) and tensor.dtype in (
        torch.int64,
        torch.int32,
        torch.int16,
        torch.int8,
        torch.uint8,
    )


def check_slots(indices: torch.Tensor, slots: int, dtype: torch.dtype | None = None, n: int | None = None) -> None:
    """Raises an error unless `indices` are integers (of `dtype`, if given) of shape `(n, slots)` on the CPU. If `n` is
    `None`, any number of rows is allowed."""
    fitting = indices.dtype == dtype if dtype else is_integer(indices)
    shaped = indices.ndim == 2 and indices.shape[1] == slots and n in (None, indices.shape[0])
    if not (fitting and shaped and indices.device.type == "cpu" and indices.layout == torch.strided):
        raise ValueError(
            f"`indices` must be {dtype or 'integers'} of shape ({'N' if n is None else n}, {slots}) on the CPU, got "
            f"{indices.dtype} of shape {tuple(indices.shape)} on {indices.device}."
        )


def may_look(values: torch.Tensor) -> bool:
    """Whether a check may read values: where nothing has to wait for them, and no compiled graph would break."""
    return values.device.type == "cpu" and not torch.compiler.is_compiling() and values.numel() > 0


def check_indices(name: str, indices: torch.Tensor, count: int, least: int = 0, of: str = "atoms") -> None:
    """
    Raises an error if indices are not integers or, on the CPU and outside `torch.compile`, out of range.

    Args:
        name (`str`): Name of the argument, for the error.
        indices (`torch.Tensor`): Indices of any shape.
        count (`int`): Number of atoms or codewords. Indices must be below it.
        least (`int`, defaults to 0): Smallest allowed index; −1 where that marks an unused slot.
        of (`str`, defaults to `"atoms"`): Word for what is indexed, for the error.

    Raises:
        ValueError: If the type or a value does not fit.
    """
    if not is_integer(indices):
        raise ValueError(
            f"`{name}` must be a tensor of integers, got {getattr(indices, 'dtype', type(indices).__name__)}."
        )
    if indices.layout != torch.strided:
        raise ValueError(f"`{name}` must be a dense tensor, got layout {indices.layout}.")
    if not may_look(indices):
        return
    low, high = (int(end) for end in indices.aminmax())
    if high >= count:
        raise ValueError(f"`{name}` must be below the number of {of} ({count}), got {high}.")
    if low < least:
        raise ValueError(f"`{name}` must be at least {least}, got {low}.")


def check_sparsity(sparsity: int, atoms: int) -> None:
    """Raises an error unless `sparsity` is an integer from 1 to the number of atoms."""
    if isinstance(sparsity, bool) or not isinstance(sparsity, int) or not 1 <= sparsity <= atoms:
        raise ValueError(f"`sparsity` must be an integer from 1 to the number of atoms ({atoms}), got {sparsity!r}.")
