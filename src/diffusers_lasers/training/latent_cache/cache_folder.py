"""A latent cache as a folder or a data set of the Hub: `cache.json`, `codec/`, `data/*.parquet`, README.md.

`cache.json` holds the settings from the start, and the shards with their sizes and checksums once all are there.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ...models.bottlenecks import Bottleneck
from ...models.priors import FactorizedPrior
from ...utils.files import write_json, write_text
from .latent_code import LatentCode
from .shards import DATA, SHARD_NAME, read_shard


__all__ = ["CACHE_FILE", "CODEC", "DEVIATION", "check_shards", "finish_cache", "load_code", "read_cache"]

CACHE_FILE = "cache.json"
CODEC = "codec"
DEVIATION = f"{CODEC}/deviation"
_EXAMPLE = "00000-0123456789abcdef.parquet"
_SHOWN = (("bits", "bits_per_element"), ("snr", "snr_db"))  # on the card
_CARD = """---
tags: [diffusers_lasers, latents]
configs:
- config_name: default
  data_files: data/*.parquet
---

# Cached latents

{images} rows, latents of `{autoencoder}` on the denoiser's scale, coded by `diffusers_lasers` at {bits} bits a latent
element, with a signal-to-noise ratio of {snr} dB.

```python
from diffusers_lasers.training import load_latent_cache

rows = load_latent_cache("path/to/folder-or-repository")
rows[0]["latents"]  # (L, h, w), float32
```

All bytes of the folder count: {bytes} in the shards, {codec_bytes} in the code's tables. `key` is the SHA-256 of an
image's file with its window; `original_…` and `crop_…` are pixels of the image, `height` and `width` of the window.
"""


def read_cache(folder: Path) -> dict[str, Any]:
    """
    What `cache.json` says.

    Args:
        folder (`Path`): A cache.

    Returns:
        `dict[str, Any]`: Its content.

    Raises:
        ValueError: If there is none, or it is damaged.
    """
    path = folder / CACHE_FILE
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"{folder} must be a latent cache, it has no {CACHE_FILE}.") from None
    except ValueError as error:
        raise ValueError(f"{path} is damaged: {error}.") from error
    if not isinstance(facts, dict) or not {"settings", "shards"} <= set(facts):
        raise ValueError(f"{path} is damaged: it lacks settings or shards.")
    shards = [] if facts["shards"] is None else facts["shards"]
    if not isinstance(shards, list) or not all(map(_is_shard, shards)):
        raise ValueError(f"{path} is damaged: its shards must have a name such as {_EXAMPLE}, bytes and a checksum.")
    return facts


def _is_shard(entry: Any) -> bool:
    """Whether this may stand in `cache.json`, which may be a stranger's: a name leads nowhere else."""
    return (
        isinstance(entry, dict)
        and isinstance(entry.get("name"), str)
        and SHARD_NAME.fullmatch(entry["name"]) is not None
        and type(entry.get("bytes")) is int
        and isinstance(entry.get("sha256"), str)
    )


def load_code(folder: Path, place: str = CODEC) -> LatentCode | None:
    """
    The code of a cache.

    Args:
        folder (`Path`): The cache.
        place (`str`, defaults to `"codec"`): Its folder; `"codec/deviation"` for that of deviations.

    Returns:
        [`LatentCode`] or `None`: The code, on the CPU; `None` where there is no such folder.
    """
    import diffusers

    def load(path: Path, base: type) -> Any:
        name = base.load_config(path)["_class_name"]
        model = getattr(diffusers, name, None)  # diffusers answers the names of our classes too
        if not isinstance(model, type) or not issubclass(model, base):
            raise ValueError(f"{path} must hold a {base.__name__}, it holds a {name}.")
        return model.from_pretrained(path).eval()

    path = folder / place
    if not path.is_dir():
        return None
    prior = load(path / "prior", FactorizedPrior) if (path / "prior").is_dir() else None
    return LatentCode(load(path, Bottleneck), prior)


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()


def check_shards(folder: Path, facts: dict[str, Any], verify: bool = False) -> list[Path]:
    """
    The shards of a cache on this machine.

    Args:
        folder (`Path`): The cache.
        facts (`dict[str, Any]`): Its `cache.json`.
        verify (`bool`, defaults to `False`): Whether to compare checksums of all bytes instead of sizes.

    Returns:
        `list[Path]`: The shards, in order.

    Raises:
        ValueError: If a shard is missing or damaged; the error names it.
    """
    paths = []
    for shard in facts["shards"]:
        path = folder / DATA / shard["name"]
        if not path.is_file():
            raise ValueError(f"The shard {path} is missing.")
        if path.stat().st_size != shard["bytes"] or verify and _sha256(path) != shard["sha256"]:
            raise ValueError(f"The shard {path} is damaged: run the command that made the cache again to mend it.")
        paths.append(path)
    return paths


def finish_cache(folder: Path, facts: dict[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """
    Completes a cache whose shards are all there: removes other shards, measures, writes `cache.json` and the card.

    Args:
        folder (`Path`): The cache.
        facts (`dict[str, Any]`): Its `cache.json`, with settings.
        names (`Sequence[str]`): Names of its shards.

    Returns:
        `dict[str, Any]`: The completed `cache.json`.
    """
    wanted, shards = set(names), []
    signal = noise = elements = 0.0
    code = load_code(folder)
    side = facts["autoencoder"]["pixels_per_position"]
    for name in sorted(names):
        path = folder / DATA / name
        table = read_shard(path, ["height", "width", "signal", "noise"]).to_pydict()
        signal, noise = signal + math.fsum(table["signal"]), noise + math.fsum(table["noise"])
        elements += sum(h * w for h, w in zip(table["height"], table["width"])) / side**2
        shards.append(
            {"name": name, "rows": len(table["noise"]), "bytes": path.stat().st_size, "sha256": _sha256(path)}
        )
    elements *= code.bottleneck.config.latent_channels
    size = sum(shard["bytes"] for shard in shards)
    measured = {
        "rows": sum(shard["rows"] for shard in shards),
        "bytes": size,
        "codec_bytes": sum(path.stat().st_size for path in (folder / CODEC).rglob("*") if path.is_file()),
        "bits_per_element": 8 * size / elements if elements else None,
        "snr_db": 10 * math.log10(signal / noise) if signal and noise else None,
    }
    facts = facts | {"shards": shards, "measured": measured}
    shown = {name: "?" if measured[key] is None else f"{measured[key]:.3f}" for name, key in _SHOWN}
    sizes = {name: f"{measured[name]:,}" for name in ("bytes", "codec_bytes")}
    write_text(
        folder / "README.md",
        _CARD.format(images=measured["rows"], autoencoder=facts["autoencoder"]["class"], **shown, **sizes),
    )
    write_json(folder / CACHE_FILE, facts)
    for path in (folder / DATA).iterdir():
        if path.name not in wanted:  # of images that are gone, or of a process that was killed
            path.unlink()
    return facts
