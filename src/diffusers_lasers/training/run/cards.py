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


def run_settings(accelerator: Accelerator, args: argparse.Namespace, batch_size: int, **more: Any) -> dict[str, Any]:
    """What `settings.json` records: everything that a repetition needs, but no secret."""
    return {
        "command": "accelerate launch " + shlex.join(hide_token(sys.argv, args.hub_token)),
        "arguments": recorded_arguments(args),
        "data": args.dataset_name or args.train_data_dir or "photographs bundled with scikit-image",
        "total_batch_size": batch_size,
        "processes": accelerator.num_processes,
        "mixed_precision": accelerator.mixed_precision,
        "threads": torch.get_num_threads(),
        "versions": {name: import_module(name).__version__ for name in PACKAGES},
        **more,
    }


def training_section(settings: dict[str, Any], lines: Iterable[str]) -> str:
    """The account of a training in a card."""
    return "\n".join([*(f"- {line}" for line in lines), "", f"```bash\n{settings['command']}\n```"])


def figures_table(rows: Iterable[tuple[str, str]]) -> str:
    """A table of figures."""
    return "\n".join(["| figure | value |", "| --- | ---: |", *(f"| {title} | {value} |" for title, value in rows)])
