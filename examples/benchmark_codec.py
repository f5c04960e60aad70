#!/usr/bin/env python
"""Judges patch codecs beside JPEG, WebP, AVIF and JPEG XL at the same bytes (Scribano et al., 2023, Table 1, with its missing columns).

    python examples/benchmark_codec.py vq opq rq --data photos/ --lpips_weights weights/ --output_dir outputs/codecs

Every folder of a `ModelBasedVQCodec` is a row. Under it, for each file format, the best quality setting whose file is no longer than the codec's packed
code of the same image; where even the lowest setting is longer, that one, with the bytes it took. A folder of an `AutoencoderDL` is a row
too. Reconstructions of the models are floats clamped to [-1, 1]; files hold 8 bits a channel. PSNR (one MSE over RGB) and SSIM (Gaussian window of
11 × 11; "7×7" is scikit-image's default, a uniform one, as in the paper) are of RGB floats, means over images; bits a pixel count the whole file, header and all, where bytes are written.

OUTPUT_DIR gets results.md (also on stdout), results.json (settings, protocol, each image), rate.png (PSNR over rate) and grid.png.
`--wrapped_uint8` adds the PSNR with the arithmetic fault that explains the printed figures of the paper: squares of uint8 differences modulo 256.
"""

import io
import math
import statistics
import time
from importlib import metadata
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, features
from skimage.metrics import structural_similarity
from tqdm.auto import tqdm

from diffusers_lasers import AutoencoderDL, ModelBasedVQCodec, PerceptualSimilarity
from diffusers_lasers.metrics import LPIPS, PSNR, SSIM
from diffusers_lasers.training import load_image_dataset
from diffusers_lasers.training.data.image_flags import check_held_out_images
from diffusers_lasers.training.run.judgement import Judgement
from diffusers_lasers.training.run.run_folder import check_output_folder
from diffusers_lasers.utils import CommandParser, save_image, write_json, write_text
from diffusers_lasers.visualization import rate_distortion, save_figure


# Name -> Pillow's format, its options besides `quality`, and the range of `quality`.
FORMATS = {
    "jpeg": ("JPEG", {"optimize": True, "progressive": True}, (1, 100)),
    "webp": ("WEBP", {"method": 6}, (0, 100)),
    "avif": ("AVIF", {"speed": 6}, (0, 100)),
    "jxl": ("JXL", {"effort": 7}, (1, 99)),
}
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
    add("--image_column", default="image")
    add("--max_images", type=int)
    add("--formats", nargs="*", choices=list(FORMATS), default=list(FORMATS), help="File formats beside them.")
    add("--wrapped_uint8", action="store_true", help="Also the PSNR in wrapped uint8 arithmetic.")
    add("--per_image", action="store_true", help="Also one table for each image, as in the paper.")
    add("--lpips_weights", help="Folder or file with LPIPS weights. Default: torchvision's.")
    add("--lpips_net", default="squeeze", choices=["squeeze", "alex", "vgg"])
    add("--repeats", type=int, default=3, help="Repetitions of each timing; the median counts.")
    add("--grid_crop", type=int, default=192, help="Side of the crops in grid.png; 0: no grid.")
    add("--output_dir", default="codec_benchmark")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args(input_args)
    if args.repeats < 1:
        parser.error(f"--repeats must be at least 1, got {args.repeats}")
    return args


def as_tensor(image):
    """`(1, 3, H, W)` in [-1, 1] of a PIL image."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float() / 127.5 - 1


def as_uint8(image):
    """`(H, W, 3)` of `(1, 3, H, W)` in [-1, 1]."""
    return image.add(1).mul(127.5).round().clamp(0, 255).to(torch.uint8)[0].permute(1, 2, 0).cpu().numpy()


def wrapped_psnr(first, second):
    """The PSNR of two uint8 arrays if nobody widens them: differences and squares are modulo 256."""
    with np.errstate(over="ignore"):
        squares = (first - second) ** 2
    mean = float(squares.mean())
    return 10 * math.log10(255**2 / mean) if mean else math.inf


def uniform_ssim(first, second):
    """scikit-image's SSIM as it is without options: a uniform window of 7 × 7, sample covariance, mean over RGB; of floats in [0, 1]."""
    first, second = (image[0].permute(1, 2, 0).double().cpu().numpy() / 2 + 0.5 for image in (first, second))
    return float(structural_similarity(first, second, channel_axis=-1, data_range=1.0))


def timed(function, repeats, device):
    """The value of a function, and the median of its seconds after a call that warms up."""
    value, seconds = function(), []
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        if torch.device(device).type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - start)
    return value, statistics.median(seconds)


def available(formats):
    """The formats that Pillow writes here, and why each other one is missing."""
    found, missing = [], {}
    for name in formats:
        if name == "jxl":
            try:
                import pillow_jxl  # noqa: F401
            except ImportError:
                missing[name] = "install `pillow-jxl-plugin`, or diffusers_lasers[benchmark]"
                continue
        elif name in ("webp", "avif") and not features.check(name):
            missing[name] = "this Pillow was built without it"
            continue
        found.append(name)
    return found, missing


def save(image, name, quality):
    kind, options, _ = FORMATS[name]
    buffer = io.BytesIO()
    image.save(buffer, kind, quality=quality, **options)
    return buffer.getvalue()


def best_file(image, name, limit):
    """The file of the highest quality of at most `limit` bytes, by bisection; the lowest quality where none is so short."""
    low, high = FORMATS[name][2]
    best = low, save(image, name, low)
    if len(best[1]) > limit:
        return best
    low += 1
    while low <= high:
        middle = (low + high) // 2
        data = save(image, name, middle)
        if len(data) <= limit:
            best, low = (middle, data), middle + 1
        else:
            high = middle - 1
    return best


class Judge:
    """The metrics of one reconstruction at a time."""

    def __init__(self, args):
        self.metrics, self.missing, self.wrapped = {"psnr": PSNR(), "ssim": SSIM()}, {}, args.wrapped_uint8
        try:
            if args.lpips_weights and (Path(args.lpips_weights) / "config.json").is_file():
                network = PerceptualSimilarity.from_pretrained(args.lpips_weights)
            else:
                network = PerceptualSimilarity.from_weights(args.lpips_net, args.lpips_weights)
            self.metrics["lpips"] = LPIPS(network)
        except (ImportError, OSError, ValueError) as error:
            self.missing["LPIPS"] = " ".join(str(error).split())
        self.metrics = {name: metric.to(args.device) for name, metric in self.metrics.items()}

    def __call__(self, sample, pixels):
        sample, figures = sample.float().clamp(-1, 1), {}
        for name, metric in self.metrics.items():
            metric.reset()
            try:
                metric.update(sample, pixels)
                figures[name] = float(metric.compute())
            except ValueError as error:  # too small for the metric
                self.missing[name.upper()] = str(error)
        if min(pixels.shape[-2:]) >= 7:
            figures["uniform_ssim"] = uniform_ssim(sample, pixels)
        if self.wrapped:
            figures["wrapped_psnr"] = wrapped_psnr(as_uint8(sample), as_uint8(pixels))
        return figures


@torch.no_grad()
def judge_model(model, pixels, judge, args):
    """Figures, reconstruction and bytes of one image under a model."""
    height, width = pixels.shape[-2:]
    code, encoding = timed(lambda: model.encode_to_code(pixels), args.repeats, args.device)
    sample, decoding = timed(lambda: model.decode_from_code(code).sample, args.repeats, args.device)
    size, entropy = len(model.pack(code)), None
    if isinstance(model, ModelBasedVQCodec):
        entropy = model.entropy_bits_per_pixel(code.indices.permute(0, 3, 1, 2), code.image_size)
    figures = {
        "bytes": size,
        "bits_per_pixel": 8 * size / (height * width),
        "nominal_bits_per_pixel": model.bits_per_pixel(height, width),
        "entropy_bits_per_pixel": entropy,
        **judge(sample, pixels),
        "encode_megapixels_per_second": height * width / 1e6 / encoding,
        "decode_megapixels_per_second": height * width / 1e6 / decoding,
    }
    return figures, sample


def judge_file(image, pixels, name, limit, judge, args):
    """Figures and reconstruction of one image in a file format, at the bytes of a model."""
    quality, data = best_file(image, name, limit)
    _, encoding = timed(lambda: save(image, name, quality), args.repeats, "cpu")
    decoded, decoding = timed(lambda: Image.open(io.BytesIO(data)).convert("RGB"), args.repeats, "cpu")
    sample = as_tensor(decoded).to(pixels.device)
    count = image.width * image.height
    figures = {
        "bytes": len(data),
        "bits_per_pixel": 8 * len(data) / count,
        "quality": quality,
        "longer_than_allowed": len(data) > limit,
        **judge(sample, pixels),
        "encode_megapixels_per_second": count / 1e6 / encoding,
        "decode_megapixels_per_second": count / 1e6 / decoding,
    }
    return figures, sample


def load(path):
    """A codec or an autoencoder, told apart by its configuration."""
    config = AutoencoderDL.load_config(path)
    kind = {"ModelBasedVQCodec": ModelBasedVQCodec, "AutoencoderDL": AutoencoderDL}.get(config.get("_class_name"))
    if kind is None:
        raise ValueError(
            f"`models` must be ModelBasedVQCodec or AutoencoderDL, got {config.get('_class_name')!r} in {path}."
        )
    return kind.from_pretrained(path)


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
    columns = [entry for entry in COLUMNS if any(row[entry[0]] is not None for row in rows)]
    lines = ["| codec | " + " | ".join(title for _, title, _ in columns) + " |"]
    lines.append("| --- |" + " ---: |" * len(columns))
    for row in rows:
        cells = [form.format(row[key]) if row[key] is not None else "–" for key, _, form in columns]
        note = f" ({row['longer_than_allowed']} longer)" if row["longer_than_allowed"] else ""
        lines.append(f"| {row['name']}{note} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def draw_grid(pictures, crop):
    """Rows of centre crops, labelled: `pictures` holds (label, list of (1, 3, H, W))."""
    margin, label_width = 4, 8 + 7 * max(len(label) for label, _ in pictures)
    count = len(pictures[0][1])
    grid = Image.new("RGB", (label_width + count * (crop + margin), len(pictures) * (crop + margin)), "white")
    draw = ImageDraw.Draw(grid)
    for row, (label, images) in enumerate(pictures):
        draw.text((4, row * (crop + margin) + crop // 2), label, fill="black")
        for column, image in enumerate(images):
            pixels = as_uint8(image)
            top, left = ((max(0, side - crop)) // 2 for side in pixels.shape[:2])
            piece = Image.fromarray(np.ascontiguousarray(pixels[top : top + crop, left : left + crop]))
            grid.paste(piece, (label_width + column * (crop + margin), row * (crop + margin)))
    return grid


def main(args):
    output_dir = Path(args.output_dir)
    check_output_folder(output_dir, overwrite=True)
    source = load_image_dataset(
        train_data_dir=args.data, split="validation", image_column=args.image_column, max_samples=args.max_images
    )
    models = [(load(path).to(args.device).eval(), path) for path in args.models]
    check_held_out_images(source)
    output_dir.mkdir(parents=True, exist_ok=True)
    formats, missing = available(args.formats)
    judge = Judge(args)
    names = [getattr(source, "paths", None) and Path(source.paths[i]).name or f"image {i}" for i in range(len(source))]
    figures, pictures, kinds = {}, {}, {}

    def record(row, kind, entry, sample):
        figures.setdefault(row, []).append(entry)
        kinds[row] = kind
        if args.grid_crop and len(pictures.setdefault(row, [])) < 6:
            pictures[row].append(sample.cpu())

    def write():
        """Writes all figures until now."""
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
    for model, path in models:
        label = model.notation if isinstance(model, ModelBasedVQCodec) else Path(path).name
        labels.append(label if label not in labels else f"{label} ({path})")
    for index in tqdm(range(len(source)), desc="Images"):
        image = source[index]
        pixels = as_tensor(image).to(args.device)
        if args.grid_crop and len(pictures.setdefault("original", [])) < 6:
            pictures["original"].append(pixels.cpu())
        for (model, _), label in zip(models, labels):
            entry, sample = judge_model(model, pixels, judge, args)
            record(label, label, {"image": names[index], **entry}, sample)
            for name in formats:
                compared, sample = judge_file(image, pixels, name, entry["bytes"], judge, args)
                record(f"{name} ≤ {label}", name, {"image": names[index], **compared}, sample)
        rows = write()

    notes = [f"{len(source)} images; means over images. MP/s on {torch.get_num_threads()} threads, {args.device}."]
    notes += [f"- {name} is missing: {reason}." for name, reason in {**missing, **judge.missing}.items()]
    text = markdown(rows)
    if args.per_image:
        for index, name in enumerate(names):
            single = [mean_row(row, [entries[index]]) for row, entries in figures.items()]
            text += f"\n{name}\n\n{markdown(single)}"
    text += "\n" + "\n".join(notes) + "\n"
    write_text(output_dir / "results.md", text)
    print(text)
    judgement, points = Judgement(output_dir, saved="The results are"), {}
    with judgement.of("the pictures"):
        for row in rows:
            points.setdefault(row["kind"], []).append((row["bits_per_pixel"], row["psnr"]))
        save_figure(rate_distortion(points, "bits a pixel, written"), output_dir / "rate.png")
        if args.grid_crop:
            save_image(output_dir / "grid.png", draw_grid(list(pictures.items()), args.grid_crop))
    judgement.end()


def cli(input_args=None):
    """Runs with a command line; what is wrong with it or its files is one sentence."""
    try:
        main(parse_args(input_args))
    except (ValueError, ImportError, OSError) as error:
        raise SystemExit(f"benchmark_codec.py: error: {error}") from error


if __name__ == "__main__":
    cli()
