#!/usr/bin/env python
"""Judges autoencoders on the same images: quality, use of the code, bits and speed, side by side.

    python examples/evaluate_autoencoder.py outputs/dl outputs/vq --resolution 64 --output_dir outputs/evaluation
    python examples/evaluate_autoencoder.py sharp-dl sharp-vq --data photos/ --resolution 128 --task super_resolution

Every model folder is one row of a Markdown table (stdout and OUTPUT_DIR/results.md); OUTPUT_DIR/results.json also has
the settings, versions, data and the protocol of every metric, and OUTPUT_DIR/grid.png shows originals, reconstructions
and FLIP heat maps. Reconstructions are clamped to [-1, 1] and not rounded; with codes they are decoded from the code
alone. A metric whose package or weights are missing is shown as "–" with the reason below the table. With `--task` the encoders are given degraded
images, which are a row of the picture, and the first row of the table is what the degraded images themselves reach.
"""

import math
import platform
import statistics
import time
from dataclasses import replace
from importlib import metadata
from pathlib import Path

import torch
from tqdm.auto import tqdm

import diffusers_lasers
from diffusers_lasers import AutoencoderDL, PerceptualSimilarity
from diffusers_lasers.functional.dictionary import mutual_coherence
from diffusers_lasers.functional.images.psnr import image_psnr
from diffusers_lasers.metrics import FLIP, LPIPS, PSNR, RFID, SSIM, AtomUsage, CodeRate, LatentNMSE, flip_map
from diffusers_lasers.training import Degradation, ImageDataset, load_image_dataset
from diffusers_lasers.training.data.image_flags import check_held_out_images
from diffusers_lasers.training.run.judgement import Judgement
from diffusers_lasers.training.run.run_folder import check_output_folder
from diffusers_lasers.utils import CommandParser, save_image, write_json, write_text
from diffusers_lasers.visualization import image_grid


# Key in results.json, heading, format.
COLUMNS = [
    ("psnr", "PSNR ↑ dB", "{:.2f}"),
    ("masked_psnr", "PSNR masked ↑ dB", "{:.2f}"),
    ("ssim", "SSIM ↑", "{:.4f}"),
    ("lpips", "LPIPS ↓", "{:.4f}"),
    ("flip", "FLIP ↓", "{:.4f}"),
    ("rfid", "rFID ↓", "{:.2f}"),
    ("latent_nmse", "latent NMSE ↓", "{:.4f}"),
    ("perplexity", "perplexity", "{:.1f}"),
    ("active", "active share", "{:.1%}"),
    ("coherence", "coherence", "{:.3f}"),
    ("bits_per_pixel", "bpp nominal", "{:.3f}"),
    ("entropy_bits_per_pixel", "bpp entropy", "{:.3f}"),
    ("encode_images_per_second", "encode img/s", "{:.1f}"),
    ("decode_images_per_second", "decode img/s", "{:.1f}"),
]
IMAGE_METRICS = ["psnr", "ssim", "lpips", "flip", "rfid"]


def heading(key):
    return next(title for column, title, _ in COLUMNS if column == key).split(" ")[0]


def coefficient_bits(text):
    return None if text == "float" else int(text)


def parse_args(input_args=None):
    parser = CommandParser(description=__doc__)
    parser.add_argument("models", nargs="+", help="Folders (or Hub names) of saved AutoencoderDL models.")
    parser.add_argument(
        "--data",
        help="Folder of images (recursive), parquet file or folder, or pattern. Default: scikit-image's held-out photos.",
    )
    parser.add_argument("--image_column", default="image", help="Column of the images in parquet files.")
    parser.add_argument(
        "--resolution", type=int, help="Side of the square crops. Default: `sample_size` of the first model."
    )
    parser.add_argument(
        "--resize",
        type=int,
        help="Resize the short side to this before cropping. Default: keep the images' own scale.",
    )
    parser.add_argument(
        "--crops_per_image",
        type=int,
        help="1 takes the centre crop, more take random crops (see --seed). Default: 1 with --data, else 32.",
    )
    parser.add_argument(
        "--task", choices=["reconstruction", "super_resolution", "inpainting"], default="reconstruction"
    )
    parser.add_argument("--scale", type=int, default=4, help="Factor of super-resolution.")
    parser.add_argument("--mask", choices=["center", "random"], default="center", help="What inpainting hides.")
    parser.add_argument("--mask_fraction", type=float, default=0.25, help="Sides of the central mask.")
    parser.add_argument("--max_images", type=int, help="Take only the first so many images of the data.")
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--seed", type=int, default=0, help="Seed of random crops.")
    parser.add_argument(
        "--coefficient_bits",
        nargs="*",
        type=coefficient_bits,
        default=[],
        metavar="BITS",
        help="Judge dictionary models also with coefficients of so many bits each, e.g. `8 6 4`, or `float`.",
    )
    parser.add_argument(
        "--lpips_weights", help="Folder or file with LPIPS weights, see PerceptualSimilarity. Default: torchvision's."
    )
    parser.add_argument("--lpips_net", default="squeeze", choices=["squeeze", "alex", "vgg"])
    parser.add_argument(
        "--fid_features", help="TorchScript feature network for rFID, or `inception` (needs torch-fidelity)."
    )
    parser.add_argument(
        "--fid_resize", type=int, default=299, help="Side that images are resized to for it; 0: it resizes itself."
    )
    parser.add_argument(
        "--fid_range",
        nargs=2,
        type=float,
        default=(-1.0, 127 / 128),
        metavar=("LOW", "HIGH"),
        help="What it takes for black and white. Default: Inception's (v - 128) / 128.",
    )
    parser.add_argument("--grid_images", type=int, default=8, help="Columns of the picture grid; 0: no grid.")
    parser.add_argument("--output_dir", default="evaluation")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args(input_args)
    for name in ("batch_size", "resolution", "resize", "crops_per_image", "max_images"):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            parser.error(f"--{name} must be at least 1, got {getattr(args, name)}")
    if any(bits is not None and not 1 <= bits <= 16 for bits in args.coefficient_bits):
        parser.error(f"--coefficient_bits must be from 1 to 16 or `float`, got {args.coefficient_bits}")
    return args


def load_data(args, resolution):
    """The images as a data set of batches, and what they are."""
    source = load_image_dataset(
        train_data_dir=args.data, split="validation", image_column=args.image_column, max_samples=args.max_images
    )
    check_held_out_images(source)
    crops = args.crops_per_image or (1 if args.data else 32)
    dataset = ImageDataset(
        source, resolution, resize=args.resize, center_crop=crops == 1, crops_per_image=crops, seed=args.seed
    )
    about = {
        "source": str(args.data) if args.data else "scikit-image's photographs held out from training",
        "images": len(source),
        "crops_per_image": crops,
        "n": len(dataset),
        "resolution": resolution,
        "resize": args.resize,
        "task": args.task,
    }
    return dataset, about


def degraded(args, images, start):
    """What the encoder is given for the batch that starts with image `start`, and the masks of inpainting."""
    degrade = Degradation(args.task, args.scale, args.mask, args.mask_fraction)
    return degrade(images, torch.Generator().manual_seed(args.seed + start))


def image_metrics(args, dataset):
    """The image metrics that can be computed here, and why each other one cannot."""

    def lpips():
        if args.lpips_weights and (Path(args.lpips_weights) / "config.json").is_file():
            return LPIPS(PerceptualSimilarity.from_pretrained(args.lpips_weights))
        return LPIPS(PerceptualSimilarity.from_weights(args.lpips_net, args.lpips_weights))

    def rfid():
        if not args.fid_features:
            raise ValueError("no feature network was given (--fid_features).")
        if len(dataset) < 2:
            raise ValueError(f"it needs two images or more, got {len(dataset)}.")
        resize = args.fid_resize or None
        return RFID(args.fid_features, tuple(args.fid_range), resize, reset_real_features=False)

    metrics, missing = {}, {}
    for key, make in zip(IMAGE_METRICS, (PSNR, SSIM, lpips, FLIP, rfid)):
        try:
            metrics[key] = make().to(args.device)
        except (ImportError, OSError, ValueError) as error:
            missing[heading(key)] = " ".join(str(error).split())
    return metrics, missing


def images_per_second(function, images, device, repeats=5):
    """Median over `repeats` calls on one batch, after one that warms up."""
    seconds = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        function()
        if torch.device(device).type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - start)
    return images.shape[0] / statistics.median(seconds[1:])


def score(name, sample, images, metrics, missing):
    """Adds a batch to every metric; one that cannot take it is left out, with the reason."""
    for key, metric in list(metrics.items()):
        try:
            metric.update(sample, None if key == "rfid" else images)
        except ValueError as error:  # images too small for the metric, or a diverged model
            missing[f"{heading(key)} of {name}"] = str(error)
            del metrics[key]


def evaluate_inputs(dataset, metrics, missing, args):
    """One row: what the degraded images reach as they are; and the first of them."""
    metrics, masked, shown, name = dict(metrics), [], [], "degraded input"
    for metric in metrics.values():
        metric.reset()
    for number, images in enumerate(dataset.batches(args.batch_size)):
        images = images.to(args.device)
        inputs, mask = degraded(args, images, number * args.batch_size)
        score(name, inputs, images, metrics, missing)
        if mask is not None:
            masked.append(image_psnr(inputs.double(), images.double(), mask))
        if sum(map(len, shown)) < args.grid_images:
            shown.append(inputs[: args.grid_images - sum(map(len, shown))].cpu())
    row = dict.fromkeys((key for key, _, _ in COLUMNS), None) | {"name": name, "path": None}
    row |= {key: float(metrics[key].compute()) if key in metrics else None for key in IMAGE_METRICS}
    row["masked_psnr"] = float(torch.cat(masked).mean()) if masked else None
    return row, torch.cat(shown) if shown else None


@torch.no_grad()
def evaluate(name, model, dataset, metrics, missing, args):
    """One row: the metrics of one model, and its reconstructions of the first images."""
    has_code = model.config.bottleneck_type != "none"
    nmse = LatentNMSE(model.config.latent_channels).to(args.device)
    rate = CodeRate(model.bottleneck).to(args.device) if has_code else None
    usage, shown, metrics = None, [], dict(metrics)
    for metric in metrics.values():
        metric.reset()
    total = math.ceil(len(dataset) / args.batch_size)
    masked = []
    for number, images in enumerate(tqdm(dataset.batches(args.batch_size), total=total, desc=name, leave=False)):
        images = images.to(args.device)
        inputs, mask = degraded(args, images, number * args.batch_size)
        latents = model.encode(inputs).latents
        if has_code:  # of these latents, as `encode_to_code` makes it
            code = replace(model.bottleneck.encode(latents), image_size=tuple(inputs.shape[-2:]))
            sample = model.decode_from_code(code).sample
            nmse.update(model.bottleneck.decode(code), latents)
            if usage is None:
                usage = AtomUsage(code.codebook_sizes).to(args.device)
            usage.update(code)
            rate.update(code)
        else:
            stored = latents.half().to(latents.dtype)  # what its bits pay for: 16 a value
            sample = model.decode(stored, force_not_quantize=True).sample[..., : images.shape[-2], : images.shape[-1]]
            nmse.update(stored, latents)
        sample = sample.float().clamp(-1, 1)
        score(name, sample, images, metrics, missing)
        if mask is not None:
            masked.append(image_psnr(sample.double(), images.double(), mask))
        if sum(map(len, shown)) < args.grid_images:
            shown.append(sample[: args.grid_images - sum(map(len, shown))].cpu())

    row = {"name": name} | {key: float(metrics[key].compute()) if key in metrics else None for key in IMAGE_METRICS}
    row["masked_psnr"] = float(torch.cat(masked).mean()) if masked else None
    row["latent_nmse"] = float(nmse.compute())
    row |= {"perplexity": None, "active": None, "coherence": None, "entropy_bits_per_pixel": None}
    if has_code:
        row |= {key: float(value) for key, value in usage.compute().items()}
        row["entropy_bits_per_pixel"] = float(rate.compute()["entropy_bits_per_pixel"])
    if model.config.bottleneck_type == "dictionary":
        row["coherence"] = float(mutual_coherence(model.bottleneck.dictionary.detach()))
    row["bits_per_pixel"] = model.bits_per_pixel(dataset.resolution, dataset.resolution)

    images = next(dataset.batches(args.batch_size)).to(args.device)
    encode = model.encode_to_code if has_code else model.encode
    decode = model.decode_from_code if has_code else lambda output: model.decode(output.latents)
    encoded = encode(images)
    row["encode_images_per_second"] = images_per_second(lambda: encode(images), images, args.device)
    row["decode_images_per_second"] = images_per_second(lambda: decode(encoded), images, args.device)
    row["bottleneck"] = {"type": model.config.bottleneck_type} | {
        key: value for key, value in model.bottleneck.config.items() if not key.startswith("_")
    }
    protocols = {key: metric.protocol() for key, metric in metrics.items()}
    return row, protocols, torch.cat(shown) if shown else None


def variants(path, name, args):
    """A model as it was saved, then, if it is a dictionary model, with its coefficients quantised otherwise."""
    model = AutoencoderDL.from_pretrained(path).to(args.device).eval()
    if model.config.bottleneck_type != "dictionary":
        yield name, model
        return

    def label(bits):
        return f"{name} ({'float' if bits is None else f'{bits}-bit'})"

    saved = model.bottleneck.config.coefficient_bits
    yield label(saved) if args.coefficient_bits else name, model
    for bits in args.coefficient_bits:
        if bits != saved:
            model.bottleneck.set_coefficient_bits(bits)
            yield label(bits), model


def names_of(paths):
    """The last parts of the paths, as many as tell them apart."""
    parts = [Path(path).parts for path in paths]
    for depth in range(1, max(map(len, parts), default=0) + 1):
        names = ["/".join(part[-depth:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    return [f"{path} #{number}" for number, path in enumerate(paths, 1)]


def markdown(rows, about, missing):
    columns = [column for column in COLUMNS if column[0] != "masked_psnr" or about["task"] == "inpainting"]
    lines = ["| model | " + " | ".join(title for _, title, _ in columns) + " |"]
    lines.append("| --- |" + " ---: |" * len(columns))
    for row in rows:
        cells = [form.format(row[key]) if row[key] is not None else "–" for key, _, form in columns]
        lines.append(f"| {row['name']} | " + " | ".join(cells) + " |")
    size = about["resolution"]
    lines += ["", f"{about['n']} images of {size}×{size} pixels from {about['source']}; means over images."]
    if about["task"] != "reconstruction":
        lines.append(f"Task: {about['task']}; figures compare with the clean images.")
    lines += [""] + [f"- {what} is missing: {reason}" for what, reason in missing.items()]
    if any(row["entropy_bits_per_pixel"] is None and row["bits_per_pixel"] is not None for row in rows):
        lines.append("- A model without a bottleneck has no code; its nominal bits are those of float16 latents.")
    return "\n".join(lines).rstrip() + "\n"


def versions():
    packages = ("torch", "diffusers", "torchmetrics", "flip-evaluator", "numpy")
    found = {"diffusers_lasers": diffusers_lasers.__version__, "python": platform.python_version()}
    found["threads"] = torch.get_num_threads()
    for package in packages:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = None
    return found


def main(args):
    output_dir = Path(args.output_dir)
    check_output_folder(output_dir, overwrite=True)
    configs = [AutoencoderDL.load_config(path) for path in args.models]
    resolution = args.resolution or int(configs[0]["sample_size"])
    Degradation(args.task, args.scale, args.mask, args.mask_fraction)(torch.zeros(1, 3, resolution, resolution))
    dataset, about = load_data(args, resolution)
    output_dir.mkdir(parents=True, exist_ok=True)
    metrics, missing = image_metrics(args, dataset)
    if "rfid" in metrics:  # the references' features serve all models
        total = math.ceil(len(dataset) / args.batch_size)
        for images in tqdm(dataset.batches(args.batch_size), total=total, desc="rFID references"):
            metrics["rfid"].update(None, images.to(args.device))

    rows, shown, protocols = [], [], {}

    def record(row, images):
        """Keeps a row, and writes all until now."""
        rows.append(row)
        if images is not None:
            shown.append((row, images))
        results = {
            "settings": vars(args),
            "versions": versions(),
            "batch_size_of_speeds": min(args.batch_size, len(dataset)),
            "device": torch.cuda.get_device_name(args.device)
            if "cuda" in args.device
            else platform.processor() or "cpu",
            "data": about,
            "protocols": protocols,
            "unavailable": missing,
            "models": rows,
        }
        write_json(output_dir / "results.json", results)
        write_text(output_dir / "results.md", markdown(rows, about, missing))

    if args.task != "reconstruction":
        record(*evaluate_inputs(dataset, metrics, missing, args))
    for path, name in zip(args.models, names_of(args.models)):
        for label, model in variants(path, name, args):
            row, used, images = evaluate(label, model, dataset, metrics, missing, args)
            protocols |= used
            record({"path": str(path)} | row, images)
    print(markdown(rows, about, missing))
    judgement = Judgement(output_dir, saved="The results are")
    if shown:
        with judgement.of("the pictures"):
            originals = next(dataset.batches(len(shown[0][1])))
            pictures = [("original", originals)]
            for row, images in shown:
                pictures.append((row["name"], images))
                if row["path"] is not None and row["flip"] is not None:
                    pictures.append((f"{row['name']} FLIP", flip_map(originals, images, magma=True)))
            save_image(output_dir / "grid.png", image_grid(pictures))
            print(f"Pictures: {output_dir / 'grid.png'}")
    judgement.end()


def cli(input_args=None):
    """Runs with a command line; what is wrong with it or its files is one sentence."""
    try:
        main(parse_args(input_args))
    except (ValueError, ImportError, OSError) as error:
        raise SystemExit(f"evaluate_autoencoder.py: error: {error}") from error


if __name__ == "__main__":
    cli()
