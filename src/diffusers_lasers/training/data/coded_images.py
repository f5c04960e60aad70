"""Images as the indices of a frozen codec: coded once, kept on the disk, and given to a training by keys."""

from __future__ import annotations

import argparse
import math
import os
import sys
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch.utils.data import Dataset
from tqdm.auto import tqdm

from ...models.autoencoders.autoencoder_dl import AutoencoderDL
from ...models.codecs import ModelBasedVQCodec
from .code_cache import cached_codes, images_fingerprint, model_fingerprint
from .image_dataset import ImageDataset
from .image_flags import open_images


def load_codec(path: str | os.PathLike) -> ModelBasedVQCodec | AutoencoderDL:
    """A codec or an autoencoder, told apart by its configuration; frozen, in evaluation mode."""
    kinds = {"ModelBasedVQCodec": ModelBasedVQCodec, "AutoencoderDL": AutoencoderDL}
    kind = AutoencoderDL.load_config(path).get("_class_name")
    if kind not in kinds:
        raise ValueError(f"--codec must be a ModelBasedVQCodec or an AutoencoderDL, got {kind!r} in {path}.")
    return kinds[kind].from_pretrained(path).requires_grad_(False).eval()


class CodedImages(Dataset):
    """
    Creates the codes of all images of a split, from the cache if they are there.

    Args:
        codec ([`ModelBasedVQCodec`] or [`AutoencoderDL`]): The codec, on the device that codes.
        args (`argparse.Namespace`): With the flags of [`add_data_flags`], `resolution`, `resize` and `random_flip`.
        folder (`str` or `os.PathLike`): Where the codes are kept.
        split (`str`, defaults to `"train"`): `"train"` or `"validation"`. Training images are coded twice with
            `random_flip`, the second time mirrored. There may be no images that are held out.
        version (`str`, *optional*): Part of what the codes depend on.

    Raises:
        ValueError: If flags contradict each other or no image is found; for one that cannot be read, its subclass
            `UnreadableImageError`.
    """

    def __init__(
        self,
        codec: ModelBasedVQCodec | AutoencoderDL,
        args: argparse.Namespace,
        folder: str | os.PathLike,
        split: str = "train",
        version: str = "",
    ):
        source = open_images(args, split)
        self.table: Sequence[np.ndarray] = []
        if source is None:
            return
        resize = args.resolution if args.resize is None else args.resize or None
        shared = {"center_crop": True, "skip_unreadable": args.skip_unreadable}
        images = ImageDataset(source, args.resolution, resize=resize, **shared)
        views = 2 if args.random_flip and split == "train" else 1
        slots, codewords, side = codec.index_layout
        grid = -(-args.resolution // side)
        key = {
            "images": images_fingerprint(source),
            "codec": model_fingerprint(codec),
            "resolution": args.resolution,
            "resize": resize,
            "views": views,
            "skip_unreadable": args.skip_unreadable,
            "version": version,
        }

        def code_all() -> Iterator[np.ndarray]:
            total = math.ceil(len(images) / 64)
            for pixels in tqdm(images.batches(64), total=total, desc=f"Codes, {split}", file=sys.stderr):
                pixels = pixels.to(codec.device)
                for view in (pixels, pixels.flip(-1))[:views]:
                    yield codec.encode_indices(view).cpu().numpy()

        shape = (views * len(images), slots, grid, grid)
        self.table = cached_codes(folder, split, key, code_all, shape, codewords)

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, key: tuple[int, int]) -> np.ndarray:
        """The code `(slots, h, w)` of a key (epoch, index), as [`StreamSampler`] gives them."""
        return self.table[int(key[1])]

    @staticmethod
    def collate(codes: Sequence[np.ndarray]) -> torch.Tensor:
        """Codes as one tensor of shape `(B, slots, h, w)`, int64."""
        return torch.from_numpy(np.stack(codes).astype(np.int64))

    def batches(self, batch_size: int) -> Iterator[torch.Tensor]:
        """All codes in order."""
        for start in range(0, len(self), batch_size):
            yield self.collate([self.table[i] for i in range(start, min(start + batch_size, len(self)))])
