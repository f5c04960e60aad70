"""The images of a training script: those that are trained on, as a data set or a stream, and those that are held out.

Both are opened by the flags of `image_flags`. Data sets and streams give the same batches to a loop, shared out over
processes, and a resumed run goes on where it stopped.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator

import numpy as np
import torch
from accelerate import Accelerator
from PIL import Image
from torch.utils.data import DataLoader, Dataset, Subset

from ...utils.image_sources import open_image_stream, to_rgb
from .image_dataset import ImageDataset, take_batch
from .image_flags import check_held_out_images, open_images
from .sampling import StreamSampler
from .streaming import ImageStream


CROPS_PER_BUNDLED_PHOTO = {"train": 256, "validation": 32}


class _StreamedCells(list):
    """Held-out cells of a stream, decoded when they are asked for."""

    def __getitem__(self, index: int) -> Image.Image:
        return to_rgb(super().__getitem__(index), f"row {index} of the held-out images")


class TrainingImages:
    """
    Creates the images of a training script, and reads every held-out one once.

    Args:
        args (`argparse.Namespace`): With the flags of [`add_data_flags`] and [`add_crop_flags`], `train_batch_size`,
            `max_train_steps` and `seed`.
        accelerator (`accelerate.Accelerator`): All processes make this object together, and share its batches.

    Attributes:
        dataset ([`ImageDataset`] or `datasets.IterableDataset`): What is trained on; a stream with `--streaming`.
        held_out ([`ImageDataset`], *optional*): What is held out; `None` where there is nothing.

    Raises:
        ValueError: If flags contradict each other or no image is found; for a held-out image that cannot be read, its
            subclass `UnreadableImageError`.
    """

    def __init__(self, args: argparse.Namespace, accelerator: Accelerator):
        self.args, self.accelerator = args, accelerator
        with accelerator.main_process_first():  # it prepares what `datasets` keeps, the others read that
            self.dataset = self._open_training_images()
            self.held_out = self._open_held_out_images()
        if self.held_out is not None and args.skip_unreadable:
            self.held_out[0]  # there is one that can be read
        elif self.held_out is not None:
            share = range(accelerator.process_index, len(self.held_out.source), accelerator.num_processes)
            if share:
                check_held_out_images(Subset(self.held_out.source, share), progress=accelerator.is_main_process)

    @property
    def _bundled(self) -> bool:
        return not (self.args.dataset_name or self.args.train_data_dir)

    @property
    def _resize(self) -> int | None:
        return (self.args.resolution if self.args.resize is None else self.args.resize) or None

    def _open_training_images(self) -> ImageDataset | Dataset:
        args = self.args
        if args.streaming:
            return open_image_stream(
                dataset_name=args.dataset_name,
                dataset_config_name=args.dataset_config_name,
                train_data_dir=args.train_data_dir,
                image_column=args.image_column,
                max_samples=args.max_train_samples,
            )
        return ImageDataset(
            open_images(args),
            args.resolution,
            resize=(args.resize or None) if self._bundled else self._resize,
            center_crop=args.center_crop,
            random_flip=args.random_flip,
            crops_per_image=args.crops_per_image or (CROPS_PER_BUNDLED_PHOTO["train"] if self._bundled else 1),
            seed=args.seed,
            cache_in_memory=args.cache_in_memory or self._bundled,
            skip_unreadable=args.skip_unreadable,
        )

    def _open_held_out_images(self) -> ImageDataset | None:
        args = self.args
        if args.streaming and (args.validation_data_dir or args.validation_split):
            hub = {"dataset_name": args.dataset_name, "dataset_config_name": args.dataset_config_name}
            place = {"train_data_dir": args.validation_data_dir} if args.validation_data_dir else hub
            table = open_image_stream(
                **place,
                split=args.validation_split or "validation",
                image_column=args.image_column,
                max_samples=args.max_validation_samples,
            )
            source = _StreamedCells(row[args.image_column][0] for row in table.iter(batch_size=1))
        else:
            source = open_images(args, "validation")
        if source is None:
            return None
        if self._bundled and not args.validation_data_dir:
            shown = {"crops_per_image": CROPS_PER_BUNDLED_PHOTO["validation"], "cache_in_memory": True}
            return ImageDataset(source, args.resolution, resize=args.resize or None, **shown)
        shown = {"center_crop": True, "skip_unreadable": args.skip_unreadable}
        return ImageDataset(source, args.resolution, resize=self._resize, **shown)

    def _stream(self, start: int, stop: int) -> ImageStream:
        """Batches `start` to `stop` of this process's share of the stream."""
        return ImageStream(
            self.dataset,
            self.args.image_column,
            self.args.resolution,
            self.args.train_batch_size,
            stop,
            start=start,
            rank=self.accelerator.process_index,
            world_size=self.accelerator.num_processes,
            resize=self._resize,
            center_crop=self.args.center_crop,
            random_flip=self.args.random_flip,
            shuffle_buffer=self.args.shuffle_buffer_size,
            seed=self.args.seed,
            skip_unreadable=self.args.skip_unreadable,
        )

    def batches(self, start: int, stop: int) -> Iterator[dict[str, torch.Tensor]]:
        """
        This process's batches from the sample `start` to `stop`, counted over all processes: `pixel_values` of shape
        `(B, 3, H, W)` on the accelerator's device, and with `--skip_unreadable` how many images were left out.
        """
        args = self.args
        if args.streaming:
            each = args.train_batch_size * self.accelerator.num_processes
            loader = DataLoader(self._stream(start // each, stop // each), batch_size=None, **self._loading())
            for batch in loader:
                yield {n: tensor.to(self.accelerator.device, non_blocking=True) for n, tensor in batch.items()}
        else:
            sampler = StreamSampler(len(self.dataset), stop, start=start, seed=args.seed)
            shared = {"sampler": sampler, "collate_fn": take_batch, **self._loading()}
            yield from self.accelerator.prepare_data_loader(DataLoader(self.dataset, args.train_batch_size, **shared))

    def _loading(self) -> dict[str, object]:
        return {
            "num_workers": self.args.dataloader_num_workers,
            "pin_memory": torch.cuda.is_available(),
            "generator": torch.Generator(),  # its own, so that a resumed run draws the same global random numbers
        }

    def first_batches(self, count: int) -> Iterator[torch.Tensor]:
        """Up to `count` batches `(B, 3, H, W)` from the beginning, on the CPU, without moving the training on."""
        if self.args.streaming:
            yield from (batch["pixel_values"] for batch in self._stream(0, count))
            return
        keys = list(StreamSampler(len(self.dataset), count * self.args.train_batch_size, seed=self.args.seed))
        yield from self.dataset.batches(self.args.train_batch_size, keys)

    def some(self, count: int) -> torch.Tensor:
        """Up to `count` images for a picture: held-out ones, evenly spaced, or of the training if there are none."""
        if self.held_out is None and self.args.streaming:
            return torch.cat(list(self.first_batches(-(-count // self.args.train_batch_size))))[:count]
        shown = self.dataset if self.held_out is None else self.held_out
        return shown.take(np.linspace(0, len(shown) - 1, min(len(shown), count)).astype(int).tolist())
