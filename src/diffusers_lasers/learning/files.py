"""State as one safetensors file that is whole, or refused.

The file is written beside its place and renamed into it, so that a process killed while it writes leaves the old file as it
was. safetensors notices a file that was cut off but no changed byte; so the metadata holds the SHA-256 of everything else, and
reading compares it.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save


def write_state(path: str | os.PathLike, kind: str, state: dict[str, Any]) -> None:
    """
    Writes a state; a file of that name is replaced in one step.

    Args:
        path (`str` or `os.PathLike`): The file. Its folder exists; `path` + `.tmp` is overwritten on the way.
        kind (`str`): What the state is of.
        state (`dict`): Tensors, and values that JSON can hold.
    """
    tensors = {name: value.cpu().contiguous() for name, value in state.items() if isinstance(value, torch.Tensor)}
    values = json.dumps({name: value for name, value in state.items() if name not in tensors})
    metadata = {"kind": kind, "values": values, "sha256": _digest(kind, values, tensors)}
    unfinished = Path(f"{os.fspath(path)}.tmp")
    try:
        with open(unfinished, "wb") as file:  # `save_file` would make one that only its owner may read
            file.write(save(tensors, metadata))
            file.flush()
            os.fsync(file.fileno())  # the bytes are on the disk before the name is
        os.replace(unfinished, path)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise


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
    try:
        with safe_open(os.fspath(path), framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}
        values = metadata["values"]
        whole = metadata["kind"] == kind and metadata["sha256"] == _digest(kind, values, tensors)
    except (SafetensorError, KeyError, ValueError):
        whole = False
    if not whole:
        raise ValueError(
            f"`path` must be a whole file of a saved {kind}, got {os.fspath(path)!r}: cut off, changed or another file."
        )
    return {**json.loads(values), **tensors}


def _digest(kind: str, values: str, tensors: dict[str, torch.Tensor]) -> str:
    digest = hashlib.sha256(json.dumps([kind, values]).encode())
    for name in sorted(tensors):
        tensor = tensors[name].contiguous()
        digest.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
