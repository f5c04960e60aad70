"""How the processes of a script were launched, and how a script ends on an error.

accelerate's own FSDP takes one model, and does not exist on a CPU. A script that shards by itself reads what the launch
asks for, and tells accelerate that its processes are merely data-parallel.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from accelerate.utils import parse_flag_from_env

from ...utils.command_line import hide_token, one_line
from ...utils.image_decoding import UnreadableImageError
from .checkpoints import latest_checkpoint


def launched_fsdp() -> bool | None:
    """
    `None` if the launch does not ask for FSDP; otherwise whether units give up the parts of other ranks between forward
    and backward pass. Raises a `ValueError` for what is not supported: DeepSpeed, Megatron-LM, FSDP 1 or its options.
    """
    for name, flag, reason in (
        ("DeepSpeed", "DEEPSPEED", "its copies of the weights undo what the upkeep of the dictionary writes"),
        ("Megatron-LM", "MEGATRON_LM", "it splits layers of transformers, and there are none"),
    ):
        if parse_flag_from_env(f"ACCELERATE_USE_{flag}"):
            raise ValueError(f"This script trains in one process, data-parallel or with FSDP, got {name}: {reason}.")
    if not parse_flag_from_env("ACCELERATE_USE_FSDP"):
        return None
    version = os.environ.get("FSDP_VERSION", "1")
    if version != "2":
        raise ValueError(f"`fsdp_version` must be 2, got {version}.")
    for name, instead in (
        ("FSDP_OFFLOAD_PARAMS", "it is not supported"),
        ("FSDP_ACTIVATION_CHECKPOINTING", "give --gradient_checkpointing"),
    ):
        if parse_flag_from_env(name):
            raise ValueError(f"`{name.lower()}` must be false: {instead}.")
    reshard = os.environ.get("FSDP_RESHARD_AFTER_FORWARD", "true").lower()
    if reshard not in ("true", "false"):
        raise ValueError(f"`fsdp_reshard_after_forward` must be true or false, got {reshard}.")
    return reshard == "true"


def check_fsdp_flags(args: argparse.Namespace, mixed_precision: str) -> None:
    """Checks that the flags of a script go together with FSDP."""
    if mixed_precision == "fp16":
        raise ValueError(
            "FSDP needs --mixed_precision no or bf16, got fp16: its scaler does not take sharded gradients."
        )
    if args.channels_last:
        raise ValueError("--channels_last cannot be given together with FSDP, which shards contiguous weights only.")
    if args.use_8bit_adam:
        raise ValueError("--use_8bit_adam cannot be given together with FSDP, whose shards its moments do not follow.")


def hide_fsdp_from_accelerate() -> None:
    """Changes the environment so that an `Accelerator` made after it is data-parallel: the script shards by itself."""
    os.environ["ACCELERATE_USE_FSDP"] = "false"


@contextmanager
def one_sentence(
    script: str, args: argparse.Namespace, *kinds: type[Exception], training: bool = False
) -> Iterator[None]:
    """
    Errors of some kinds, by default `ImportError`, `OSError` and `ValueError`, end the program with one sentence, which
    begins with the script's name and shows no token. With `training` it also names the last whole checkpoint.
    """
    try:
        yield
    except kinds or (ImportError, OSError, ValueError) as error:
        sentence = one_line(error)
        if isinstance(error, UnreadableImageError):
            # a data loader's worker puts its traceback before the sentence, and the error's name
            sentence = sentence.split("UnreadableImageError: ")[-1] + " --skip_unreadable leaves such images out."
        if training:
            last = latest_checkpoint(args.output_dir)
            end = f"; the last whole checkpoint is {last}." if last else "; there is no checkpoint."
            sentence = sentence.rstrip(".") + end
        raise SystemExit(f"{Path(script).name}: error: {hide_token([sentence], args.hub_token)[0]}") from None
