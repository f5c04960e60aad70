"""Reads latent caches: as rows of `datasets` that decode to latents, in batches of one size, and as files of others."""

from __future__ import annotations

import glob
import json
import os
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Sampler

from ...utils.files import atomic_file
from ...utils.import_utils import requires
from .cache_folder import CACHE_FILE, CODEC, DEVIATION, check_shards, load_code, read_cache
from .latent_code import LatentCode
from .shards import DATA


__all__ = ["BucketBatchSampler", "export_latent_cache", "load_latent_cache", "load_latent_code"]


class _Decoded:
    """Rows `{name: values}` with `latents` in the place of `code`, and deviations in that of their code."""

    def __init__(self, code: LatentCode, deviation: LatentCode | None):
        self.code, self.deviation = code, deviation

    def __call__(self, rows: dict[str, list]) -> dict[str, list]:
        rows = dict(rows)
        try:
            if "code" in rows:
                rows = {"latents": self.code.decode(rows.pop("code"))} | rows
            if "deviation" in rows and self.deviation is not None:
                rows["deviation"] = [part.exp() for part in self.deviation.decode(rows["deviation"])]
        except ValueError as error:
            raise ValueError(
                f"A row of the latent cache is damaged, `verify=True` names its shard: {error}"
            ) from error
        return rows


def _local(path_or_repo: str | os.PathLike, revision: str | None, token: str | None, streaming: bool) -> Path:
    """The folder of a cache, downloaded if it is on the Hub; of a stream all but the shards."""
    if Path(path_or_repo).is_dir():
        return Path(path_or_repo)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    try:
        patterns = [CACHE_FILE, f"{CODEC}/*"] if streaming else None
        return Path(
            snapshot_download(
                str(path_or_repo), repo_type="dataset", revision=revision, token=token, allow_patterns=patterns
            )
        )
    except HFValidationError:
        reason = "no repository can have that name"
    except Exception as error:  # whatever the network or the Hub answers
        reason = f"the Hub gave none: {(str(error).splitlines() or [type(error).__name__])[0]}"
    raise ValueError(f"`path_or_repo` must be a folder or a data set of the Hub, got {str(path_or_repo)!r}: {reason}.")


def load_latent_code(
    path_or_repo: str | os.PathLike, revision: str | None = None, token: str | None = None
) -> LatentCode:
    """
    The code of a latent cache, to decode its bytes in batches on any device.

    Args:
        path_or_repo (`str` or `os.PathLike`): Folder of a cache, or a data set on the Hub.
        revision (`str`, *optional*): Branch, tag or commit of a repository.
        token (`str`, *optional*): Token of the Hub.

    Returns:
        [`LatentCode`]: `decode(rows["code"])` gives latents `(L, h, w)`, on the device of its `bottleneck`.

    Raises:
        ValueError: If there is no such cache.
    """
    folder = _local(path_or_repo, revision, token, True)
    read_cache(folder)
    return load_code(folder)


def load_latent_cache(
    path_or_repo: str | os.PathLike,
    streaming: bool = False,
    decode: bool = True,
    columns: Sequence[str] | None = None,
    verify: bool = False,
    revision: str | None = None,
    token: str | None = None,
    cache_dir: str | None = None,
) -> Any:
    """
    Opens a latent cache that `diffusers-lasers cache` wrote.

    Args:
        path_or_repo (`str` or `os.PathLike`): Folder of the cache, or a data set on the Hub.
        streaming (`bool`, defaults to `False`): Whether rows come one after another from the shards, without random
            access and without a copy that `datasets` keeps.
        decode (`bool`, defaults to `True`): Whether rows have `latents`, decoded when they are read, in the data
            loader's workers; else `code`, the bytes, for [`load_latent_code`].
        columns (`Sequence[str]`, *optional*): Columns to read beside the latents. Defaults to all.
        verify (`bool`, defaults to `False`): Whether to compare all bytes with their checksums first, instead of sizes.
        revision (`str`, *optional*): Branch, tag or commit of a repository.
        token (`str`, *optional*): Token of the Hub.
        cache_dir (`str`, *optional*): Cache folder of `datasets`.

    Returns:
        `datasets.Dataset` or `datasets.IterableDataset`: Rows with `latents`, a `torch.Tensor` of shape `(L, h, w)`,
        float32, on the denoiser's scale ([`encode_latents`]); with `deviation` of that shape, where it was kept; and
        the columns. [`from_denoiser`] gives latents as the autoencoder's `decode` takes them.

    Raises:
        ValueError: If there is no such cache, it is not whole, a shard is missing or damaged, or a column is not there.
    """
    load = requires("datasets", "training").load_dataset
    folder = _local(path_or_repo, revision, token, streaming)
    facts = read_cache(folder)
    if facts["shards"] is None:
        raise ValueError(f"{path_or_repo} must be whole, its writing was stopped: run the command again to go on.")
    if not facts["shards"]:
        raise ValueError(f"{path_or_repo} must have rows, it has none.")
    if (folder / DATA).is_dir():
        # `datasets` treats paths as patterns
        files = [glob.escape(str(path.resolve())) for path in check_shards(folder, facts, verify)]
    else:
        at = f"@{revision}" if revision else ""
        files = [f"hf://datasets/{path_or_repo}{at}/{DATA}/{shard['name']}" for shard in facts["shards"]]
    rows = load("parquet", data_files=files, split="train", streaming=streaming, cache_dir=cache_dir, token=token)
    known = rows.column_names if rows.column_names is not None else list(rows.features)
    if columns is not None:
        missing = [name for name in columns if name not in known]
        if missing:
            raise ValueError(f"`columns` must be some of {known}, got {missing[0]!r}.")
        rows = rows.select_columns(list(dict.fromkeys(["code", *columns])))
    if not decode:
        return rows
    transform = _Decoded(load_code(folder), load_code(folder, DEVIATION))
    if not streaming:
        return rows.with_transform(transform)
    gone = ["code", *(["deviation"] if transform.deviation is not None else [])]
    return rows.map(transform, batched=True, batch_size=8, remove_columns=[name for name in gone if name in known])


class BucketBatchSampler(Sampler):
    """
    Batches of rows of one size, for `torch.utils.data.DataLoader(rows, batch_sampler=…)`.

    Args:
        rows (`datasets.Dataset`): Rows of [`load_latent_cache`], with `height` and `width`.
        batch_size (`int`): Rows a batch; the last one of a size may have fewer.
        shuffle (`bool`, defaults to `True`): Whether rows and batches come in drawn order, another in each epoch.
        drop_last (`bool`, defaults to `False`): Whether batches of fewer rows are left out.
        seed (`int`, defaults to 0): Seed of the order.
        rank (`int`, defaults to 0): Rank that the batches are for.
        world_size (`int`, defaults to 1): Ranks that share them. Batches that would give ranks different numbers are
            left out.

    Attributes:
        epoch (`int`): Number of the epoch, 0 at first; each pass over the sampler counts it up.

    Raises:
        ValueError: If a number is out of range, or the rows have no sizes.
    """

    def __init__(
        self,
        rows: Any,
        batch_size: int,
        shuffle: bool = True,
        drop_last: bool = False,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ):
        if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
            raise ValueError(f"`batch_size` must be a positive integer, got {batch_size!r}.")
        if not 0 <= rank < world_size:
            raise ValueError(f"`rank` must be from 0 to below `world_size`, {world_size}, got {rank!r}.")
        if not {"height", "width"} <= set(rows.column_names):
            raise ValueError(f"`rows` must have columns height and width, got {rows.column_names}.")
        sizes = rows.select_columns(["height", "width"]).with_format("numpy")[:]
        buckets = defaultdict(list)
        for row, size in enumerate(zip(sizes["height"].tolist(), sizes["width"].tolist())):
            buckets[size].append(row)
        self._buckets = [np.asarray(bucket) for _, bucket in sorted(buckets.items())]
        self.batch_size, self.shuffle, self.drop_last, self.seed = batch_size, shuffle, drop_last, seed
        self.rank, self.world_size, self.epoch = rank, world_size, 0

    def __len__(self) -> int:
        parts = (
            len(bucket) // self.batch_size if self.drop_last else -(-len(bucket) // self.batch_size)
            for bucket in self._buckets
        )
        return sum(parts) // self.world_size

    def __iter__(self) -> Iterator[list[int]]:
        generator = np.random.default_rng([self.seed, self.epoch])
        self.epoch += 1
        batches = []
        for bucket in self._buckets:
            order = generator.permutation(bucket) if self.shuffle else bucket
            for start in range(0, len(order), self.batch_size):
                batch = order[start : start + self.batch_size]
                if len(batch) == self.batch_size or not self.drop_last:
                    batches.append(batch.tolist())
        if self.shuffle:
            batches = [batches[place] for place in generator.permutation(len(batches))]
        yield from batches[self.rank :: self.world_size][: len(self)]


def export_latent_cache(path_or_repo: str | os.PathLike, output_dir: str | os.PathLike, kind: str = "npz") -> int:
    """
    Writes each row of a cache as a file of its own, for tools that read such.

    Args:
        path_or_repo (`str` or `os.PathLike`): Folder of a cache, or a data set on the Hub.
        output_dir (`str` or `os.PathLike`): Folder of the files `00000000.npz`, …; made if it is missing.
        kind (`str`, defaults to `"npz"`): `"npz"` or `"safetensors"`.

    Returns:
        `int`: Number of files. Each has `latents` `(L, h, w)`, float16, on the denoiser's scale, `deviation` where it
        was kept, and the other columns: as JSON in `columns` of an npz, in the metadata of safetensors.

    Raises:
        ValueError: If `kind` is unknown or the cache cannot be read.
        OSError: If a file cannot be written.
    """
    if kind not in ("npz", "safetensors"):
        raise ValueError(f"`kind` must be 'npz' or 'safetensors', got {kind!r}.")
    rows = load_latent_cache(path_or_repo, streaming=True)
    folder = Path(output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    count = 0
    for row in rows:
        tensors = {name: torch.as_tensor(row.pop(name)).half() for name in ("latents", "deviation") if name in row}
        columns = json.dumps(row, default=str)
        with atomic_file(folder / f"{count:08d}.{kind}") as file:
            if kind == "npz":
                np.savez(file, columns=columns, **{name: part.numpy() for name, part in tensors.items()})
            else:
                from safetensors.torch import save

                file.write(save(tensors, metadata={"columns": columns}))
        count += 1
    return count
