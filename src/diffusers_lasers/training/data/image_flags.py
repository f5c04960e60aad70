"""The flags that say where images come from and how they are cropped, and the images that they name.

Every script that trains, fits or evaluates has these flags, each with one name, one default and one meaning. The names
are those of diffusers' own examples.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from typing import Any

from torch.utils.data import Subset
from tqdm.auto import tqdm

from ...utils.image_sources import UnreadableImageError, load_image_dataset


_logger = logging.getLogger(__name__)


def add_data_flags(parser: argparse.ArgumentParser | Any, max_validation_samples: int | None = None) -> None:
    """Adds the flags that say where images come from."""
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


def add_crop_flags(parser: argparse.ArgumentParser | Any) -> None:
    """Adds the flags that say how images become batches, for scripts that read them by [`TrainingImages`]."""
    add = parser.add_argument
    add("--cache_in_memory", action="store_true", help="Decode all images once (uint8) before training.")
    add("--resolution", type=int, default=64, help="Side of the training crops in pixels.")
    add(
        "--resize",
        type=int,
        help="Short side before cropping; 0: unchanged. Default: resolution, 0 for bundled photos.",
    )
    add("--center_crop", action="store_true", help="Crop at the centre instead of at random.")
    add("--random_flip", action="store_true", help="Mirror half of the crops.")
    add("--crops_per_image", type=int, help="Crops an epoch. Default: 1, 256 for the bundled photographs.")
    add("--dataloader_num_workers", type=int, default=0)
    add("--streaming", action="store_true", help="Read the data as a stream; nothing is prepared or held.")
    add("--shuffle_buffer_size", type=int, default=1000, help="Rows that a stream is shuffled among.")


def check_data_flags(args: argparse.Namespace) -> None:
    """Checks that the flags of [`add_data_flags`] and [`add_crop_flags`] do not contradict each other."""
    if args.dataset_name and args.train_data_dir:
        raise ValueError("Give --dataset_name or --train_data_dir, not both.")
    if args.validation_split and not args.dataset_name:
        raise ValueError("--validation_split names a split of --dataset_name, which is not given.")
    if args.validation_split and args.validation_data_dir:
        raise ValueError("Give --validation_split or --validation_data_dir, not both.")
    if getattr(args, "streaming", False):
        if not (args.dataset_name or args.train_data_dir):
            raise ValueError("--streaming needs --dataset_name or --train_data_dir.")
        if not args.max_train_steps:
            raise ValueError("--streaming needs --max_train_steps, since the length of a stream is not known.")
        for name in ("cache_in_memory", "crops_per_image"):
            if getattr(args, name):
                raise ValueError(f"--{name} has no meaning with --streaming.")


def open_images(args: argparse.Namespace, split: str = "train") -> Sequence | None:
    """
    The images `(Sequence[PIL.Image.Image])` that the flags name, decoded when they are asked for. Held out are those of
    `--validation_data_dir` or `--validation_split`, or bundled photographs where these are trained on; otherwise
    `None`. Raises a `ValueError` if flags contradict each other, no image is found, or the column is missing.
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
    Decodes every image once, so that one that cannot be read is found before the work. With `skip_unreadable` such
    images are left out, with a warning; otherwise the first raises an `UnreadableImageError`, as do images of which
    none can be read. Gives back the images that are left, `None` for `None`.
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
