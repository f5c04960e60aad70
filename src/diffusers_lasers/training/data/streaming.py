r"""Images from a stream, for data sets that are too large to hold: shared out over ranks and workers, resumed exactly.

Each worker of each rank reads a *shard* of its own. In each epoch the stream is shuffled with a seed of (seed, epoch)
– the order of its files and a buffer of rows – and dealt to the shards, so that each row is seen once an epoch, in
one shard. A run that resumes passes over the rows that a shard has had in all its epochs; image cells are read for
that, and decoded only with `skip_unreadable`, which must know what counted. With as many files as shards, or a
multiple, a worker reads only its own.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from itertools import count, islice
from typing import Any

import numpy as np
import torch
from torch.utils.data import IterableDataset, get_worker_info

from ...utils.image_sources import UnreadableImageError, to_rgb, undecoded
from ...utils.import_utils import requires
from ...utils.seeding import mixed_seed
from .image_dataset import crop_pixels, fit_pixels, to_batch


__all__ = ["ImageStream"]

_logger = logging.getLogger(__name__)


class ImageStream(IterableDataset):
    """
    Creates the batches of one rank from a stream of rows; for `torch.utils.data.DataLoader(..., batch_size=None)`.

    A rank's batch i is made by its worker i mod `num_workers`; another number of workers gives another order.

    Args:
        table (`datasets.IterableDataset`): The rows, see [`open_image_stream`].
        image_column (`str`): The column with the images.
        resolution (`int`): Side of the crops in pixels.
        batch_size (`int`): Images a batch.
        stop (`int`): Batches of this rank in the whole training.
        start (`int`, defaults to 0): Batches that it had before.
        rank (`int`, defaults to 0): This rank.
        world_size (`int`, defaults to 1): Ranks.
        resize (`int`, *optional*): Length of the short side before cropping, as in [`ImageDataset`].
        center_crop (`bool`, defaults to `False`): Crop at the centre instead of at random.
        random_flip (`bool`, defaults to `False`): Mirror half of the crops left to right.
        shuffle_buffer (`int`, defaults to 1000): Rows among which the next is drawn; 0 keeps the order of the stream.
        seed (`int`, defaults to 0): Seed of order, crops and flips.
        skip_unreadable (`bool`, defaults to `False`): Leave out images that cannot be decoded, with a warning, and
            count them in the batches (`unreadable`).

    Raises:
        ValueError: If a number is out of range, or the column is missing or holds no images.
    """

    def __init__(
        self,
        table: Any,
        image_column: str,
        resolution: int,
        batch_size: int,
        stop: int,
        start: int = 0,
        rank: int = 0,
        world_size: int = 1,
        resize: int | None = None,
        center_crop: bool = False,
        random_flip: bool = False,
        shuffle_buffer: int = 1000,
        seed: int = 0,
        skip_unreadable: bool = False,
    ):
        for name, value, least in (
            ("resolution", resolution, 1),
            ("batch_size", batch_size, 1),
            ("shuffle_buffer", shuffle_buffer, 0),
        ):
            if value < least:
                raise ValueError(f"`{name}` must be at least {least}, got {value!r}.")
        if resize is not None and resize < resolution:
            raise ValueError(f"`resize` must be at least the resolution, {resolution}, got {resize!r}.")
        self.table, self.image_column, self.batch_size = undecoded(table, image_column), image_column, batch_size
        self.start, self.stop, self.rank, self.world_size = start, stop, rank, world_size
        self.resolution, self.resize, self.center_crop, self.random_flip = resolution, resize, center_crop, random_flip
        self.shuffle_buffer, self.seed, self.skip_unreadable = shuffle_buffer, seed, skip_unreadable

    def __len__(self) -> int:
        return max(0, self.stop - self.start)

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        worker = get_worker_info()
        workers, number = (worker.num_workers, worker.id) if worker is not None else (1, 0)
        shard = (self.start + number) % workers
        had = len(range(shard, self.start, workers))
        crops = self._crops(self.rank * workers + shard, self.world_size * workers, had * self.batch_size)
        for _ in range(self.start + number, self.stop, workers):
            chosen = list(islice(crops, self.batch_size))
            batch = {"pixel_values": to_batch([crop for crop, _ in chosen])}
            if self.skip_unreadable:
                batch["unreadable"] = torch.tensor(sum(skipped for _, skipped in chosen))
            yield batch

    def _rows(self, shard: int, shards: int) -> Iterator[tuple[int, int, Any]]:
        """Epoch, place in the shard's epoch, and image cell, without end."""
        split = requires("datasets.distributed", "training").split_dataset_by_node
        for epoch in count():
            table = self.table
            if self.shuffle_buffer:
                seed = mixed_seed(self.seed, epoch, 0) % 2**32
                table = table.shuffle(seed=seed, buffer_size=self.shuffle_buffer)
            table = split(table, rank=shard, world_size=shards)
            place = -1
            # `iter` and not `__iter__`: that one would split the stream over workers a second time
            for place, row in enumerate(table.iter(batch_size=1)):
                yield epoch, place, row[self.image_column][0]
            if place < 0:
                raise ValueError(f"The stream must have at least one image for each of {shards} ranks and workers.")

    def _crops(self, shard: int, shards: int, had: int) -> Iterator[tuple[np.ndarray, int]]:
        """Crops after the first `had`, each with the number of unreadable images that were left out before it."""
        skipped = 0
        for epoch, place, cell in self._rows(shard, shards):
            if had and not self.skip_unreadable:
                had -= 1
                continue
            try:
                image = to_rgb(cell, f"row {place} of rank and worker {shard}")
            except UnreadableImageError as error:
                if not self.skip_unreadable:
                    raise
                skipped += 1
                if epoch == 0:
                    _logger.warning(f"{error} It is skipped.")
                continue
            if had:  # whether a row counted can only be known by decoding it
                had, skipped = had - 1, 0
                continue
            uniforms = np.random.default_rng([self.seed, epoch, 1, shard, place]).random(3).tolist()
            pixels = fit_pixels(image, self.resolution, self.resize)
            shape = (self.resolution, uniforms, self.center_crop, self.random_flip, self.resize)
            yield crop_pixels(pixels, *shape), skipped
            skipped = 0
