"""Reductions over the ranks of `torch.distributed`. Without an initialised process group, they change nothing."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist


__all__ = [
    "all_gather",
    "all_reduce_max",
    "all_reduce_sum",
    "alone",
    "broadcast",
    "rank_and_world_size",
    "wait_after_collectives",
]


_ALONE = 0


@contextmanager
def alone() -> Iterator[None]:
    """Within the block, this process computes by itself: reductions change nothing, and there is one rank."""
    global _ALONE
    _ALONE += 1
    try:
        yield
    finally:
        _ALONE -= 1


def _active() -> bool:
    return not _ALONE and dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def rank_and_world_size() -> tuple[int, int]:
    """
    The rank of this process and the number of ranks.

    Returns:
        `tuple[int, int]`: The rank, from 0, and the number of ranks. 0 and 1 without an initialised process group.
    """
    return (dist.get_rank(), dist.get_world_size()) if _active() else (0, 1)


def wait_after_collectives(seconds: float = 0.2) -> None:
    """
    Waits after the last collective operation of a run, before its process group is destroyed.

    This prevents a deadlock. Threads of gloo release the tensors of an operation after it has ended, and need Python's
    global lock for it. A wrapper for data parallelism may drop the last reference to the group. Then torch 2.13 waits
    for these threads while it holds the lock.

    Args:
        seconds (`float`, defaults to 0.2): Time to wait, in seconds. With one rank there is no wait.
    """
    if _active():
        time.sleep(seconds)


def all_gather(tensor: torch.Tensor) -> torch.Tensor:
    """
    Concatenates the tensors of all ranks along the first dimension.

    Args:
        tensor (`torch.Tensor`): The local rows, of the same shape on every rank.

    Returns:
        `torch.Tensor`: The rows of rank 0, of rank 1 and so on. Without a process group, the tensor itself.
    """
    if not _active():
        return tensor
    parts = [torch.empty_like(tensor) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, tensor.contiguous())
    return torch.cat(parts)


def all_reduce_max(tensor: torch.Tensor) -> torch.Tensor:
    """
    Takes the largest value over all ranks, element by element and in place.

    Args:
        tensor (`torch.Tensor`): The local values, of the same shape on every rank.

    Returns:
        `torch.Tensor`: The same tensor, holding the largest values.
    """
    if _active():
        dist.all_reduce(tensor, op=dist.ReduceOp.MAX)
    return tensor


def all_reduce_sum(tensor: torch.Tensor) -> torch.Tensor:
    """
    Sums a tensor over all ranks, in place.

    Args:
        tensor (`torch.Tensor`): The local term, of the same shape on every rank.

    Returns:
        `torch.Tensor`: The same tensor, holding the sum.
    """
    if _active():
        dist.all_reduce(tensor, op=dist.ReduceOp.SUM)
    return tensor


def broadcast(tensor: torch.Tensor, src: int = 0) -> torch.Tensor:
    """
    Copies a tensor from one rank to all, in place.

    Args:
        tensor (`torch.Tensor`): A tensor of the same shape on every rank. It is overwritten on all ranks except `src`.
        src (`int`, defaults to 0): The rank that sends.

    Returns:
        `torch.Tensor`: The same tensor.
    """
    if _active():
        dist.broadcast(tensor, src=src)
    return tensor
