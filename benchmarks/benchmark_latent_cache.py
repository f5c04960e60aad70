"""Reads the same latents from a latent cache and from files of other formats: sizes, errors, random samples a second.

    OMP_NUM_THREADS=1 python benchmarks/benchmark_latent_cache.py --taef2 weights/ --train_data_dir photos/ \\
        --validation_data_dir more_photos/ --target_snr 20 30 40 [--samples 400] [--rounds 5] [--output_dir results]

Codes are fitted to the training images and judged on the others. Sizes are those of all files of a format on the disk,
and for codes the bytes of their tables beside. The ratio is 10 log₁₀ Σ‖z − m‖² / Σ‖z − ẑ‖² in dB. Samples a second are
the median of the rounds, of one process: rows in drawn order, each as a float32 tensor. Batches are 16 of them at once.
"""

import gzip
import math
import shutil
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoModel
from safetensors.torch import load_file, save_file

from diffusers_lasers.commands.taef2 import load_taef2
from diffusers_lasers.models.autoencoders import encode_latents
from diffusers_lasers.training import ImageRows, Windows, load_image_dataset, load_latent_cache, write_latent_cache
from diffusers_lasers.training.data.image_dataset import to_batch
from diffusers_lasers.training.latent_cache.latent_code import fit_latent_code
from diffusers_lasers.utils.command_line import CommandParser, check_at_least
from diffusers_lasers.utils.files import write_json
from diffusers_lasers.utils.tables import figure_table


# Key in latent_cache.json, heading, format.
COLUMNS = [
    ("bits", "bits an element on the disk", "{:.3f}"),
    ("tables", "bytes of tables", "{:,}"),
    ("snr", "SNR dB", "{:.2f}"),
    ("single", "samples/s", "{:.0f}"),
    ("batched", "in batches", "{:.0f}"),
]


class Files:
    """Latents in a format of one file each, or all in one array."""

    def __init__(self, folder: Path, kind: str, latents: torch.Tensor):
        self.folder, self.kind = folder, kind
        folder.mkdir()
        halves = latents.half()
        if kind == "memory-mapped fp16":
            np.save(folder / "all.npy", halves.numpy())
            self.mapped = np.load(folder / "all.npy", mmap_mode="r")
        for number, row in enumerate(halves):
            path = folder / str(number)
            if kind == "npz, fp16":
                np.savez(path, latents=row.numpy())
            elif kind == "npz compressed, fp16":
                np.savez_compressed(path, latents=row.numpy())
            elif kind == "safetensors, fp16":
                save_file({"latents": row.contiguous()}, path)
            elif kind == "gzip, fp16":
                path.write_bytes(gzip.compress(row.numpy().tobytes()))
            elif kind == "uint8 of a fixed range":  # the 99.9 % quantile of all, as tools take a constant
                scale = float(latents.abs().flatten()[:: max(1, latents.numel() // 2**20)].quantile(0.999)) / 127
                levels = (latents[number] / scale).round().clamp(-128, 127).to(torch.int8)
                path.write_bytes(np.float32(scale).tobytes() + levels.numpy().tobytes())
        self.shape = tuple(latents.shape[1:])

    def __getitem__(self, number: int) -> torch.Tensor:
        path = self.folder / str(number)
        if self.kind == "memory-mapped fp16":
            return torch.from_numpy(np.array(self.mapped[number])).float()
        if self.kind.startswith("npz"):
            with np.load(f"{path}.npz") as found:
                return torch.from_numpy(found["latents"]).float()
        if self.kind.startswith("safetensors"):
            return load_file(path)["latents"].float()
        data = path.read_bytes()
        if self.kind.startswith("gzip"):
            return torch.from_numpy(
                np.frombuffer(gzip.decompress(data), np.float16).reshape(self.shape).copy()
            ).float()
        scale = float(np.frombuffer(data[:4], np.float32)[0])
        return torch.from_numpy(np.frombuffer(data[4:], np.int8).reshape(self.shape).copy()).float() * scale


FORMATS = (
    "npz, fp16",
    "npz compressed, fp16",
    "safetensors, fp16",
    "memory-mapped fp16",
    "gzip, fp16",
    "uint8 of a fixed range",
)


def rate(read, count: int, samples: int, rounds: int, at_once: int) -> float:
    """Samples a second in drawn order, the median of the rounds."""
    generator, found = np.random.default_rng(0), []
    for _ in range(rounds):
        rows = generator.integers(0, count, (max(1, samples // at_once), at_once)).tolist()
        start = time.perf_counter()
        for some in rows:
            read(some)
        found.append(len(rows) * at_once / (time.perf_counter() - start))
    return statistics.median(found)


def snr(latents: torch.Tensor, decoded: torch.Tensor) -> float:
    signal = (latents - latents.mean(dim=(0, 2, 3), keepdim=True)).double().square().sum()
    noise = (latents - decoded).double().square().sum()
    return 10 * math.log10(signal / noise) if noise else math.inf


def main() -> None:
    parser = CommandParser(description=__doc__)
    add = parser.add_argument
    add("--autoencoder", help="Folder (or Hub name) of an autoencoder of diffusers.")
    add("--taef2", help="Folder of TAEF2's two safetensors files, instead.")
    add("--train_data_dir", required=True, help="Images that codes are fitted to.")
    add("--validation_data_dir", required=True, help="Images that are cached.")
    add("--fit_images", type=int, default=160, help="Images to fit to, evenly spaced.")
    add("--images", type=int, default=60, help="Images to cache, evenly spaced.")
    add("--resolution", type=int, default=256)
    add("--target_snr", type=float, nargs="+", default=[20.0, 30.0, 40.0])
    add("--samples", type=int, default=400, help="Samples of a round; 0: sizes only.")
    add("--rounds", type=int, default=5)
    add("--output_dir", type=Path, help="Folder that gets latent_cache.json and latent_cache.md.")
    parser.check(check_at_least, 1, "fit_images", "images", "rounds")
    args = parser.parse_args()
    if bool(args.autoencoder) == bool(args.taef2):
        parser.error("give --autoencoder or --taef2")
    torch.set_num_threads(1)
    model = load_taef2(args.taef2) if args.taef2 else AutoModel.from_pretrained(args.autoencoder).eval()
    windows = Windows((args.resolution,))

    def some(folder: str, count: int) -> ImageRows:
        source = load_image_dataset(train_data_dir=folder)
        places = np.linspace(0, len(source) - 1, min(count, len(source))).astype(int)
        source.paths = [source.paths[place] for place in places]
        return ImageRows(source)

    fitted, cached = some(args.train_data_dir, args.fit_images), some(args.validation_data_dir, args.images)
    rows = {}
    with tempfile.TemporaryDirectory() as place, torch.no_grad():
        place = Path(place)
        samples, latents = (
            [encode_latents(model, to_batch([windows.of(image.size)[0].pixels(image)])) for image in rows.source]
            for rows in (fitted, cached)
        )
        latents = torch.cat(latents)
        elements = latents.numel()

        def measured(read, read_batch, size: int, tables: int, decoded: torch.Tensor) -> dict:
            row = {"bits": 8 * size / elements, "tables": tables, "snr": snr(latents, decoded)}
            if args.samples:
                row["single"] = rate(lambda some: read(some[0]), len(latents), args.samples, args.rounds, 1)
                row["batched"] = rate(read_batch, len(latents), args.samples, args.rounds, 16)
            return row

        for kind in FORMATS:
            files = Files(place / kind, kind, latents)
            size = sum(path.stat().st_size for path in (place / kind).iterdir())
            decoded = torch.stack([files[number] for number in range(len(latents))])
            rows[kind] = measured(files.__getitem__, lambda some: [files[n] for n in some], size, 0, decoded)
        codes = [("int8", ("int8",)), ("int4", ("int4",))]
        for target in args.target_snr:
            codes.append((f"cache, {target:g} dB", ("klt", target, False)))
            codes.append((f"cache, {target:g} dB, fast reading", ("klt", target, True)))
        for name, arguments in codes:
            code = fit_latent_code(samples, *arguments)
            facts = write_latent_cache(
                place / "cache",
                model,
                cached,
                windows,
                code,
                fast_reading=code.prior is None,
                progress=False,
                workers=1,
            )
            table = load_latent_cache(place / "cache", cache_dir=str(place / name))
            decoded = torch.stack(table[:]["latents"])
            found = facts["measured"]
            rows[name] = measured(lambda n: table[n]["latents"], lambda some: table[some]["latents"], found["bytes"],
                                  found["codec_bytes"], decoded)  # fmt: skip
            print(f"{name}: done", flush=True)
            shutil.rmtree(place / "cache")
    columns = COLUMNS if args.samples else COLUMNS[:3]
    text = (
        f"{len(latents)} images of {args.resolution}² pixels, latents {tuple(latents.shape[1:])}; codes fitted to "
        f"{len(fitted)} others; one thread\n\n" + figure_table("format", columns, rows.items())
    )
    print(text)
    if args.output_dir:
        args.output_dir.mkdir(parents=True, exist_ok=True)
        settings = {name: value for name, value in vars(args).items() if name != "output_dir"}
        write_json(args.output_dir / "latent_cache.json", {"settings": settings, "rows": rows})
        (args.output_dir / "latent_cache.md").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
