"""How long a call takes, as the median of several from an idle device to an idle one; and how much memory was used."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import torch


def median_seconds(
    function: Callable[[], Any], repeats: int, device: torch.device | str = "cpu", warm_up: int = 1
) -> tuple[Any, float]:
    """
    The value of a call whose work is done on `device`, and the median of the seconds of `repeats` calls after `warm_up`
    others, at least one.
    """

    def wait() -> None:
        if torch.device(device).type == "cuda":
            torch.cuda.synchronize(device)

    for _ in range(warm_up):
        value = function()
    seconds = []
    for _ in range(repeats):
        wait()
        start = time.perf_counter()
        output = function()
        wait()
        seconds.append(time.perf_counter() - start)
        del output  # outside the measured time
    return value, statistics.median(seconds)


def peak_memory_gib() -> float | None:
    """Peak of this process's resident memory in GiB, or `None` where the system does not tell."""
    try:
        import resource
    except ImportError:
        return None
    scale = 2**30 if sys.platform == "darwin" else 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / scale
