"""A learner's state in one safetensors file. A truncated or changed file is refused.

`utils/files.py` writes the file, so that a process that is killed while writing leaves the old file unchanged.
safetensors detects a truncated file, but not a changed byte. So the metadata holds the SHA-256 of everything else, and
reading compares it. The hash is no protection against an attacker, who can compute it too. But a file holds only
tensors and JSON, no code, and nothing larger than the file itself. The caller checks the values.
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
    Writes a state. An existing file is replaced in one step.

    Args:
        path (`str` or `os.PathLike`): The file, in an existing folder.
        kind (`str`): Name of the class whose state this is.
        state (`dict`): Tensors, and values that JSON can hold.

    Raises:
        ValueError: If `path` exists and is not a regular file.
        OSError: If the file cannot be written; the error names it.
    """
    tensors = {name: value.cpu().contiguous() for name, value in state.items() if isinstance(value, torch.Tensor)}
    values = json.dumps({name: value for name, value in state.items() if name not in tensors})
    metadata = {"kind": kind, "values": values, "sha256": _digest(kind, values, tensors)}
    write_bytes(path, save(tensors, metadata))


def read_state(path: str | os.PathLike, kind: str) -> dict[str, Any]:
    """
    Reads a state. Its tensors are on the CPU.

    Args:
        path (`str` or `os.PathLike`): The file.
        kind (`str`): Name of the class whose state it must be.

    Returns:
        `dict`: The state that was given to [`write_state`].

    Raises:
        FileNotFoundError: If the file does not exist.
        ValueError: If it is truncated, changed or of another kind.
    """
    values: Any = None
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise ValueError("not a regular file: reading a pipe would never end")
        with safe_open(os.fspath(path), framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}
        intact = metadata["kind"] == kind and metadata["sha256"] == _digest(kind, metadata["values"], tensors)
        values = json.loads(metadata["values"])
        intact = intact and isinstance(values, dict)
    # AttributeError and RuntimeError: a dtype that torch does not have or cannot copy; RuntimeError also covers
    # RecursionError, from deeply nested JSON
    except (SafetensorError, KeyError, ValueError, TypeError, AttributeError, RuntimeError):
        intact = False
    if not intact:
        raise ValueError(
            f"`path` must be the unchanged file of a saved {kind}, got {os.fspath(path)!r}, which is truncated, "
            "changed or another file."
        )
    return {**values, **tensors}


def _digest(kind: str, values: str, tensors: dict[str, torch.Tensor]) -> str:
    digest = hashlib.sha256(json.dumps([kind, values]).encode())
    for name in sorted(tensors):
        tensor = tensors[name].contiguous()
        digest.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
