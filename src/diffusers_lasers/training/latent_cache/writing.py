"""Encodes the images of a latent cache, shard by shard. Each rank writes every so-manyth shard.

What is there already is kept: a shard that is wanted as it is, and of others the rows whose images and windows are
unchanged. A shard appears as a whole or not at all, so that a run that was killed goes on with the next one, and its
batches, and therefore its bytes, are those of a run that was not.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import ModelMixin
from tqdm.auto import tqdm

from ...models.autoencoders.diffusers_latents import encoder_latents, to_denoiser
from ...utils.image_decoding import UnreadableImageError, to_rgb
from ..data.image_dataset import to_batch
from .image_rows import ImageRows
from .latent_code import LatentCode
from .shards import DATA, OWN_COLUMNS, read_shard, shard_name, write_shard
from .windows import Window, Windows


__all__ = ["CacheWriter", "posterior_latents"]

_logger = logging.getLogger(__name__)


@torch.no_grad()
def posterior_latents(
    autoencoder: ModelMixin, images: torch.Tensor, deviation: bool = False
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """
    Latents of images on the denoiser's scale, of a distribution its mode; and the logarithm of its deviation there.

    Args:
        autoencoder (`ModelMixin`): An autoencoder of images.
        images (`torch.Tensor` of shape `(B, 3, H, W)`): Images in [−1, 1], on any device.
        deviation (`bool`, defaults to `False`): Whether to give the deviation.

    Returns:
        `tuple[torch.Tensor, torch.Tensor | None]`: Latents `(B, L, h, w)` and log-deviations of that shape, float32.

    Raises:
        ValueError: If the latents are not of images or not finite, or have no deviation.
    """
    parameter = next(autoencoder.parameters())
    output = autoencoder.encode(images.to(parameter.device, parameter.dtype))
    mode = encoder_latents(output)
    if mode.ndim != 4:
        raise ValueError(f"`autoencoder` must give latents of images, (B, L, h, w), got {tuple(mode.shape)}.")
    latents = to_denoiser(autoencoder, mode).float()
    if not torch.isfinite(latents).all():
        raise ValueError("`autoencoder` must give finite latents, got NaN or infinity.")
    if not deviation:
        return latents, None
    spread = getattr(getattr(output, "latent_dist", None), "std", None)
    if spread is None:
        raise ValueError(f"`deviation` must be False for {type(autoencoder).__name__}, whose latents have none.")
    scaled = to_denoiser(autoencoder, spread).float() - to_denoiser(autoencoder, torch.zeros_like(spread)).float()
    return latents, scaled.abs().clamp_min(1e-10).log()


@dataclass
class _Item:
    """A window of an image that is to be encoded."""

    place: int  # in the shard
    window: Window
    original: tuple[int, int]
    pixels: np.ndarray


class CacheWriter:
    """
    Writes the shards of a cache.

    Args:
        folder (`Path`): The cache; its folder of shards is made.
        rows ([`ImageRows`]): The images.
        windows ([`Windows`]): The parts of them to encode.
        autoencoder (`ModelMixin`): Encodes them; in evaluation mode, on its device.
        code ([`LatentCode`]): Codes their latents; on the same device.
        deviation ([`LatentCode`], *optional*): Codes their log-deviations. Defaults to `None`: they are left out.
        identity (`str`, defaults to `""`): What tells apart autoencoder and code.
        shard_size (`int`, defaults to 1024): Images a shard.
        batch_size (`int`, defaults to 8): Images that the autoencoder reads at a time.
        workers (`int`, defaults to 4): Threads that read and scale images.
        skip_unreadable (`bool`, defaults to `False`): Whether images that cannot be read are left out with a warning.
    """

    def __init__(
        self,
        folder: Path,
        rows: ImageRows,
        windows: Windows,
        autoencoder: ModelMixin,
        code: LatentCode,
        deviation: LatentCode | None = None,
        identity: str = "",
        shard_size: int = 1024,
        batch_size: int = 8,
        workers: int = 4,
        skip_unreadable: bool = False,
    ):
        self.folder, self.rows, self.windows = folder / DATA, rows, windows
        self.autoencoder, self.code, self.deviation, self.identity = autoencoder, code, deviation, identity
        self.shard_size, self.batch_size, self.workers = shard_size, batch_size, workers
        self.skip_unreadable = skip_unreadable
        self._known: dict[str, Path] | None = None  # the shard of each key that was there at first
        self.folder.mkdir(parents=True, exist_ok=True)

    def write(self, rank: int = 0, world_size: int = 1, progress: bool = True) -> list[str]:
        """
        Writes the shards of a rank that are not there yet.

        Args:
            rank (`int`, defaults to 0): The rank.
            world_size (`int`, defaults to 1): How many there are.
            progress (`bool`, defaults to `True`): Whether to show a bar.

        Returns:
            `list[str]`: Names of the rank's shards.

        Raises:
            ValueError: If an image cannot be read, unless these are skipped, or latents do not fit the code.
            OSError: If a file cannot be read or written.
        """
        names, done = [], 0
        own = [range(len(self.rows))[part] for part in self._parts()[rank::world_size]]
        bar = tqdm(total=sum(map(len, own)), desc="Latents", unit="image", disable=not progress)
        with ThreadPoolExecutor(self.workers) as pool, bar:
            for images in own:
                names.append(self._shard(images, pool, bar))
                done += len(images)
                bar.update(done - bar.n)
        return names

    def _parts(self) -> list[slice]:
        """Images of each shard."""
        return [slice(start, start + self.shard_size) for start in range(0, len(self.rows), self.shard_size)]

    def _shard(self, images: range, pool: ThreadPoolExecutor, bar: tqdm) -> str:
        """Writes a shard if it is not there, and gives its name."""
        values = self.rows.values(images.start, images.stop)
        found = pool.map(lambda image: self.windows.keys(self.rows.content(image), self.identity), images)
        keys = [key for own in found for key in own]
        name = shard_name(images.start // self.shard_size, keys, values)
        path = self.folder / name
        if path.exists():
            try:
                read_shard(path)
                return name
            except ValueError as error:
                _logger.warning(f"{error} It is made anew.")
                path.unlink()
        rows = self._known_rows(keys)
        missing = [place for place in range(len(keys)) if place not in rows]
        rows |= self._new_rows(images, missing, pool, bar)
        places = sorted(rows)
        owners = [place // self.windows.per_image for place in places]
        write_shard(path, [rows[place] | {"key": keys[place]} for place in places], values, owners)
        return name

    def _known_rows(self, keys: list[str]) -> dict[int, dict[str, Any]]:
        """Rows of other shards with these keys, by their places in `keys`."""
        if self._known is None:
            self._known = {}
            for path in sorted(self.folder.glob("*.parquet")):
                with suppress(FileNotFoundError, ValueError):  # gone by now, or damaged
                    self._known |= dict.fromkeys(read_shard(path, ["key"])["key"].to_pylist(), path)
        wanted = defaultdict(dict)
        for place, key in enumerate(keys):
            if key in self._known:
                wanted[self._known[key]][key] = place
        found = {}
        for path, places in wanted.items():
            with suppress(FileNotFoundError, ValueError):
                table = read_shard(path)
                for row in table.select([name for name in OWN_COLUMNS if name in table.column_names]).to_pylist():
                    if row["key"] in places:
                        found[places[row["key"]]] = row
        return found

    def _new_rows(
        self, images: range, places: list[int], pool: ThreadPoolExecutor, bar: tqdm
    ) -> dict[int, dict[str, Any]]:
        """The rows of places in a shard, encoded in batches of one bucket."""
        wanted = defaultdict(list)
        for place in places:
            wanted[images[place // self.windows.per_image]].append(place)
        found, waiting = {}, defaultdict(list)
        for items in self._loaded(wanted, pool):
            bar.update()
            for item in items:
                batch = waiting[item.window.size]
                batch.append(item)
                if len(batch) == self.batch_size:
                    found |= self._encoded(batch)
                    batch.clear()
        for batch in waiting.values():
            if batch:
                found |= self._encoded(batch)
        return found

    def _loaded(self, wanted: dict[int, list[int]], pool: ThreadPoolExecutor) -> Iterator[list[_Item]]:
        """The wanted windows of images, a few images ahead."""

        def load(image: int) -> list[_Item]:
            try:
                picture = to_rgb({"bytes": self.rows.content(image), "path": self.rows.name(image)}, "")
            except UnreadableImageError as error:
                if not self.skip_unreadable:
                    raise
                _logger.warning(f"{error} It is left out.")
                return []
            windows, places = self.windows.of(picture.size), wanted[image]
            chosen = [(place, windows[place % self.windows.per_image]) for place in places]
            return [_Item(place, window, picture.size, window.pixels(picture)) for place, window in chosen]

        images = iter(wanted)
        while some := list(islice(images, 2 * self.workers)):
            yield from pool.map(load, some)

    def _encoded(self, items: list[_Item]) -> dict[int, dict[str, Any]]:
        """Rows of windows of one size, by their places."""
        pixels = to_batch([item.pixels for item in items])
        latents, spread = posterior_latents(self.autoencoder, pixels, self.deviation is not None)
        codes, decoded = self.code.encode(latents)
        mean = self.code.bottleneck.latent_shift[:, None, None]
        measured = [((part - other) ** 2).sum(dim=(1, 2, 3)) for part, other in ((latents, mean), (latents, decoded))]
        signal, noise = (part.tolist() for part in measured)
        spreads = None if self.deviation is None else self.deviation.encode(spread)[0]
        rows = {}
        for number, item in enumerate(items):
            left, top, width, height = item.window.box
            rows[item.place] = {
                "code": codes[number],
                "height": item.window.size[0],
                "width": item.window.size[1],
                "original_height": item.original[1],
                "original_width": item.original[0],
                "crop_top": top,
                "crop_left": left,
                "crop_height": height,
                "crop_width": width,
                "crop": item.window.crop,
                "flip": item.window.flip,
                "signal": signal[number],
                "noise": noise[number],
            }
            if spreads is not None:
                rows[item.place]["deviation"] = spreads[number]
        return rows
