"""Threads that the compiled kernels share with torch, and what happens to them after a fork.

If torch runs on GNU's OpenMP, its pool of threads does not survive a fork. In the child, the first tensor operation
that needs more than one thread waits forever; a maximum of 64,000 numbers is enough. So a forked child computes with
one thread, as the workers of a data loader do. It may raise the number with `torch.set_num_threads` if the parent
computed nothing before the fork.
"""

from __future__ import annotations

import ctypes
import os

import torch


def openmp_entry() -> int:
    """Address of `GOMP_parallel` in the OpenMP library that torch has loaded globally, or 0 if there is none, as on
    macOS."""
    try:
        entry = ctypes.CDLL(None).GOMP_parallel
    except (AttributeError, OSError, TypeError):
        return 0
    return ctypes.cast(entry, ctypes.c_void_p).value or 0


def _use_one_thread() -> None:
    torch.set_num_threads(1)


if hasattr(os, "register_at_fork") and openmp_entry():
    os.register_at_fork(after_in_child=_use_one_thread)
