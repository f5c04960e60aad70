"""The output folder of a run: which run it belongs to, a lock for one run at a time, and checkpoints to resume from.

A run is known by its *identity*: the arguments that decide what is trained. They stand in `run.json`, in the folder
and in each checkpoint, and a checkpoint of other arguments is refused. What this package keeps of a run's state is
safetensors and JSON; what accelerate pickles (optimiser, scaler, random numbers) it reads with `weights_only`, which
runs no code.
"""

from __future__ import annotations

import argparse
import logging
import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, load
from filelock import FileLock, Timeout

from ...learning.state_files import read_state, write_state
from ...utils.command_line import one_line
from ...utils.files import write_json
from .checkpoints import latest_checkpoint, list_checkpoints, save_checkpoint, verify_checkpoint
from .run_identity import RUN_FILE, check_identity, run_identity


__all__ = ["RunFolder"]

_logger = logging.getLogger(__name__)
_STATE = "run_state.safetensors"
_LOCK = ".run.lock"
_KIND = "state of a run"
_RECORDS = ("training_log.jsonl", "settings.json")
# What a checkpoint that does not fit makes torch, accelerate and the parts raise.
_UNFIT = (pickle.UnpicklingError, RuntimeError, LookupError, TypeError, AttributeError, ValueError, OSError)
# What a run leaves beside its checkpoints; of a model the configuration, without which its weights are none, is enough.
_RESULTS = (
    *_RECORDS,
    *("config.json", "model_index.json", "README.md", "discriminator", "pipeline", "refiner", "validation"),
)


def check_output_folder(folder: str | os.PathLike, overwrite: bool = False) -> None:
    """
    Checks that a result can be written into a folder, for scripts that write it once and have no checkpoints; nothing
    is made. Raises a `ValueError` if it is a file, cannot be written to, or, without `overwrite`, is not empty.
    """
    _check_place(Path(folder))
    if not overwrite and _contents(Path(folder)):
        raise ValueError(
            f"--output_dir {str(folder)!r} is not empty: give another one, or --overwrite_output_dir to write over it."
        )


class RunFolder:
    """
    Creates the claim of a run on its output folder. Making it only reads; [`claim`] writes.

    Args:
        accelerator (`accelerate.Accelerator`): All processes of the run make this object, and call its methods,
            together.
        folder (`str` or `os.PathLike`): The output folder; it need not exist.
        identity (`dict[str, Any]`): What the run is known by, see [`run_identity`].
        resume (`str`, *optional*): `"latest"`, a checkpoint's folder, or its name in `folder`. `"latest"` starts from
            scratch where the run has no checkpoint yet.
        overwrite (`bool`, defaults to `False`): Whether a run that is in the folder may be deleted.

    Raises:
        ValueError: If `folder` is a file or cannot be written to; if it holds something and neither `resume` nor
            `overwrite` says what to do with it; if the checkpoint is missing, damaged or of another run; if all
            checkpoints are damaged.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        folder: str | os.PathLike,
        identity: dict[str, Any],
        resume: str | None = None,
        overwrite: bool = False,
    ):
        self.accelerator, self.path, self.identity = accelerator, Path(folder), identity
        self.resume, self.overwrite = resume, overwrite
        self.checkpoint: Path | None = None
        self.passed_over: list[str] = []  # one sentence for each damaged checkpoint
        self._lock: FileLock | None = None
        self._check()
        accelerator.wait_for_everyone()  # nobody writes before everybody has looked

    def _check(self) -> None:
        _check_place(self.path)
        self.passed_over.clear()
        self.checkpoint = None if self.resume is None else self._find_checkpoint()
        if self.checkpoint is not None:
            check_identity(self.checkpoint, self.identity)
        if self.overwrite or self._goes_on() or not _contents(self.path):
            return
        if self.resume == "latest" and self._unfinished():
            return
        raise ValueError(
            f"--output_dir {str(self.path)!r} is not empty: give another one, --overwrite_output_dir to delete the run "
            "that is in it, or --resume_from_checkpoint latest to go on with that run."
        )

    def _goes_on(self) -> bool:
        """Whether the checkpoint lies in the folder itself."""
        return self.checkpoint is not None and self.checkpoint.resolve().parent == self.path.resolve()

    def _find_checkpoint(self) -> Path | None:
        if self.resume == "latest":
            found = latest_checkpoint(self.path, report=self.passed_over.append)
            if found is None and self.passed_over and not self.overwrite:
                raise ValueError(
                    f"No checkpoint in {str(self.path)!r} is whole ({self.passed_over[0].rstrip('.')}): restore one, "
                    "or give --overwrite_output_dir to begin anew."
                )
            return found
        for path in (Path(self.resume), self.path / self.resume):
            if path.is_dir():
                wrong = verify_checkpoint(path)
                if wrong:
                    raise ValueError(f"--resume_from_checkpoint {self.resume!r}: {wrong}")
                return path
        raise ValueError(
            "--resume_from_checkpoint must be `latest`, a folder, or the name of one in --output_dir, got "
            f"{self.resume!r}."
        )

    def _unfinished(self) -> bool:
        """Whether the folder holds this run, ended before its first checkpoint and before its end."""
        finished = any((self.path / name).exists() for name in ("config.json", "model_index.json", "refiner"))
        if finished or not (self.path / RUN_FILE).is_file():
            return False
        check_identity(self.path, self.identity)
        return True

    def claim(self) -> None:
        """
        Takes the folder for this run: makes it, locks it until the process ends, deletes what `overwrite` allows to,
        and writes `run.json`.

        Raises:
            ValueError: If another process writes into it, or it has changed since the object was made so that it may
                not be taken.
            OSError: If it cannot be written.
        """
        outcome: list[Any] = [None]
        if self.accelerator.is_main_process:
            try:
                self._take()
            except (ValueError, OSError) as error:
                outcome[0] = error
        if self.accelerator.num_processes > 1:
            broadcast_object_list(outcome)
        if outcome[0] is not None:
            raise outcome[0]

    def _take(self) -> None:
        self.path.mkdir(parents=True, exist_ok=True)
        self._lock = FileLock(self.path / _LOCK)
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            self._lock = None
            raise ValueError(f"--output_dir {str(self.path)!r} is in use by another run: give another one.") from None
        before = self.checkpoint
        self._check()
        if self.checkpoint != before:
            raise ValueError(f"--output_dir {str(self.path)!r} has changed since the run began: start it again.")
        if self.overwrite and not self._goes_on():
            names = (
                _RESULTS if (self.path / RUN_FILE).is_file() else _RECORDS
            )  # a folder of something else keeps the rest
            for path in [*list_checkpoints(self.path), *(self.path / name for name in names)]:
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path)
                else:
                    path.unlink(missing_ok=True)
        write_json(self.path / RUN_FILE, {"identity": self.identity})

    def release(self) -> None:
        """Gives the folder free."""
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def save(self, step: int, parts: dict[str, Any], total_limit: int | None = None) -> Path:
        """
        Writes a checkpoint: what accelerate keeps, the states of the parts, and the run's identity.

        Args:
            step (`int`): Optimiser steps taken.
            parts (`dict[str, Any]`): Name → object with `state_dict`, whose state is tensors and what JSON can hold,
                in dictionaries.
            total_limit (`int`, *optional*): Checkpoints to keep; `None` keeps all.

        Returns:
            `pathlib.Path`: The checkpoint.

        Raises:
            OSError: If it cannot be written, as on a full disk; the checkpoints before it stay.
        """

        def write(folder: str) -> None:
            self.accelerator.save_state(folder)
            states = {name: part.state_dict() for name, part in parts.items()}  # sharded ones: on all processes
            if self.accelerator.is_main_process:
                write_state(Path(folder) / _STATE, _KIND, _flat(states))
                write_json(Path(folder) / RUN_FILE, {"identity": self.identity})

        return save_checkpoint(
            self.path,
            step,
            write,
            total_limit=total_limit,
            is_main_process=self.accelerator.is_main_process,
            wait=self.accelerator.wait_for_everyone,
        )

    def load(self, parts: dict[str, Any]) -> None:
        """
        Goes on from the checkpoint, if there is one.

        Args:
            parts (`dict[str, Any]`): As they were given to [`save`].

        Raises:
            ValueError: If the checkpoint does not fit these parts, or holds what is no plain state.
        """
        if self.checkpoint is None:
            return
        try:
            states = _nested(read_state(self.checkpoint / _STATE, _KIND))
            if "schedule" in states:  # its name in refiners' checkpoints of earlier versions
                states["lr_scheduler"] = states["schedule"]
            missing = [name for name in parts if name not in states]
            if missing:
                raise ValueError(f"it was written by another version of this script, and has no {missing[0]}.")
            random = self.checkpoint / f"random_states_{self.accelerator.process_index}.pkl"
            if random.exists():
                load(random)  # accelerate goes on with other random numbers where it cannot read them
            self.accelerator.load_state(str(self.checkpoint))
            for name, part in parts.items():
                part.load_state_dict(states[name])
        except _UNFIT as error:
            raise ValueError(f"{str(self.checkpoint)!r} cannot be resumed from: {one_line(error)[:300]}") from error


def open_run_folder(accelerator: Accelerator, args: argparse.Namespace, **identity: Any) -> RunFolder:
    """
    The folder that the flags name, with a warning for each damaged checkpoint. Nothing is written.

    Args:
        accelerator (`accelerate.Accelerator`): That of the run.
        args (`argparse.Namespace`): With the flags of [`add_run_flags`] and [`add_hub_flags`], before anything of the
            run is computed from them.
        **identity: What else has to be the same when the run goes on, e.g. `total_batch_size`.

    Returns:
        [`RunFolder`]: The folder.

    Raises:
        ValueError: If the folder, or a checkpoint in it, cannot be used.
    """
    identity = run_identity(args, **identity)
    folder = RunFolder(accelerator, args.output_dir, identity, args.resume_from_checkpoint, args.overwrite_output_dir)
    if accelerator.is_main_process:
        for sentence in folder.passed_over:
            _logger.warning(f"{sentence} It is passed over.")
        if folder.checkpoint is None and args.resume_from_checkpoint:
            _logger.warning(f"There is no checkpoint in {args.output_dir}: starting from scratch.")
    return folder


def _check_place(path: Path) -> None:
    """Checks that a folder can be made and written to, without making it."""
    existing = path
    while not os.path.lexists(existing) and existing != existing.parent:
        existing = existing.parent
    if not existing.is_dir():
        raise ValueError(f"--output_dir must be a folder, got {str(path)!r}: {str(existing)!r} is none.")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise ValueError(f"--output_dir {str(path)!r} cannot be written to.")


def _contents(path: Path) -> list[Path]:
    """What a folder holds, but for hidden files and the codes that several runs can share."""
    if not path.is_dir():
        return []
    return [entry for entry in path.iterdir() if not entry.name.startswith(".") and entry.name != "codes"]


def _flat(state: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dictionaries as one, with names joined by slashes; tensors on the CPU, of their own storage."""
    flat: dict[str, Any] = {}
    for name, value in state.items():
        if isinstance(value, dict) and value:
            flat.update(_flat(value, f"{prefix}{name}/"))
        else:
            flat[f"{prefix}{name}"] = value.detach().to("cpu", copy=True) if isinstance(value, torch.Tensor) else value
    return flat


def _nested(flat: dict[str, Any]) -> dict[str, Any]:
    """What [`_flat`] was given."""
    state: dict[str, Any] = {}
    for name, value in flat.items():
        *path, last = name.split("/")
        place = state
        for part in path:
            place = place.setdefault(part, {})
        place[last] = value
    return state
