"""Reductions over the ranks of `torch.distributed`; without an initialised process group each is the identity."""

from __future__ import annotations

import torch
import torch.distributed as dist


__all__ = ["all_reduce_sum", "broadcast"]


def _active() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def all_reduce_sum(tensor: torch.Tensor) -> torch.Tensor:
    """
    Sums a tensor over all ranks, in place.

    Args:
        tensor (`torch.Tensor`): The local term, of one shape on every rank.

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
        tensor (`torch.Tensor`): Overwritten on every rank but `src`; of one shape everywhere.
        src (`int`, defaults to 0): The rank that sends.

    Returns:
        `torch.Tensor`: The same tensor.
    """
    if _active():
        dist.broadcast(tensor, src=src)
    return tensor
