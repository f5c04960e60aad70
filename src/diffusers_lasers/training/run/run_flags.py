"""The flags that training scripts share beside those of images: the optimiser, the run, and where its result goes.

Each has one name and one meaning; a script gives a default of its own as an argument. The names are those of diffusers'
own examples.
"""

from __future__ import annotations

import argparse
from typing import Any

from accelerate.tracking import get_available_trackers

from ...utils.command_line import check_at_least


LEARNING_RATE_SCHEDULES = "linear cosine cosine_with_restarts polynomial constant constant_with_warmup".split()


def _add(parser: argparse.ArgumentParser | Any, flags: dict[str, dict[str, Any]], defaults: dict[str, Any]) -> None:
    """Adds flags, some with another default."""
    unknown = sorted(set(defaults) - set(flags))
    if unknown:
        raise ValueError(f"`defaults` must be of the flags {', '.join(flags)}, got {', '.join(unknown)}.")
    for name, options in flags.items():
        given = {"default": defaults[name]} if name in defaults else {}
        parser.add_argument(f"--{name}", **{**options, **given})


def add_optimizer_flags(parser: argparse.ArgumentParser | Any, **defaults: Any) -> None:
    """Adds the flags of the batch, of Adam and of its learning rate."""
    flags = {
        "train_batch_size": {"type": int, "default": 16, "help": "Images a process and micro-batch."},
        "max_train_steps": {"type": int, "help": "Optimiser steps."},
        "learning_rate": {"type": float, "default": 1e-4, "help": "Of train_dlgan.py: 1e-3 (paper: 1e-4)."},
        "scale_lr": {"action": "store_true", "help": "Multiply learning rates by the images of a step."},
        "lr_scheduler": {"choices": LEARNING_RATE_SCHEDULES, "default": "constant"},
        "lr_warmup_steps": {"type": int, "default": 0},
        "adam_beta1": {"type": float, "default": 0.9},
        "adam_beta2": {"type": float, "default": 0.999},
        "adam_weight_decay": {"type": float, "default": 0.0, "help": "Never applied to a dictionary."},
        "adam_epsilon": {"type": float, "default": 1e-8},
        "use_8bit_adam": {
            "action": "store_true",
            "help": "Moments in 8 bits, a dictionary's excepted; needs bitsandbytes.",
        },
        "max_grad_norm": {"type": float, "default": 1.0, "help": "0 does not clip. Default: 1, or the preset's."},
    }
    _add(parser, flags, defaults)


def add_average_flags(parser: argparse.ArgumentParser | Any) -> None:
    """Adds the flags of averaged weights."""
    parser.add_argument("--use_ema", action="store_true", help="Validate, save and push averaged weights.")
    parser.add_argument("--ema_decay", type=float, default=0.999)


def add_run_flags(parser: argparse.ArgumentParser | Any, **defaults: Any) -> None:
    """Adds the flags of the output folder, the log, the trackers and the checkpoints."""
    flags = {
        "output_dir": {"default": "model"},
        "seed": {"type": int, "default": 0},
        "mixed_precision": {"choices": ["no", "fp16", "bf16"], "help": "Default: accelerate's configuration."},
        "report_to": {"default": "none", "help": "tensorboard, wandb, trackio, …, all or none."},
        "tracker_project_name": {"default": "diffusers_lasers"},
        "log_steps": {"type": int, "default": 50, "help": "Steps between lines of training_log.jsonl."},
        "checkpointing_steps": {"type": int, "default": 0, "help": "Steps between checkpoints; 0 writes none."},
        "checkpoints_total_limit": {"type": int, "help": "Checkpoints to keep. Default: all."},
        "resume_from_checkpoint": {"help": "A checkpoint's path, its name in --output_dir, or `latest`."},
    }
    _add(parser, flags, defaults)


def add_hub_flags(parser: argparse.ArgumentParser | Any) -> None:
    """Adds the flags of the output folder that say whether it may be overwritten and whether it goes to the Hub."""
    add = parser.add_argument
    add("--overwrite_output_dir", action="store_true", help="Delete the run that is in --output_dir.")
    add("--push_to_hub", action="store_true", help="Upload the result; the repository is made before the work begins.")
    add("--hub_model_id", help="Default: the name of --output_dir.")
    add("--hub_token", help="Default: the one that is logged in. It is in no file that is written.")


def check_share(args: argparse.Namespace, *names: str) -> None:
    """Checks that arguments lie in [0, 1)."""
    for name in names:
        if not 0 <= getattr(args, name) < 1:
            raise ValueError(f"--{name} must lie in [0, 1), got {getattr(args, name)}.")


def check_training_flags(args: argparse.Namespace) -> None:
    """Checks that the flags of this module, and those of images that count something, are in their ranges."""
    check_at_least(
        args,
        1,
        *("train_batch_size", "max_train_steps", "num_train_epochs", "gradient_accumulation_steps", "log_steps"),
        *("checkpoints_total_limit", "resolution", "max_train_samples", "max_validation_samples", "crops_per_image"),
        *("num_validation_images", "num_inference_steps"),
    )
    check_at_least(
        args,
        0,
        *("learning_rate", "lr_warmup_steps", "max_grad_norm", "checkpointing_steps", "validation_steps", "seed"),
        *("resize", "dataloader_num_workers", "shuffle_buffer_size"),
    )
    if hasattr(args, "ema_decay"):
        check_share(args, "ema_decay")
    if args.report_to not in ("all", "none"):
        available = sorted(str(name) for name in get_available_trackers())
        if args.report_to not in available:
            installed = ", ".join(available) or "none"
            raise ValueError(f"--report_to {args.report_to} is not installed; installed: {installed}.")
