"""Checkpoints that are whole or absent.

A checkpoint is written to `checkpoint-N.tmp` and renamed to `checkpoint-N` when everything is in it, so that a run
that is killed while it saves leaves nothing that looks like a checkpoint. Old ones are deleted only after the new one
is whole; one of the same step is called `checkpoint-N.old` until then. `manifest.json` lists size and SHA-256 of every
file, so that later damage is found before anything is loaded.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from ...utils.files import write_json


__all__ = ["TrainingState"]

_MANIFEST = "manifest.json"
_PATTERN = re.compile(r"checkpoint-(\d+)(\.old)?")


def list_checkpoints(folder: str | os.PathLike) -> list[Path]:
    """
    The folders `checkpoint-N` of an output folder, which need not exist, in the order of N; `checkpoint-N.old` where a
    process was killed while it replaced one.
    """
    folder = Path(folder)
    if not folder.is_dir():
        return []
    found: dict[int, Path] = {}
    for path in sorted(folder.iterdir(), reverse=True):  # N.old comes before N, which wins
        match = _PATTERN.fullmatch(path.name)
        if match and path.is_dir():
            found[int(match[1])] = path
    return [path for _, path in sorted(found.items())]


def _fingerprint(path: Path) -> dict[str, Any]:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(2**20):
            digest.update(chunk)
    return {"bytes": path.stat().st_size, "sha256": digest.hexdigest()}


def _write_manifest(folder: Path) -> None:
    files = {p.relative_to(folder).as_posix(): _fingerprint(p) for p in sorted(folder.rglob("*")) if p.is_file()}
    write_json(folder / _MANIFEST, files)


def verify_checkpoint(path: str | os.PathLike) -> str | None:
    """
    Compares a checkpoint with its manifest; every file is read. What is wrong comes back as a sentence, `None` if
    nothing is.
    """
    path = Path(path)
    try:
        files = json.loads((path / _MANIFEST).read_text(encoding="utf-8"))
        expected = {name: (entry["bytes"], entry["sha256"]) for name, entry in files.items()}
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return f"{path} has no readable {_MANIFEST}."
    for name, (size, digest) in expected.items():
        parts = PurePosixPath(name)
        if parts.is_absolute() or ".." in parts.parts or not (path / name).is_file():
            return f"{path} lacks the file {name}."
        if (path / name).stat().st_size != size:
            return f"{path} is damaged: {name} has {(path / name).stat().st_size} bytes instead of {size}."
        if _fingerprint(path / name)["sha256"] != digest:
            return f"{path} is damaged: the contents of {name} have changed."
    return None


def latest_checkpoint(folder: str | os.PathLike, report: Callable[[str], Any] = lambda sentence: None) -> Path | None:
    """
    The whole checkpoint of the highest step, or `None`. `report` receives one sentence for each damaged one that is
    passed over, e.g. `logger.warning`.
    """
    for path in reversed(list_checkpoints(folder)):
        wrong = verify_checkpoint(path)
        if wrong is None:
            return path
        report(wrong)
    return None


def save_checkpoint(
    folder: str | os.PathLike,
    step: int,
    write: Callable[[str], Any],
    total_limit: int | None = None,
    is_main_process: bool = True,
    wait: Callable[[], Any] = lambda: None,
) -> Path:
    """
    Writes `checkpoint-{step}` in one piece, then deletes the oldest beyond a limit.

    Args:
        folder (`str` or `os.PathLike`): The output folder.
        step (`int`): The optimiser steps taken.
        write (`Callable[[str], Any]`):
            Writes everything below the path that it is given, e.g. `accelerator.save_state`; called on every process.
        total_limit (`int`, *optional*): Checkpoints to keep, at least 1; `None` keeps all.
        is_main_process (`bool`, defaults to `True`): Only the main process renames and deletes.
        wait (`Callable[[], Any]`, *optional*): Barrier of the processes, e.g. `accelerator.wait_for_everyone`.

    Returns:
        `pathlib.Path`: The finished checkpoint.

    Raises:
        ValueError: If `total_limit` is below 1.
        OSError: If something in it cannot be written, as on a full disk; what was written of it is deleted, and the
            checkpoints before it stay.
    """
    if total_limit is not None and total_limit < 1:
        raise ValueError(f"`total_limit` must be at least 1, got {total_limit!r}.")
    target = Path(folder) / f"checkpoint-{step}"
    unfinished = Path(folder) / f"checkpoint-{step}.tmp"
    if is_main_process:
        if unfinished.is_symlink():
            unfinished.unlink()
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
    wait()
    try:
        write(str(unfinished))
        wait()
        if is_main_process:
            _write_manifest(unfinished)
    except Exception as error:  # torch and safetensors have errors of their own for a full disk
        shutil.rmtree(unfinished, ignore_errors=True)
        raise OSError(f"{target} could not be written: {error}") from error
    if is_main_process:
        old = target.with_name(f"{target.name}.old")
        if target.exists():
            shutil.rmtree(old, ignore_errors=True)
            os.replace(target, old)
        os.replace(unfinished, target)
        shutil.rmtree(old, ignore_errors=True)
        if total_limit is not None:
            others = [path for path in list_checkpoints(folder) if path != target]
            for path in others[: max(0, len(others) + 1 - total_limit)]:
                shutil.rmtree(path)
    wait()
    return target


@dataclass
class TrainingState:
    """
    Creates the counters of a run, a part of what [`RunFolder`] saves.

    Args:
        step (`int`, defaults to 0): Optimiser steps taken.
        samples_seen (`int`, defaults to 0): Samples taken from the stream, all processes together.
        unreadable (`int`, defaults to 0): Images among them that could not be read and were skipped.
    """

    step: int = 0
    samples_seen: int = 0
    unreadable: int = 0

    def state_dict(self) -> dict[str, int]:
        """The counters."""
        return asdict(self)

    def load_state_dict(self, state: dict[str, int]) -> None:
        """
        Restores the counters.

        Args:
            state (`dict[str, int]`): What `state_dict` gave.
        """
        self.step, self.samples_seen = int(state["step"]), int(state["samples_seen"])
        self.unreadable = int(state["unreadable"])
