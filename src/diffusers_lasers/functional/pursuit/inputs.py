"""Checks of the arguments that all pursuits share."""

from __future__ import annotations

import sys
from numbers import Real

import numpy as np
import torch

from ..operands import as_tensor, check_sparsity


def computation_dtype(signals: torch.Tensor) -> torch.dtype:
    """Precision of a pursuit: float64 for float64 signals, float32 for all others."""
    return torch.float64 if signals.dtype == torch.float64 else torch.float32


def pursuit_arguments(
    signals: torch.Tensor | np.ndarray,
    dictionary: torch.Tensor | np.ndarray,
    sparsity: int,
    tolerance: float | None,
    check_finite: bool,
) -> tuple[torch.Tensor, torch.Tensor, float | None]:
    """Returns `signals` and `dictionary` as tensors in the precision of the computation, and `tolerance`. Raises a
    `ValueError` that names the argument if one does not fit."""
    signals, dictionary = as_tensor("signals", signals), as_tensor("dictionary", dictionary)
    if signals.ndim != 2 or not signals.is_floating_point() or signals.shape[1] == 0:
        raise ValueError(
            f"`signals` must be a floating-point tensor of shape (N, features), got {signals.dtype} of shape "
            f"{tuple(signals.shape)}."
        )
    if dictionary.ndim != 2 or not dictionary.is_floating_point() or dictionary.shape[0] != signals.shape[1]:
        raise ValueError(
            f"`dictionary` must be a floating-point tensor of shape (features, atoms) with features = "
            f"{signals.shape[1]} as in `signals`, got {dictionary.dtype} of shape {tuple(dictionary.shape)}."
        )
    if dictionary.device != signals.device or not dictionary.layout == signals.layout == torch.strided:
        raise ValueError(
            "`dictionary` must be on the device of `signals` and both dense, got "
            f"{dictionary.device} and {signals.device}, {signals.layout} and {dictionary.layout}."
        )
    check_sparsity(sparsity, dictionary.shape[1])
    if tolerance is not None:
        if not isinstance(tolerance, Real) or not tolerance >= 0:
            raise ValueError(f"`tolerance` must be a non-negative residual norm or None, got {tolerance!r}.")
        tolerance = float(min(tolerance, sys.float_info.max))
    dtype = computation_dtype(signals)
    signals, dictionary = signals.to(dtype), dictionary.to(dtype)
    if check_finite:
        check_finite_values(signals=signals, dictionary=dictionary)
    return signals, dictionary, tolerance


def check_finite_values(**tensors: torch.Tensor) -> None:
    """Raises a `ValueError` for NaN and infinities. In `torch.compile` the check becomes an assertion in the graph."""
    for name, tensor in tensors.items():
        # the maximum of a tensor with NaN is NaN, and two reductions are faster than a mask of all elements
        ends = (tensor.amax(), tensor.amin()) if tensor.numel() else (tensor.new_zeros(()),)
        finite = torch.isfinite(torch.stack(ends)).all()
        message = f"`{name}` must be finite, got NaN or infinite values."
        if torch.compiler.is_compiling():
            torch._assert_async(finite, message)
        elif not finite:
            raise ValueError(message)
