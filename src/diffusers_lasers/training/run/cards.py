"""What a run records of itself: the settings that a repetition needs, and the pieces of its model card."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Iterable
from importlib import import_module
from typing import Any

import torch
from accelerate import Accelerator

from ...utils.command_line import hide_token, recorded_arguments


PACKAGES = ("diffusers_lasers", "diffusers", "accelerate", "torch")


def run_record(args: argparse.Namespace, launcher: str = "python", **facts: Any) -> dict[str, Any]:
    """
    What `settings.json` records of a training or a fit: everything that a repetition needs, but no secret. `args` has
    the flags of [`add_data_flags`] and [`add_hub_flags`].
    """
    return {
        "command": f"{launcher} {shlex.join(hide_token(sys.argv, args.hub_token))}",
        "arguments": recorded_arguments(args),
        "data": args.dataset_name or args.train_data_dir or "photographs bundled with scikit-image",
        "versions": {name: import_module(name).__version__ for name in PACKAGES},
        **facts,
    }


def run_settings(accelerator: Accelerator, args: argparse.Namespace, batch_size: int, **more: Any) -> dict[str, Any]:
    """The record of a training in one or several processes."""
    machine = {"mixed_precision": accelerator.mixed_precision, "threads": torch.get_num_threads()}
    processes = {"total_batch_size": batch_size, "processes": accelerator.num_processes}
    return run_record(args, "accelerate launch", **processes, **machine, **more)


def training_section(settings: dict[str, Any], lines: Iterable[str]) -> str:
    """The account of a training in a card."""
    return "\n".join([*(f"- {line}" for line in lines), "", f"```bash\n{settings['command']}\n```"])
