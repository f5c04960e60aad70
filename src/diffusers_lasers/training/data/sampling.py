r"""The order in which samples are seen: one stream over all epochs, a function of (seed, position) alone.

Position p of the stream lies in epoch ⌊p / n⌋ and there takes entry p mod n of a permutation seeded by (seed, epoch).
A run that resumes starts the stream at the number of samples that it had seen, on any number of processes and workers;
nothing is iterated over to be skipped, and no epoch drops its last samples. The key (epoch, index) also seeds the
crop, see `data.py`.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch.utils.data import Sampler

from ...utils.seeding import seeded_generator


__all__ = ["StreamSampler"]


class StreamSampler(Sampler):
    """
    Creates one stream of keys (epoch, index) over all epochs, from a given position.

    Each epoch visits every index once, in an order that follows from `seed` and the epoch. For a
    `torch.utils.data.DataLoader` that `accelerate` shares out over processes: batch i of the stream goes to process i
    mod P.

    Args:
        length (`int`): Samples an epoch.
        total (`int`): Position at which the stream ends (samples of the whole training, all processes together).
        start (`int`, defaults to 0): Position of the first key: the samples that were seen before.
        shuffle (`bool`, defaults to `True`): Permute each epoch.
        seed (`int`, defaults to 0): Seed of the permutations.

    Raises:
        ValueError: If `length` is below 1.
    """

    def __init__(self, length: int, total: int, start: int = 0, shuffle: bool = True, seed: int = 0):
        if length < 1:
            raise ValueError(f"`length` must be at least 1, got {length!r}.")
        self.length, self.total, self.start, self.shuffle, self.seed = length, total, start, shuffle, seed

    def __len__(self) -> int:
        return max(0, self.total - self.start)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        position = self.start
        while position < self.total:
            epoch, offset = divmod(position, self.length)
            order = range(self.length)
            if self.shuffle:
                order = torch.randperm(self.length, generator=seeded_generator(self.seed, epoch, 0)).tolist()
            for index in order[offset : offset + self.total - position]:
                yield epoch, index
            position += self.length - offset
