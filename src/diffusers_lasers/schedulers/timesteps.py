"""What schedulers ask of timesteps and of the numbers of a step."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from ..utils.config_checks import Number, check_fields, shown


_STEP = {"temperature": Number(low=0.0), "eta": Number(0.0, 1.0)}


def count_of_steps(num_inference_steps: Any, total: int) -> int:
    """
    The number of steps of a sampling loop.

    Args:
        num_inference_steps (`int`): What was given.
        total (`int`): Steps T of the training.

    Returns:
        `int`: The number.

    Raises:
        ValueError: If it is no integer from 1 to T.
    """
    is_integer = isinstance(num_inference_steps, int) and not isinstance(num_inference_steps, bool)
    if not is_integer or not 1 <= num_inference_steps <= total:
        raise ValueError(
            f"`num_inference_steps` must be from 1 to `self.config.num_train_timesteps`, {total}, "
            f"got {shown(num_inference_steps)}."
        )
    return num_inference_steps


def timestep_of(timestep: Any, total: int, name: str = "timestep") -> int:
    """
    A timestep as an integer.

    Args:
        timestep (`int` or `torch.Tensor` with one value): What was given.
        total (`int`): Steps T of the training.
        name (`str`, defaults to `"timestep"`): How an error names it.

    Returns:
        `int`: 0 to T − 1.

    Raises:
        ValueError: If it is none of these.
    """
    value = timestep
    if isinstance(timestep, (torch.Tensor, np.generic)) and np.prod(timestep.shape) == 1:
        value = timestep.item()
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value not in range(total):
        raise ValueError(f"`{name}` must be an integer from 0 to {total - 1}, got {shown(timestep)}.")
    return int(value)


def check_timesteps(timesteps: Any, batch: int, total: int) -> None:
    """
    Refuses timesteps of the forward process that are none. Values are looked at on the CPU only, where
    nothing has to wait for them, and not in a compiled graph.

    Args:
        timesteps (`torch.Tensor` of shape `(B,)` or `()`): What was given.
        batch (`int`): Items B of the batch.
        total (`int`): Steps T of the training.

    Raises:
        ValueError: If they are no integers of this shape or, on the CPU, not all from 0 to T − 1.
    """
    known = torch.is_tensor(timesteps) and not timesteps.is_floating_point() and timesteps.dtype != torch.bool
    if not known or tuple(timesteps.shape) not in ((batch,), (1,), ()):
        raise ValueError(f"`timesteps` must be an int64 tensor of shape ({batch},), got {shown(timesteps)}.")
    if timesteps.device.type == "cpu" and timesteps.numel() and not torch.compiler.is_compiling():
        low, high = timesteps.aminmax()
        if low < 0 or high >= total:
            raise ValueError(f"`timesteps` must be from 0 to {total - 1}, got {int(low)} to {int(high)}.")


def linear_survival(timesteps: torch.Tensor | int, total: int) -> torch.Tensor | float:
    """
    ᾱ of the discrete processes, whose time is t + 1 of T.

    Args:
        timesteps (`torch.Tensor` or `int`): t, -1 to T − 1; -1 is clean.
        total (`int`): Steps T of the training.

    Returns:
        `torch.Tensor` of the same shape, float32, or `float`: ᾱ = 1 − (t + 1) / T.
    """
    if torch.is_tensor(timesteps):
        timesteps = timesteps.float()
    return 1 - (timesteps + 1) / total


def check_step_numbers(**values: Any) -> None:
    """
    Refuses a temperature or an eta that is none.

    Args:
        **values: `temperature`, not negative, and `eta` in [0, 1]; `None` stands for the configuration's.

    Raises:
        ValueError: Names the first that does not fit.
    """
    check_fields(_STEP, {name: value for name, value in values.items() if value is not None})
