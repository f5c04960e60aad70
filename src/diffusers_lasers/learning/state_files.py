"""State as one safetensors file that is whole, or refused.

The file is written by `utils/files.py`, so that a process killed while it writes leaves the old one as it was.
safetensors notices a file that was cut off but no changed byte; so the metadata holds the SHA-256 of everything else,
and reading compares it. Whoever knows the format can seal anything: what is read is tensors and JSON, never code, no
larger than the file, and whoever reads it checks what it says.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from ..utils.files import write_bytes


def write_state(path: str | os.PathLike, kind: str, state: dict[str, Any]) -> None:
    """
    Writes a state; a file of that name is replaced in one step.

    Args:
        path (`str` or `os.PathLike`): The file. Its folder exists.
        kind (`str`): What the state is of.
        state (`dict`): Tensors, and values that JSON can hold.

    Raises:
        ValueError: If `path` is no regular file. OSError: If it cannot be written; the error names it.
    """
    tensors = {name: value.cpu().contiguous() for name, value in state.items() if isinstance(value, torch.Tensor)}
    values = json.dumps({name: value for name, value in state.items() if name not in tensors})
    metadata = {"kind": kind, "values": values, "sha256": _digest(kind, values, tensors)}
    write_bytes(path, save(tensors, metadata))


def read_state(path: str | os.PathLike, kind: str) -> dict[str, Any]:
    """
    Reads a state back, tensors on the CPU.

    Args:
        path (`str` or `os.PathLike`): The file.
        kind (`str`): What the state has to be of.

    Returns:
        `dict`: What [`write_state`] was given.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is no whole, unchanged file of that kind.
    """
    values: Any = None
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise ValueError("a pipe would never end")
        with safe_open(os.fspath(path), framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}
        intact = metadata["kind"] == kind and metadata["sha256"] == _digest(kind, metadata["values"], tensors)
        values = json.loads(metadata["values"])
        intact = intact and isinstance(values, dict)
    # AttributeError and RuntimeError: types that torch names or copies not at all; RecursionError: JSON of many
    # brackets
    except (SafetensorError, KeyError, ValueError, TypeError, AttributeError, RuntimeError):
        intact = False
    if not intact:
        raise ValueError(
            f"`path` must be a whole file of a saved {kind}, got {os.fspath(path)!r}: cut off, changed or another file."
        )
    return {**values, **tensors}


def _digest(kind: str, values: str, tensors: dict[str, torch.Tensor]) -> str:
    digest = hashlib.sha256(json.dumps([kind, values]).encode())
    for name in sorted(tensors):
        tensor = tensors[name].contiguous()
        digest.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
