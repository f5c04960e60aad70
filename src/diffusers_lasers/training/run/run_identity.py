"""The identity of a run: the arguments that decide what is trained. A checkpoint of other arguments is refused."""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

from ...utils.command_line import recorded_arguments


RUN_FILE = "run.json"
# Arguments that may change when a run goes on: where and how often it writes, how long it takes, what it is judged by.
_FREE = """
    output_dir logging_dir overwrite_output_dir resume_from_checkpoint report_to tracker_project_name log_steps
    checkpointing_steps checkpoints_total_limit license cache_dir codes_dir cache_in_memory dataloader_num_workers
    validation_data_dir validation_split validation_steps max_validation_samples num_validation_images
    push_to_hub hub_model_id hub_token max_train_steps num_train_epochs num_inference_steps temperature
    gradient_checkpointing skip_unreadable train_batch_size gradient_accumulation_steps perceptual_weights
""".split()
# Arguments that are places: compared by what they point to.
_PLACES = ("train_data_dir", "dataset_name", "codec", "pretrained_model_name_or_path", "pipeline")


def run_identity(args: argparse.Namespace, **more: Any) -> dict[str, Any]:
    """
    What a run is known by: the arguments that decide what is trained.

    Args:
        args (`argparse.Namespace`): The arguments, before anything of the run is computed from them.
        **more: What else has to be the same, e.g. `total_batch_size`.

    Returns:
        `dict[str, Any]`: Name → value that JSON can hold. Paths are resolved; arguments that may change (number of
        steps, where and how often something is written, held-out images, batch size a process) are left out.
    """
    identity = {name: value for name, value in recorded_arguments(args).items() if name not in _FREE}
    for name in _PLACES:
        if identity.get(name) is not None and os.path.exists(identity[name]):
            identity[name] = os.path.realpath(identity[name])
    return json.loads(json.dumps({**identity, **more}, default=str))


def check_identity(place: Path, identity: dict[str, Any]) -> None:
    """
    Checks that a checkpoint or an output folder holds the run of an identity. Raises a `ValueError` if it holds another
    run, one of a version with other flags, or none that can be read.
    """
    weights = "--pretrained_model_name_or_path starts a new run from its weights."
    try:
        saved = json.loads((place / RUN_FILE).read_text(encoding="utf-8"))["identity"]
        gone = [f"--{name}" for name in saved if name not in identity]
        names = [name for name in identity if name in saved and saved[name] != identity[name]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{str(place)!r} has no readable {RUN_FILE}: it was not written by this version of this script. {weights}"
        ) from error
    if gone:
        said = ", ".join([*gone[:3], *["…"] * (len(gone) > 3)])
        raise ValueError(
            f"{str(place)!r} was written by a version of this script with other flags ({said}), and cannot be resumed: "
            f"{weights}"
        )
    if names:
        said = ", ".join(f"--{name} {saved[name]!r} and not {identity[name]!r}" for name in names[:3])
        raise ValueError(
            f"{str(place)!r} belongs to another run, with {said}: give that run's arguments, another --output_dir, or "
            "start a new run from its weights with --pretrained_model_name_or_path."
        )
