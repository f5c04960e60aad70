#!/usr/bin/env python
"""Compares patch codecs with JPEG, WebP, AVIF and JPEG XL at the same bytes (Scribano et al., 2023, Table 1).

    python examples/benchmark_codec.py vq opq rq --data photos/ --lpips_weights weights/ --output_dir outputs/codecs

Each folder of a `ModelBasedVQCodec` or an `AutoencoderDL` is a row. Its files are those of its prior, in `prior/` of
the folder, or else packed codes, as with `--no_prior`. Below it stands, for each file format, the best quality whose
file is no longer than the model's of the same image. If even the lowest quality needs more bytes, that file is taken,
and the row says how many are longer. JPEG and AVIF may sample colours at half the sides or in full: the file with the
better PSNR counts. Times are those from pixels to bytes and back.

Reconstructions of models are floats clamped to [-1, 1]; files hold 8 bits a channel. PSNR (one squared error over RGB)
and SSIM (Gaussian window of 11 × 11) are means over images; "7×7" is scikit-image's default, a uniform window, as in
the paper. Bits a pixel count the whole file with its header. `--wrapped_uint8` adds the PSNR of uint8 differences whose
squares are taken modulo 256: this fault explains the paper's printed figures.

OUTPUT_DIR gets results.md (also on stdout), results.json (settings, protocol, each image), rate.png (PSNR over rate)
and grid.png.
"""

import io
import math
import statistics
from importlib import metadata
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from skimage.metrics import structural_similarity
from torch.nn import functional as F
from tqdm.auto import tqdm

from diffusers_lasers.commands.image_io import to_tensor
from diffusers_lasers.commands.image_metrics import add_lpips_flags, image_metrics, update_metrics
from diffusers_lasers.commands.loading import load_model, load_prior
from diffusers_lasers.commands.picture_formats import FORMATS, available_formats, best_file, encode_picture
from diffusers_lasers.commands.scripts import add_device_flag, run_script
from diffusers_lasers.commands.timing import median_seconds
from diffusers_lasers.metrics import CodeRate
from diffusers_lasers.training import load_image_dataset
from diffusers_lasers.training.data.image_flags import check_held_out_images
from diffusers_lasers.training.run.judgement import Judgement
from diffusers_lasers.training.run.run_folder import check_output_folder
from diffusers_lasers.utils.command_line import CommandParser, check_at_least
from diffusers_lasers.utils.files import save_image, write_json, write_text
from diffusers_lasers.utils.tables import figure_table
from diffusers_lasers.visualization import image_grid, rate_distortion, save_figure
from diffusers_lasers.visualization.image_grids import to_image


# Key in results.json, heading, format.
COLUMNS = [
    ("bits_per_pixel", "bpp", "{:.3f}"),
    ("nominal_bits_per_pixel", "bpp nominal", "{:.3f}"),
    ("entropy_bits_per_pixel", "bpp entropy", "{:.3f}"),
    ("compression_ratio", "C. R. 1:", "{:.1f}"),
    ("psnr", "PSNR ↑ dB", "{:.2f}"),
    ("wrapped_psnr", "wrapped PSNR", "{:.2f}"),
    ("ssim", "SSIM ↑", "{:.3f}"),
    ("uniform_ssim", "SSIM 7×7 ↑", "{:.3f}"),
    ("lpips", "LPIPS ↓", "{:.3f}"),
    ("encode_megapixels_per_second", "encode MP/s", "{:.2f}"),
    ("decode_megapixels_per_second", "decode MP/s", "{:.2f}"),
]


def parse_args(input_args=None):
    parser = CommandParser(description=__doc__)
    add = parser.add_argument
    add("models", nargs="+", help="Folders (or Hub names) of ModelBasedVQCodec or AutoencoderDL.")
    add("--data", help="Folder of images (recursive), parquet, or pattern. Default: scikit-image's held-out photos.")
    add("--image_column", default="image", help="Column of the images in parquet files.")
    add("--max_images", type=int, help="Take only the first so many images.")
    add("--no_prior", action="store_true", help="Write the nominal bits, also where a model has a prior.")
    add("--formats", nargs="*", choices=list(FORMATS), default=list(FORMATS), help="File formats to compare with.")
    add("--wrapped_uint8", action="store_true", help="Also compute the PSNR in wrapped uint8 arithmetic.")
    add("--metrics", nargs="+", choices=["psnr", "ssim", "lpips"], default=["psnr", "ssim", "lpips"])
    add("--per_image", action="store_true", help="Also write one table for each image, as in the paper.")
    add_lpips_flags(parser)
    add("--repeats", type=int, default=3, help="Timed calls of each coding and decoding; the median counts.")
    add("--grid_crop", type=int, default=192, help="Side of the crops in grid.png; 0: no grid.")
    add("--output_dir", default="codec_benchmark")
    add_device_flag(parser)
    parser.check(check_at_least, 1, "repeats", "max_images")
    return parser.parse_args(input_args)


def wrapped_psnr(first, second):
    """The PSNR of two uint8 arrays that nobody converts first: differences and squares are modulo 256."""
    with np.errstate(over="ignore"):
        squares = (first - second) ** 2
    mean = float(squares.mean())
    return 10 * math.log10(255**2 / mean) if mean else math.inf


def uniform_ssim(first, second):
    """scikit-image's SSIM with its defaults: a uniform window of 7 × 7, sample covariance, mean over RGB."""
    first, second = (image[0].permute(1, 2, 0).double().cpu().numpy() / 2 + 0.5 for image in (first, second))
    return float(structural_similarity(first, second, channel_axis=-1, data_range=1.0))


class Judge:
    """Computes the metrics of one reconstruction at a time."""

    def __init__(self, args):
        self.metrics, self.missing = image_metrics(args.metrics, args)
        self.wrapped = args.wrapped_uint8

    def __call__(self, sample, pixels):
        sample, metrics = sample.float().clamp(-1, 1), dict(self.metrics)
        for metric in metrics.values():
            metric.reset()
        update_metrics(metrics, sample, pixels, self.missing)
        figures = {name: float(metric.compute()) for name, metric in metrics.items()}
        if "ssim" in metrics and min(pixels.shape[-2:]) >= 7:
            figures["uniform_ssim"] = uniform_ssim(sample, pixels)
        if self.wrapped:
            figures["wrapped_psnr"] = wrapped_psnr(*(np.asarray(to_image(image[0])) for image in (sample, pixels)))
        return figures


@torch.no_grad()
def judge_model(model, prior, pixels, judge, args):
    """Figures, reconstruction and bytes of one image under a model, and its prior where there is one."""
    height, width = pixels.shape[-2:]
    code, encoding = median_seconds(lambda: model.encode_to_code(pixels), args.repeats, args.device)
    sample, decoding = median_seconds(lambda: model.decode_from_code(code).sample, args.repeats, args.device)
    data, writing = median_seconds(lambda: model.pack(code) if prior is None else prior.compress(code), args.repeats)
    _, reading = median_seconds(lambda: model.unpack(data) if prior is None else prior.decompress(data), args.repeats)
    size, rate = len(data), CodeRate(model).to(args.device)
    rate.update(code)
    figures = {
        "bytes": size,
        "bits_per_pixel": 8 * size / (height * width),
        "nominal_bits_per_pixel": model.bits_per_pixel(height, width),
        "entropy_bits_per_pixel": float(rate.compute()["entropy_bits_per_pixel"]),
        **judge(sample, pixels),
        "encode_megapixels_per_second": height * width / 1e6 / (encoding + writing),
        "decode_megapixels_per_second": height * width / 1e6 / (decoding + reading),
    }
    return figures, sample


def judge_file(image, pixels, name, limit, judge, args):
    """Figures and reconstruction of one image in a file format, at the bytes of a model."""
    quality, subsampling, data = best_file(image, name, limit)
    _, encoding = median_seconds(lambda: encode_picture(image, name, quality, subsampling), args.repeats)
    decoded, decoding = median_seconds(lambda: Image.open(io.BytesIO(data)).convert("RGB"), args.repeats)
    sample = to_tensor(decoded).to(pixels.device)
    count = image.width * image.height
    figures = {
        "bytes": len(data),
        "bits_per_pixel": 8 * len(data) / count,
        "quality": quality,
        "subsampling": subsampling,
        "longer_than_allowed": len(data) > limit,
        **judge(sample, pixels),
        "encode_megapixels_per_second": count / 1e6 / encoding,
        "decode_megapixels_per_second": count / 1e6 / decoding,
    }
    return figures, sample


def mean_row(name, figures):
    """The means over images of one row's figures."""
    row = {"name": name}
    for key, _, _ in COLUMNS:
        values = [entry[key] for entry in figures if entry.get(key) is not None]
        row[key] = statistics.fmean(values) if len(values) == len(figures) else None
    row["compression_ratio"] = 24 / row["bits_per_pixel"]
    row["longer_than_allowed"] = sum(bool(entry.get("longer_than_allowed")) for entry in figures)
    return row


def markdown(rows):
    """The table of some rows, with the columns in which one of them has a figure."""
    columns = [entry for entry in COLUMNS if any(row[entry[0]] is not None for row in rows)]
    longer = [f" ({row['longer_than_allowed']} longer)" if row["longer_than_allowed"] else "" for row in rows]
    return figure_table("codec", columns, [(row["name"] + note, row) for row, note in zip(rows, longer)]) + "\n"


def centre(image, side):
    """The middle of an image `(1, 3, H, W)`, `side` × `side`; where the image is smaller, it is framed in white."""
    missing = [side - length for length in (image.shape[-1], image.shape[-2])]  # negative: so much is cut away
    return F.pad(image, [part for m in missing for part in (m // 2, m - m // 2)], value=1.0)


def main(args):
    output_dir = Path(args.output_dir)
    check_output_folder(output_dir, overwrite=True)
    source = load_image_dataset(
        train_data_dir=args.data, split="validation", image_column=args.image_column, max_samples=args.max_images
    )
    models = []
    for path in args.models:
        model = load_model(path, device=args.device)
        models.append((model, None if args.no_prior else load_prior(path, None, None, model), path))
    check_held_out_images(source)
    output_dir.mkdir(parents=True, exist_ok=True)
    formats, missing = available_formats(args.formats)
    judge = Judge(args)
    names = [getattr(source, "paths", None) and Path(source.paths[i]).name or f"image {i}" for i in range(len(source))]
    figures, pictures, kinds = {}, {}, {}

    def show(row, sample):
        if args.grid_crop and len(pictures.setdefault(row, [])) < 6:
            pictures[row].append(centre(sample.cpu(), args.grid_crop))

    def record(row, kind, entry, sample):
        figures.setdefault(row, []).append(entry)
        kinds[row] = kind
        show(row, sample)

    def write():
        """Writes the figures of all images until now."""
        rows = [mean_row(name, entries) | {"kind": kinds[name]} for name, entries in figures.items()]
        results = {
            "settings": vars(args),
            "versions": {name: metadata.version(name) for name in ("torch", "Pillow", "torchmetrics")},
            "formats": {name: FORMATS[name] for name in formats},
            "protocols": {name: metric.protocol() for name, metric in judge.metrics.items()},
            "unavailable": {**missing, **judge.missing},
            "rows": rows,
            "images": figures,
        }
        write_json(output_dir / "results.json", results)
        return rows

    labels = []
    for model, _, path in models:
        label = getattr(model, "notation", Path(path).name)
        labels.append(label if label not in labels else f"{label} ({path})")
    for index in tqdm(range(len(source)), desc="Images"):
        image = source[index]
        pixels = to_tensor(image).to(args.device)
        show("original", pixels)
        for (model, prior, _), label in zip(models, labels):
            entry, sample = judge_model(model, prior, pixels, judge, args)
            # one line in the picture: autoencoders of one bottleneck at several rates
            kind = label if hasattr(model, "notation") else model.config.bottleneck_type
            record(label, kind, {"image": names[index], **entry}, sample)
            for name in formats:
                compared, sample = judge_file(image, pixels, name, entry["bytes"], judge, args)
                record(f"{name} ≤ {label}", name, {"image": names[index], **compared}, sample)
        rows = write()

    text = markdown(rows)
    if args.per_image:
        for index, name in enumerate(names):
            text += f"\n{name}\n\n{markdown([mean_row(row, [entries[index]]) for row, entries in figures.items()])}"
    text += f"\n{len(source)} images; means over images. MP/s on {torch.get_num_threads()} threads, {args.device}.\n"
    text += "".join(f"- {name} is missing: {reason}.\n" for name, reason in {**missing, **judge.missing}.items())
    write_text(output_dir / "results.md", text)
    print(text)
    judgement, points = Judgement(output_dir, saved="The results are"), {}
    with judgement.of("the pictures"):
        for row in rows:
            points.setdefault(row["kind"], []).append((row["bits_per_pixel"], row["psnr"]))
        save_figure(rate_distortion(points, "bits a pixel, written"), output_dir / "rate.png")
        if args.grid_crop:
            said = {row["name"]: "{kind}: {bits_per_pixel:.2f} bpp, {psnr:.1f} dB".format_map(row) for row in rows}
            grid = image_grid([(said.get(name, name), torch.cat(images)) for name, images in pictures.items()], cell=1)
            save_image(output_dir / "grid.png", grid)
    judgement.end()


def cli(input_args=None):
    """Runs with a command line; what is wrong with it or its files is one sentence."""
    run_script(__file__, parse_args, main, input_args)


if __name__ == "__main__":
    cli()
