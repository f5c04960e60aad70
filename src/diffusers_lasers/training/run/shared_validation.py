"""Metrics over held-out items that the processes share. If one process fails, all do, so that none waits for it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from accelerate import Accelerator


def shared_means(
    accelerator: Accelerator,
    count: int,
    batch_size: int,
    sums: Callable[[range], dict[str, torch.Tensor]],
    names: Sequence[str],
) -> dict[str, float]:
    """
    Means of figures over all items. All processes have to call it.

    Args:
        accelerator (`accelerate.Accelerator`): That of the run.
        count (`int`): Items, at least 1.
        batch_size (`int`): Items of a batch.
        sums (`Callable[[range], dict[str, torch.Tensor]]`): Indices of a batch → name → sum of a figure over it, 0-dim.
        names (`Sequence[str]`): The names that `sums` gives.

    Returns:
        `dict[str, float]`: Name → mean over all items, equal on all processes.

    Raises:
        ValueError: If another process could not judge its share; the process itself raises its own error.
    """
    total, failure = torch.zeros(1 + len(names), dtype=torch.float64, device=accelerator.device), None
    try:
        for start in range(0, count, batch_size)[accelerator.process_index :: accelerator.num_processes]:
            found = sums(range(start, min(start + batch_size, count)))
            total[1:] += torch.stack([found[name].double() for name in names])
    except Exception as error:  # whatever it is: the other processes would wait for this one's share
        failure = error
        total[0] = 1
    failed, *values = accelerator.reduce(total, reduction="sum").tolist()
    if failed:
        raise failure or ValueError("another process could not judge its share of the held-out images.")
    return {name: value / count for name, value in zip(names, values)}
