"""Makes a latent cache: a code for the autoencoder's latents, then all images, on one or more processes."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import PartialState
from accelerate.utils import gather_object
from diffusers import ModelMixin
from filelock import FileLock, Timeout

from ...models.autoencoders.diffusers_latents import spatial_factor
from ...utils.distributed import alone
from ...utils.files import write_json
from ...utils.image_decoding import UnreadableImageError, to_rgb
from ..data.code_cache import model_fingerprint
from ..data.image_dataset import to_batch
from .cache_folder import CACHE_FILE, CODEC, DEVIATION, finish_cache, load_code, read_cache
from .image_rows import ImageRows
from .latent_code import LatentCode, fit_latent_code, with_prior
from .shards import OWN_COLUMNS
from .windows import Windows
from .writing import CacheWriter, posterior_latents


__all__ = ["write_latent_cache"]

_DEVIATION_SNR = 20.0  # of log-deviations, in dB: it is the width of the noise that is added


def write_latent_cache(
    output_dir: str | Path,
    autoencoder: ModelMixin,
    rows: ImageRows,
    windows: Windows,
    code: str | LatentCode = "klt",
    target_snr: float = 30.0,
    fast_reading: bool = False,
    deviation: bool = False,
    fit_images: int = 256,
    shard_size: int = 1024,
    batch_size: int = 8,
    workers: int = 4,
    skip_unreadable: bool = False,
    progress: bool = True,
) -> dict[str, Any]:
    """
    Writes a latent cache, or goes on with one. All processes of a launch call it together, and each writes its shards.

    Args:
        output_dir (`str` or `Path`): The cache's folder; made if it is missing.
        autoencoder (`ModelMixin`): Any autoencoder of images of diffusers, on its device.
        rows ([`ImageRows`]): The images.
        windows ([`Windows`]): The parts of them to encode.
        code (`str` or [`LatentCode`], defaults to `"klt"`): A kind of code to fit, see [`fit_latent_code`], or a code.
        target_snr (`float`, defaults to 30.0): Signal-to-noise ratio of `"klt"`, in dB.
        fast_reading (`bool`, defaults to `False`): Whether the code is bit fields; see [`fit_latent_code`].
        deviation (`bool`, defaults to `False`): Whether the deviation of the latents' distribution is kept.
        fit_images (`int`, defaults to 256): Images, evenly spaced, that the code is fitted to.
        shard_size (`int`, defaults to 1024): Images a shard.
        batch_size (`int`, defaults to 8): Images that the autoencoder reads at a time.
        workers (`int`, defaults to 4): Threads that read and scale images.
        skip_unreadable (`bool`, defaults to `False`): Whether images that cannot be read are left out.
        progress (`bool`, defaults to `True`): Whether to show bars.

    Returns:
        `dict[str, Any]`: Content of `cache.json`, with the measured figures.

    Raises:
        ValueError: If an argument is out of range, a column of the caller's has a name of the cache's own, the folder
            is of other settings or another process writes into it, or an image cannot be read.
        OSError: If a file cannot be read or written.
    """
    sizes = {"fit_images": fit_images, "shard_size": shard_size, "batch_size": batch_size, "workers": workers}
    for name, value in sizes.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"`{name}` must be a positive integer, got {value!r}.")
    taken = [name for name in rows.columns if name in OWN_COLUMNS or name == "latents"]
    if taken:
        raise ValueError(f"`columns` must not have names of the cache's own, got {taken[0]!r}: choose others.")
    factor = spatial_factor(autoencoder)
    for name in ("resolutions", "multiple"):
        for side in np.atleast_1d(getattr(windows, name)).tolist():
            if side % factor and (name == "resolutions" or windows.max_aspect_ratio > 1):
                raise ValueError(f"`{name}` must be multiples of the autoencoder's {factor} pixels, got {side}.")
    folder, state = Path(output_dir), PartialState()
    folder.mkdir(parents=True, exist_ok=True)
    settings = {
        "autoencoder": model_fingerprint(autoencoder),
        "code": code if isinstance(code, str) else f"{type(code.bottleneck).__name__} {code.bottleneck.fingerprint}",
        "target_snr": target_snr if code == "klt" else None,
        "fast_reading": fast_reading,
        "deviation": deviation,
        "fit_images": fit_images,
        "resolutions": list(windows.resolutions),
        "max_aspect_ratio": windows.max_aspect_ratio,
        "multiple": windows.multiple,
        "seed": windows.seed,
    }
    lock = FileLock(folder / ".cache.lock")
    if state.is_main_process:
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise ValueError(
                f"`output_dir` {str(folder)!r} must have one writer, another process writes it."
            ) from None
    try:
        was_training = autoencoder.training
        autoencoder.eval()
        if state.is_main_process and not _is_started(folder, settings):
            with alone():
                _start(folder, settings, autoencoder, rows, windows, code, skip_unreadable)
        state.wait_for_everyone()
        facts, device = read_cache(folder), next(autoencoder.parameters()).device
        codes = [load_code(folder, place) for place in (CODEC, DEVIATION)]
        for own in filter(None, codes):
            own.bottleneck.to(device)
        identity = f"{facts['autoencoder']['fingerprint']} {codes[0].bottleneck.fingerprint}"
        writer = CacheWriter(
            folder, rows, windows, autoencoder, *codes, identity, shard_size, batch_size, workers, skip_unreadable
        )
        names = writer.write(state.process_index, state.num_processes, progress and state.is_main_process)
        autoencoder.train(was_training)
        names = gather_object(names)
        if state.is_main_process:
            finish_cache(folder, facts, names)
        state.wait_for_everyone()
        return read_cache(folder)
    finally:
        lock.release()


def _is_started(folder: Path, settings: dict[str, Any]) -> bool:
    """Whether the folder has a cache of these settings; a `ValueError` if it has one of others."""
    if not (folder / CACHE_FILE).exists():
        return False
    found = read_cache(folder)["settings"]
    other = next((name for name in settings if found.get(name) != settings[name]), None)
    if other is not None:
        raise ValueError(
            f"`output_dir` must be new or hold a cache of the same settings, {folder} has `{other}` "
            f"{found.get(other)!r}, got {settings[other]!r}."
        )
    return True


def _start(
    folder: Path,
    settings: dict[str, Any],
    autoencoder: ModelMixin,
    rows: ImageRows,
    windows: Windows,
    code: str | LatentCode,
    skip_unreadable: bool,
) -> None:
    """Fits the code to a sample, and writes it and `cache.json`."""
    places = np.linspace(0, len(rows) - 1, min(settings["fit_images"], len(rows))).astype(int).tolist()
    latents, spreads = [], []
    for place in places:
        try:
            picture = to_rgb({"bytes": rows.content(place), "path": rows.name(place)}, "")
        except UnreadableImageError:
            if skip_unreadable:
                continue
            raise
        first = windows.of(picture.size)[0]
        found, spread = posterior_latents(autoencoder, to_batch([first.pixels(picture)]), settings["deviation"])
        latents.append(found.cpu())
        spreads.append(spread)
    if not latents:
        raise ValueError(f"`rows` must hold images that can be read, of a sample of {len(places)} there was none.")
    pixels = first.size[0] // found.shape[-2]
    if isinstance(code, str):
        code = fit_latent_code(latents, code, settings["target_snr"] or 30.0, settings["fast_reading"])
    elif settings["fast_reading"]:
        code = LatentCode(code.bottleneck)
    elif code.prior is None:
        code = with_prior(code.bottleneck.to("cpu"), latents)
    shutil.rmtree(folder / CODEC, ignore_errors=True)  # of a run that was killed here, with other settings
    code.save_pretrained(folder / CODEC)
    if settings["deviation"]:
        spreads = [spread.cpu() for spread in spreads]
        fit_latent_code(spreads, "klt", _DEVIATION_SNR, settings["fast_reading"]).save_pretrained(folder / DEVIATION)
    about = {
        "class": type(autoencoder).__name__,
        "name": str(autoencoder.config.get("_name_or_path") or ""),
        "fingerprint": settings["autoencoder"],
        "pixels_per_position": pixels,
        "config": {name: value for name, value in autoencoder.config.items() if not name.startswith("_")},
    }
    write_json(folder / CACHE_FILE, {"version": 1, "settings": settings, "autoencoder": about, "shards": None})
