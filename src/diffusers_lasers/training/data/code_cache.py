r"""Codes of images on the disk: made once, shared by all runs that would make the same ones.

A cache's name says what is in it: the fingerprint of the images, of the model that codes them, and of everything
between the two. Images that change, another folder of the same name, or other weights give another name, so that an
old cache is never taken for a new one. It is one NumPy file, written under a hidden name and renamed when it is whole;
of processes that want the same one at once, one makes it and the others wait. A finished file is never deleted:
running processes have it mapped.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock, Timeout

from ...utils.files import atomic_file


_logger = logging.getLogger(__name__)


def model_fingerprint(model: torch.nn.Module) -> str:
    """
    What tells models apart: their configuration and weights, and not the folder that they came from.

    Args:
        model (`ModelMixin`): A model with a configuration.

    Returns:
        `str`: SHA-256, 64 hexadecimal digits.
    """
    settings = {name: value for name, value in model.config.items() if not name.startswith("_")}
    digest = hashlib.sha256(json.dumps([type(model).__name__, settings], sort_keys=True, default=str).encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def images_fingerprint(source: Sequence) -> str:
    """
    What tells sources of images apart, without decoding files.

    Args:
        source (`Sequence[PIL.Image.Image]`): Images, see [`load_image_dataset`]. Files count by their resolved paths,
            sizes and times of change; a data set by the fingerprint that `datasets` gives it, which follows its
            revision and files; other sequences by their pixels.

    Returns:
        `str`: SHA-256, 64 hexadecimal digits.

    Raises:
        OSError: If a file is gone.
    """
    digest = hashlib.sha256(f"{len(source)}\n".encode())
    if getattr(source, "paths", None) is not None:
        for path in source.paths:
            place, found = os.path.realpath(path), os.stat(path)
            # the time of the last change of the file's state too: a copy can bring its old time of modification
            digest.update(f"{place!r} {found.st_size} {found.st_mtime_ns} {found.st_ctime_ns}\n".encode())
    elif hasattr(getattr(source, "table", None), "_fingerprint"):
        digest.update(f"{source.table._fingerprint} {getattr(source, 'column', None)!r}".encode())
    else:
        for image in source:
            digest.update(f"{image.mode} {image.size}\n".encode() + image.tobytes())
    return digest.hexdigest()


def cached_codes(
    folder: str | os.PathLike,
    name: str,
    key: dict[str, Any],
    make: Callable[[], Iterable[np.ndarray]],
    shape: tuple[int, ...],
    num_symbols: int,
) -> np.ndarray:
    """
    Codes from the cache; what is missing is made first.

    Args:
        folder (`str` or `os.PathLike`): The folder of the caches; made if it is missing.
        name (`str`): What the file's name begins with, e.g. `"train"`.
        key (`dict[str, Any]`): All that the codes depend on: fingerprints, and values that JSON can hold.
        make (`Callable[[], Iterable[numpy.ndarray]]`): Gives the codes in blocks `(n, …)`, in order; called only where
            they are missing.
        shape (`tuple[int, ...]`): Shape `(N, …)` of all codes together.
        num_symbols (`int`): Codes lie in [0, `num_symbols`).

    Returns:
        `numpy.ndarray` of shape `shape`: The codes, mapped from the file, in the smallest unsigned type that holds
        them; read-only.

    Raises:
        ValueError: If `make` gives codes of another shape, number or range. OSError: If the file cannot be written.
    """
    kind = np.min_scalar_type(num_symbols - 1)
    text = json.dumps([key, list(shape), kind.str], sort_keys=True)
    path = Path(folder) / f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:32]}.npy"
    codes = _mapped(path, shape, kind)
    if codes is not None:
        return codes
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path.with_name(f".{path.name}.lock"))
    try:
        held = lock.acquire(timeout=0)
    except Timeout:
        _logger.warning(f"Another process makes {path}: waiting for it.")
        held = lock.acquire()
    with held:
        codes = _mapped(path, shape, kind)
        if codes is None:
            for leftover in path.parent.glob(f".{path.name[:40]}.*.tmp"):  # of a process that was killed
                with suppress(OSError):
                    leftover.unlink()
            _write(path, make(), shape, kind, num_symbols)
            codes = _mapped(path, shape, kind)
    return codes


def _mapped(path: Path, shape: tuple[int, ...], kind: np.dtype) -> np.ndarray | None:
    """The file's codes, or None where there is no whole file of such codes."""
    try:
        codes = np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        return None
    except (ValueError, EOFError):
        codes = None
    if codes is None or codes.shape != shape or codes.dtype != kind:
        _logger.warning(f"{path} is damaged: its codes are made anew.")
        return None
    return codes


def _write(path: Path, blocks: Iterable[np.ndarray], shape: tuple[int, ...], kind: np.dtype, num_symbols: int) -> None:
    written = 0
    with atomic_file(path) as file:
        header = {"descr": np.lib.format.dtype_to_descr(kind), "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, header)
        for block in blocks:
            if block.shape[1:] != shape[1:] or block.min() < 0 or block.max() >= num_symbols:
                raise ValueError(
                    f"`make` must give codes of shape (n, {', '.join(map(str, shape[1:]))}) in [0, {num_symbols}), got "
                    f"{block.shape} in [{block.min()}, {block.max()}]."
                )
            file.write(np.ascontiguousarray(block, dtype=kind))
            written += len(block)
        if written != shape[0]:
            raise ValueError(f"`make` must give {shape[0]} codes, it gave {written}.")
