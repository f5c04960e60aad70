"""Checks of timesteps and of the numbers of a step, for all schedulers."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from ..functional.operands import may_look
from ..utils.config_checks import Number, check_fields, shown


_STEP = {"temperature": Number(low=0.0), "eta": Number(0.0, 1.0)}


def count_of_steps(num_inference_steps: Any, total: int) -> int:
    """
    Checks the number of steps of a sampling loop.

    Args:
        num_inference_steps (`int`): The given number.
        total (`int`): Number T of steps in training.

    Returns:
        `int`: The same number.

    Raises:
        ValueError: If it is not an integer from 1 to T.
    """
    is_integer = isinstance(num_inference_steps, int) and not isinstance(num_inference_steps, bool)
    if not is_integer or not 1 <= num_inference_steps <= total:
        raise ValueError(
            f"`num_inference_steps` must be an integer from 1 to `num_train_timesteps`, {total}, got "
            f"{shown(num_inference_steps)}."
        )
    return num_inference_steps


def timestep_of(timestep: Any, total: int, name: str = "timestep") -> int:
    """
    Converts a timestep to an integer.

    Args:
        timestep (`int` or `torch.Tensor` with one value): The given timestep.
        total (`int`): Number T of steps in training.
        name (`str`, defaults to `"timestep"`): Name of the argument in errors.

    Returns:
        `int`: The timestep, from 0 to T − 1.

    Raises:
        ValueError: If it is not an integer from 0 to T − 1.
    """
    value = timestep
    if isinstance(timestep, (torch.Tensor, np.generic)) and np.prod(timestep.shape) == 1:
        value = timestep.item()
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value not in range(total):
        raise ValueError(f"`{name}` must be an integer from 0 to {total - 1}, got {shown(timestep)}.")
    return int(value)


def check_timesteps(timesteps: Any, batch: int, total: int) -> None:
    """
    Checks timesteps of the forward process. Values are checked only on the CPU and not in a compiled graph, since on a
    GPU the host would have to wait for them.

    Args:
        timesteps (`torch.Tensor` of shape `(B,)`, `(1,)` or `()`): The given timesteps.
        batch (`int`): Number B of items in the batch.
        total (`int`): Number T of steps in training.

    Raises:
        ValueError: If they are not integers of this shape or, on the CPU, not all from 0 to T − 1.
    """
    known = torch.is_tensor(timesteps) and not timesteps.is_floating_point() and timesteps.dtype != torch.bool
    if not known or tuple(timesteps.shape) not in ((batch,), (1,), ()):
        raise ValueError(f"`timesteps` must be an int64 tensor of shape ({batch},), got {shown(timesteps)}.")
    if may_look(timesteps):
        low, high = timesteps.aminmax()
        if low < 0 or high >= total:
            raise ValueError(f"`timesteps` must be from 0 to {total - 1}, got {int(low)} to {int(high)}.")


def linear_survival(timesteps: torch.Tensor | int, total: int) -> torch.Tensor | float:
    """
    ᾱ of the discrete processes, in which timestep t is time t + 1 of T.

    Args:
        timesteps (`torch.Tensor` or `int`): Timesteps t from -1 to T − 1; -1 is clean.
        total (`int`): Number T of steps in training.

    Returns:
        `torch.Tensor` of the same shape, float32, or `float`: ᾱ = 1 − (t + 1) / T.
    """
    if torch.is_tensor(timesteps):
        timesteps = timesteps.float()
    return 1 - (timesteps + 1) / total


def check_step_numbers(**values: Any) -> None:
    """
    Checks the temperature and η of a step.

    Args:
        **values: `temperature`, at least 0, and `eta`, in [0, 1]. `None` means the value of the configuration and is
            not checked.

    Raises:
        ValueError: If a value is out of range. The error names the first such argument.
    """
    check_fields(_STEP, {name: value for name, value in values.items() if value is not None})
