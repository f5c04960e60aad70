"""Checkpoints that are whole or absent.

A checkpoint is written to `checkpoint-N.tmp` and renamed to `checkpoint-N` when everything is in it, so that a run that
is killed while it saves leaves nothing that looks like a checkpoint. Old ones are deleted only after the new one is
whole.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any


__all__ = ["TrainingState", "latest_checkpoint", "list_checkpoints", "save_checkpoint"]

_PATTERN = re.compile(r"checkpoint-(\d+)")


def list_checkpoints(folder: str | os.PathLike) -> list[Path]:
    """
    The whole checkpoints of a run, oldest step first.

    Args:
        folder (`str` or `os.PathLike`): The output folder; it need not exist.

    Returns:
        `list[pathlib.Path]`: The folders `checkpoint-N`, sorted by N.
    """
    folder = Path(folder)
    if not folder.is_dir():
        return []
    found = [path for path in folder.iterdir() if path.is_dir() and _PATTERN.fullmatch(path.name)]
    return sorted(found, key=lambda path: int(_PATTERN.fullmatch(path.name)[1]))


def latest_checkpoint(folder: str | os.PathLike) -> Path | None:
    """
    The checkpoint of the highest step.

    Args:
        folder (`str` or `os.PathLike`): The output folder; it need not exist.

    Returns:
        `pathlib.Path` or `None`: The folder `checkpoint-N`, or `None` where there is no whole checkpoint.
    """
    found = list_checkpoints(folder)
    return found[-1] if found else None


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
    """
    if total_limit is not None and total_limit < 1:
        raise ValueError(f"`total_limit` must be at least 1, got {total_limit!r}.")
    target = Path(folder) / f"checkpoint-{step}"
    unfinished = Path(folder) / f"checkpoint-{step}.tmp"
    if is_main_process:
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
    wait()
    write(str(unfinished))
    wait()
    if is_main_process:
        if target.exists():
            shutil.rmtree(target)
        os.replace(unfinished, target)
        if total_limit is not None:
            others = [path for path in list_checkpoints(folder) if path != target]
            for path in others[: max(0, len(others) + 1 - total_limit)]:
                shutil.rmtree(path)
    wait()
    return target


class TrainingState:
    """
    Creates the counters of a run, for `accelerator.register_for_checkpointing`.

    Args:
        step (`int`, defaults to 0): Optimiser steps taken.
        samples_seen (`int`, defaults to 0): Samples taken from the stream, all processes together.
    """

    def __init__(self, step: int = 0, samples_seen: int = 0):
        self.step, self.samples_seen = step, samples_seen

    def state_dict(self) -> dict[str, int]:
        """The counters."""
        return {"step": self.step, "samples_seen": self.samples_seen}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """
        Restores the counters.

        Args:
            state (`dict[str, int]`): What `state_dict` gave.
        """
        self.step, self.samples_seen = int(state["step"]), int(state["samples_seen"])
