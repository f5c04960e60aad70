"""Flags that all scripts that train or fit share, each with one name, one default and one meaning, and what the flags
stand for.

The names are those of diffusers' own examples.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch.utils.data import Subset
from tqdm.auto import tqdm

from ...utils.image_sources import UnreadableImageError, load_image_dataset
from ...utils.import_utils import requires


__all__ = [
    "add_data_flags",
    "add_hub_flags",
    "adam_optimizer",
    "check_data_flags",
    "check_held_out_images",
    "open_images",
    "scaled_learning_rate",
]

_logger = logging.getLogger(__name__)


def add_data_flags(parser: argparse.ArgumentParser | Any, max_validation_samples: int | None = None) -> None:
    """
    Adds the flags that say where images come from.

    Args:
        parser (`argparse.ArgumentParser` or a group of one): Gets the flags.
        max_validation_samples (`int`, *optional*): Default of that flag; `None` takes all held-out images.
    """
    add = parser.add_argument
    add("--dataset_name", help="Data set on the Hub, or a folder that `datasets` reads.")
    add("--dataset_config_name", help="Its configuration.")
    add(
        "--train_data_dir",
        help="Folder of images or parquet files, one such file, or a pattern. Default: bundled photos.",
    )
    add("--image_column", default="image", help="Column with the images.")
    add("--max_train_samples", type=int, help="Take only the first so many images.")
    add("--cache_dir", help="Where `datasets` keeps what it prepares.")
    add("--skip_unreadable", action="store_true", help="Leave out images that cannot be decoded, and count them.")
    add("--validation_data_dir", help="Held-out images, like --train_data_dir.")
    add("--validation_split", help="Held-out split of --dataset_name.")
    add("--max_validation_samples", type=int, default=max_validation_samples, help="Held-out images at most.")


def add_hub_flags(parser: argparse.ArgumentParser | Any) -> None:
    """
    Adds the flags of the output folder that say whether it may be overwritten and whether it goes to the Hub.

    Args:
        parser (`argparse.ArgumentParser` or a group of one): Gets the flags.
    """
    add = parser.add_argument
    add("--overwrite_output_dir", action="store_true", help="Delete the run that is in --output_dir.")
    add("--push_to_hub", action="store_true", help="Upload the result; the repository is made before the work begins.")
    add("--hub_model_id", help="Default: the name of --output_dir.")
    add("--hub_token", help="Default: the one that is logged in. It is in no file that is written.")


def check_data_flags(args: argparse.Namespace) -> None:
    """
    That the flags of [`add_data_flags`] do not contradict each other.

    Args:
        args (`argparse.Namespace`): With these flags.

    Raises:
        ValueError: If they do.
    """
    if args.dataset_name and args.train_data_dir:
        raise ValueError("Give --dataset_name or --train_data_dir, not both.")
    if args.validation_split and not args.dataset_name:
        raise ValueError("--validation_split names a split of --dataset_name, which is not given.")
    if args.validation_split and args.validation_data_dir:
        raise ValueError("Give --validation_split or --validation_data_dir, not both.")


def open_images(args: argparse.Namespace, split: str = "train") -> Sequence | None:
    """
    The images that the flags name.

    Args:
        args (`argparse.Namespace`): With the flags of [`add_data_flags`].
        split (`str`, defaults to `"train"`): `"train"` or `"validation"`.

    Returns:
        `Sequence[PIL.Image.Image]` or `None`: The images, decoded when they are asked for. Held out: those of
        `--validation_data_dir` or `--validation_split`, or of the bundled photographs where these are trained on;
        otherwise `None`.

    Raises:
        ValueError: If flags contradict each other, no image is found, or the column is missing.
    """
    check_data_flags(args)
    hub = {"dataset_name": args.dataset_name, "dataset_config_name": args.dataset_config_name}
    shared = {"image_column": args.image_column, "cache_dir": args.cache_dir}
    if split == "train":
        place = {**hub, "train_data_dir": args.train_data_dir}
        return load_image_dataset(**place, **shared, max_samples=args.max_train_samples)
    if args.validation_data_dir:
        place = {"train_data_dir": args.validation_data_dir, "split": "validation"}
    elif args.validation_split:
        place = {**hub, "split": args.validation_split}
    elif not (args.dataset_name or args.train_data_dir):
        place = {"split": "validation"}
    else:
        return None
    return load_image_dataset(**place, **shared, max_samples=args.max_validation_samples)


def check_held_out_images(
    images: Sequence | None, progress: bool = True, skip_unreadable: bool = False
) -> Sequence | None:
    """
    Decodes every image once, so that one that cannot be read is found before the work and not after it.

    Args:
        images (`Sequence[PIL.Image.Image]`, *optional*): The images; `None` checks nothing.
        progress (`bool`, defaults to `True`): Whether to show a bar.
        skip_unreadable (`bool`, defaults to `False`): Leave out what cannot be decoded, with a warning.

    Returns:
        `Sequence[PIL.Image.Image]` or `None`: `images`, without those that were left out.

    Raises:
        UnreadableImageError: For the first that cannot be decoded, unless `skip_unreadable`; also then if none can.
    """
    if images is None:
        return None
    readable = []
    for index in tqdm(range(len(images)), desc="Reading images", disable=not progress, leave=False):
        try:
            images[index]
            readable.append(index)
        except UnreadableImageError as error:
            if not skip_unreadable:
                raise
            _logger.warning(f"{error} It is skipped.")
    if not readable:
        raise UnreadableImageError("None of the images can be read.")
    return images if len(readable) == len(images) else Subset(images, readable)


def scaled_learning_rate(args: argparse.Namespace, num_processes: int, rate: float | None = None) -> float:
    """
    A learning rate, with `--scale_lr` times the images of a step.

    Args:
        args (`argparse.Namespace`): With `learning_rate`, `scale_lr`, `train_batch_size` and, where there is one,
            `gradient_accumulation_steps`.
        num_processes (`int`): Processes that train together.
        rate (`float`, *optional*): Instead of `learning_rate`.

    Returns:
        `float`: The learning rate.
    """
    accumulation = getattr(args, "gradient_accumulation_steps", 1)
    rate = args.learning_rate if rate is None else rate
    return rate * (args.train_batch_size * accumulation * num_processes if args.scale_lr else 1)


def adam_optimizer(
    groups: Iterable[Any],
    args: argparse.Namespace,
    learning_rate: float | None = None,
    full_precision: Sequence[torch.nn.Parameter] = (),
) -> torch.optim.Optimizer:
    """
    AdamW, with `--use_8bit_adam` that of bitsandbytes, whose moments have 8 bits.

    Args:
        groups (iterable of parameters or of groups): What it steps.
        args (`argparse.Namespace`): With `learning_rate`, `adam_beta1`, `adam_beta2`, `adam_epsilon`,
            `adam_weight_decay` and `use_8bit_adam`.
        learning_rate (`float`, *optional*): Instead of that of `args`.
        full_precision (`Sequence[torch.nn.Parameter]`, *optional*): Parameters whose moments stay floats: those that
            [`DictionaryUpkeep`] writes to.

    Returns:
        `torch.optim.Optimizer`: The optimiser.

    Raises:
        ImportError: If bitsandbytes is missing (`pip install diffusers_lasers[8bit]`).
    """
    kind = torch.optim.AdamW
    if args.use_8bit_adam:
        eight = requires("bitsandbytes", "8bit").optim
        kind = eight.AdamW8bit
        if full_precision:
            eight.GlobalOptimManager.get_instance().override_config(list(full_precision), "optim_bits", 32)
    return kind(
        groups,
        lr=args.learning_rate if learning_rate is None else learning_rate,
        betas=(args.adam_beta1, args.adam_beta2),
        eps=args.adam_epsilon,
        weight_decay=args.adam_weight_decay,
    )
