"""What the scripts of `examples/` share: their ends on errors, devices, commits, names of models, batches of images."""

from __future__ import annotations

import argparse
import math
import os
import subprocess
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..utils.command_line import error_exit
from .loading import get_device


if TYPE_CHECKING:
    import torch

    from ..training.data.image_dataset import ImageDataset


def run_script(
    file: str,
    parse_args: Callable[[list[str] | None], argparse.Namespace],
    main: Callable[[argparse.Namespace], Any],
    input_args: list[str] | None = None,
) -> Any:
    """
    Runs `main` of the script `file` with what `parse_args` makes of the command line, by default the process's own. A
    `ValueError`, `ImportError` or `OSError` becomes one sentence on stderr, without the token, and exit code 1.
    """
    args = parse_args(input_args)
    try:
        return main(args)
    except (ValueError, ImportError, OSError) as error:
        raise error_exit(file, args, str(error)) from error


def add_device_flag(parser: argparse.ArgumentParser) -> None:
    """Adds `--device`, and refuses a device that is not there. The default is cuda where it is, else cpu."""

    def usable(name: str) -> str:
        try:
            return str(get_device(name))
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error).removeprefix("--device ")) from error

    default = get_device(None)
    parser.add_argument(
        "--device", type=usable, default=str(default), help="cpu, cuda or cuda:1. Default: cuda if any."
    )


def commit_of(folder: str | os.PathLike, *places: str) -> str | None:
    """
    The short hash of the commit of a checkout, from a folder in it, with a plus sign if tracked files differ from it;
    `None` without git. `places`, such as `":/src"`, are the parts whose changes count; all by default.
    """

    def git(*words: str) -> str | None:
        try:
            process = subprocess.run(["git", "-C", str(folder), *words], capture_output=True, text=True, check=True)
        except (OSError, subprocess.CalledProcessError):
            return None
        return process.stdout.strip()

    found = git("rev-parse", "--short", "HEAD")
    return found and found + "+" * bool(git("status", "--porcelain", "--untracked-files=no", "--", *places))


def names_of(paths: Sequence[str | os.PathLike]) -> list[str]:
    """Short names for models: the last parts of their paths, as many as tell them apart; a number if none do."""
    parts = [Path(path).parts for path in paths]
    for depth in range(1, max(map(len, parts), default=0) + 1):
        names = ["/".join(part[-depth:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    return [f"{path} #{number}" for number, path in enumerate(paths, 1)]


def image_batches(
    dataset: ImageDataset, batch_size: int, device: torch.device | str, label: str | None = None
) -> Iterator[torch.Tensor]:
    """All images in their order on a device, in batches `(B, 3, resolution, resolution)` in [-1, 1]; with a bar."""
    from tqdm.auto import tqdm

    total = math.ceil(len(dataset) / batch_size)
    for images in tqdm(dataset.batches(batch_size), total=total, desc=label, leave=False):
        yield images.to(device)
