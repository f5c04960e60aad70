#!/usr/bin/env python
"""Evaluates autoencoders on the same images: quality, use of the code, bits and speed, side by side.

    python examples/evaluate_autoencoder.py outputs/dl outputs/vq --resolution 64 --output_dir outputs/evaluation
    python examples/evaluate_autoencoder.py sharp-dl sharp-vq --data photos/ --resolution 128 --task super_resolution

Each model is one row of a Markdown table (stdout and OUTPUT_DIR/results.md). OUTPUT_DIR/results.json also has the
settings, versions, data and the protocol of every metric. OUTPUT_DIR/grid.png shows originals, reconstructions and FLIP
heat maps. Where a kind of code is there twice, OUTPUT_DIR/rate_distortion.png shows quality over rate. Reconstructions
are clamped to [-1, 1] and not rounded. A model with a code is decoded from the code alone. If the package or the
weights of a metric are missing, its column shows "–", and the reason stands below the table.

"Entropy" is that of the evaluated codes themselves. With `--rate_data`, e.g. the training images, "cross-entropy" is
what the evaluated codes cost under a `FactorizedPrior` of the codes of those.

With `--task` the encoders are given degraded images. The first row of the table then compares the degraded images
themselves with the clean ones.
"""

import json
import platform
from pathlib import Path

import torch

from diffusers_lasers.commands.encode import bits_argument
from diffusers_lasers.commands.env import environment
from diffusers_lasers.commands.image_metrics import (
    add_fid_flags,
    add_lpips_flags,
    computed,
    image_metrics,
    update_metrics,
)
from diffusers_lasers.commands.latent_figures import LatentFigures
from diffusers_lasers.commands.loading import load_model, read_config
from diffusers_lasers.commands.scripts import add_device_flag, image_batches, names_of, run_script
from diffusers_lasers.commands.timing import median_seconds
from diffusers_lasers.functional.dictionary import mutual_coherence
from diffusers_lasers.functional.images.psnr import image_psnr
from diffusers_lasers.metrics import flip_map
from diffusers_lasers.models.priors import FactorizedPrior
from diffusers_lasers.training import Degradation, ImageDataset, load_image_dataset
from diffusers_lasers.training.data.image_flags import check_held_out_images
from diffusers_lasers.training.run.judgement import Judgement
from diffusers_lasers.training.run.run_folder import check_output_folder
from diffusers_lasers.utils.command_line import CommandParser, check_at_least
from diffusers_lasers.utils.files import save_image, write_json, write_text
from diffusers_lasers.utils.tables import figure_table
from diffusers_lasers.visualization import image_grid, rate_distortion, save_figure
from diffusers_lasers.visualization.figures import new_figure


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
    ("cross_entropy_bits_per_pixel", "bpp cross-entropy", "{:.3f}"),
    ("encode_images_per_second", "encode img/s", "{:.1f}"),
    ("decode_images_per_second", "decode img/s", "{:.1f}"),
]
RATES = [("cross_entropy_bits_per_pixel", "cross-entropy"), ("entropy_bits_per_pixel", "entropy")]
IMAGE_METRICS = ["psnr", "ssim", "lpips", "flip", "rfid"]
TIMED_CALLS = 5


def parse_args(input_args=None):
    parser = CommandParser(description=__doc__)
    add = parser.add_argument
    add("models", nargs="*", help="Folders (or Hub names) of saved AutoencoderDL models.")
    add("--data", help="Folder of images (recursive), parquet, or pattern. Default: scikit-image's held-out photos.")
    add("--image_column", default="image", help="Column of the images in parquet files.")
    add("--resolution", type=int, help="Side of the square crops. Default: `sample_size` of the first model.")
    add("--resize", type=int, help="Resize the short side to this before cropping. Default: no resizing.")
    add("--crops_per_image", type=int, help="1: the centre crop; more: random crops. Default: 1 with --data, else 32.")
    add("--rate_data", help="Images that tables of symbols are fitted to, for the column of the cross-entropy.")
    add("--max_rate_images", type=int, default=4000, help="Take only the first so many of them.")
    add("--task", choices=["reconstruction", "super_resolution", "inpainting"], default="reconstruction")
    add("--scale", type=int, default=4, help="Factor of super-resolution.")
    add("--mask", choices=["center", "random"], default="center", help="What inpainting hides.")
    add("--mask_fraction", type=float, default=0.25, help="Side of the central mask, as a share of the image's.")
    add("--max_images", type=int, help="Take only the first so many images of the data.")
    add("--batch_size", type=int, default=32)
    add("--seed", type=int, default=0, help="Seed of random crops and masks.")
    add(
        "--coefficient_bits",
        nargs="*",
        type=bits_argument,
        default=[],
        metavar="BITS",
        help="Also evaluate dictionary models with so many bits a coefficient, e.g. `8 6 4`, or `float`.",
    )
    add("--metrics", nargs="+", choices=IMAGE_METRICS, default=IMAGE_METRICS, help="Default: all.")
    add_lpips_flags(parser)
    add_fid_flags(parser)
    add("--grid_images", type=int, default=8, help="Columns of the picture grid; 0: no grid.")
    add(
        "--earlier",
        nargs="*",
        default=[],
        help="Folders of earlier evaluations of these images: first rows.",
    )
    add("--output_dir", default="evaluation")
    add_device_flag(parser)
    parser.check(check_at_least, 1, "batch_size", "resolution", "resize", "crops_per_image", "max_images")
    parser.check(check_at_least, 1, "max_rate_images")
    args = parser.parse_args(input_args)
    if not (args.models or args.earlier):
        parser.error("give models, or --earlier evaluations")
    if not (args.models or args.resolution):
        parser.error("--earlier without models needs --resolution")
    if any(bits is not None and not 1 <= bits <= 16 for bits in args.coefficient_bits):
        parser.error(f"--coefficient_bits must be from 1 to 16 or `float`, got {args.coefficient_bits}")
    return args


def load_rate_data(args, resolution):
    """The images that tables are fitted to, as centre crops."""
    source = load_image_dataset(
        train_data_dir=args.rate_data, image_column=args.image_column, max_samples=args.max_rate_images
    )
    return ImageDataset(source, resolution, resize=args.resize, center_crop=True)


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


@torch.no_grad()
def compare(name, reconstruct, dataset, metrics, missing, args):
    """The image metrics of what `reconstruct` makes of the degraded images, their protocols, and its first images."""
    degrade = Degradation(args.task, args.scale, args.mask, args.mask_fraction)
    metrics, masked, shown = dict(metrics), [], []
    for metric in metrics.values():
        metric.reset()
    for number, images in enumerate(image_batches(dataset, args.batch_size, args.device, name)):
        generator = torch.Generator().manual_seed(args.seed + number * args.batch_size)
        inputs, mask = degrade(images, generator)
        sample = reconstruct(inputs).float().clamp(-1, 1)
        update_metrics(metrics, sample, images, missing, of=name)
        if mask is not None:
            masked.append(image_psnr(sample.double(), images.double(), mask))
        if sum(map(len, shown)) < args.grid_images:
            shown.append(sample[: args.grid_images - sum(map(len, shown))].cpu())
    row = dict.fromkeys(key for key, _, _ in COLUMNS) | computed(metrics, IMAGE_METRICS)
    row["masked_psnr"] = float(torch.cat(masked).mean()) if masked else None
    protocols = {key: metric.protocol() for key, metric in metrics.items()}
    return {"name": name} | row, protocols, torch.cat(shown) if shown else None


@torch.no_grad()
def evaluate(name, model, dataset, metrics, missing, args, rate_data=None):
    """One row: the metrics of one model, their protocols, and its reconstructions of the first images."""
    figures, prior, bits = LatentFigures(model.bottleneck, args.device), None, []
    if rate_data is not None and model.levels:
        batches = image_batches(rate_data, args.batch_size, args.device, f"{name}, tables")
        prior = FactorizedPrior.from_coder(model).fit([model.encode_to_code(images) for images in batches])

    def reconstruct(inputs):
        code, decoded = figures.update(model.encode(inputs).latents, inputs.shape[-2:])
        if prior is not None:
            bits.append(prior.bits(code))
        if code is not None:
            return model.decode_from_code(code).sample
        return model.decode(decoded, force_not_quantize=True).sample[..., : inputs.shape[-2], : inputs.shape[-1]]

    row, protocols, shown = compare(name, reconstruct, dataset, metrics, missing, args)
    row |= {key: value for key, value in figures.compute().items() if key != "nominal_bits_per_pixel"}
    if model.coder.slot_scales is not None:  # a dictionary's code has coefficients
        row["coherence"] = float(mutual_coherence(model.bottleneck.dictionary.detach()))
    if prior is not None:
        row["cross_entropy_bits_per_pixel"] = float(torch.cat(bits).mean()) / dataset.resolution**2
    row["bits_per_pixel"] = model.bits_per_pixel(dataset.resolution, dataset.resolution)

    images = next(dataset.batches(args.batch_size)).to(args.device)
    encode = model.encode_to_code if model.levels else model.encode
    decode = model.decode_from_code if model.levels else lambda output: model.decode(output.latents)
    encoded, seconds = median_seconds(lambda: encode(images), TIMED_CALLS, args.device)
    row["encode_images_per_second"] = len(images) / seconds
    _, seconds = median_seconds(lambda: decode(encoded), TIMED_CALLS, args.device)
    row["decode_images_per_second"] = len(images) / seconds
    config = {key: value for key, value in model.bottleneck.config.items() if not key.startswith("_")}
    row["bottleneck"] = {"type": model.config.bottleneck_type} | config
    return row, protocols, shown


def variants(path, name, args):
    """A model as it was saved; then, if it has coefficients, with other bits for each."""
    model = load_model(path, device=args.device, supported=("AutoencoderDL",))
    if model.coder.slot_scales is None:
        yield name, model
        return

    def label(bits):
        return f"{name} ({'float' if bits is None else f'{bits}-bit'})"

    saved = model.coder.coefficient_bits
    yield label(saved) if args.coefficient_bits else name, model
    for bits in args.coefficient_bits:
        if bits != saved:
            model.bottleneck.set_coefficient_bits(bits)
            yield label(bits), model


def markdown(rows, about, missing, args):
    left_out = [name for name in IMAGE_METRICS if name not in args.metrics]
    left_out += ["masked_psnr"] * (about["task"] != "inpainting")
    left_out += ["cross_entropy_bits_per_pixel"] * (args.rate_data is None)
    columns = [column for column in COLUMNS if column[0] not in left_out]
    size = about["resolution"]
    lines = [figure_table("model", columns, [(row["name"], row) for row in rows]), ""]
    lines.append(f"{about['n']} images of {size}×{size} pixels from {about['source']}; means over images.")
    if about["task"] != "reconstruction":
        lines.append(f"Task: {about['task']}; figures compare with the clean images.")
    lines += [""] + [f"- {what} is missing: {reason}" for what, reason in missing.items()]
    if any(row["entropy_bits_per_pixel"] is None and row["bits_per_pixel"] is not None for row in rows):
        lines.append("- A model without a bottleneck has no code; its nominal bits are those of float16 latents.")
    return "\n".join(lines).rstrip() + "\n"


def draw(dataset, shown):
    """The first images, and below them what each row made of them, with FLIP maps of the models."""
    originals = next(dataset.batches(len(shown[0][1])))
    pictures = [("original", originals)]
    for row, images in shown:
        pictures.append((row["name"], images))
        if row["path"] is not None and row["flip"] is not None:
            pictures.append((f"{row['name']} FLIP", flip_map(originals, images, magma=True)))
    return image_grid(pictures)


def earlier_rows(folders, about):
    """The rows of evaluations of the same images; of two rows of one name the first."""
    rows = {}
    for folder in folders:
        results = json.loads((Path(folder) / "results.json").read_text(encoding="utf-8"))
        if results["data"] != about:
            raise ValueError(f"--earlier must be of the same images, {about}, but {folder} is of {results['data']}.")
        for row in results["models"]:
            rows.setdefault(row["name"], row)
    return list(rows.values())


def draw_curves(rows, path, metrics):
    """Quality over rate, one line for each kind of bottleneck, and one more for those with the rate in their loss."""
    panels = [
        (key, title) for key, title, _ in COLUMNS if key in metrics and any(row[key] is not None for row in rows)
    ]
    panels = [panel for panel in panels if panel[0] in ("psnr", "lpips")] or panels[:2]
    rate = next(key for key, _ in RATES if any(row[key] is not None for row in rows))
    figure, axes = new_figure(columns=len(panels), width=6.5, height=5)
    for axis, (key, title) in zip(axes, panels):
        lines = {}
        for row in rows:
            if row[rate] is not None and row[key] is not None:
                settings = row["bottleneck"]
                kind = settings.get("quantizer", settings["type"])
                kind += ", rate in the loss" * bool(settings.get("rate_weight"))
                lines.setdefault(kind, []).append((row[rate], row[key]))
        rate_distortion(lines, f"{dict(RATES)[rate]}, bits a pixel", title, log_rate=True, axis=axis)
    save_figure(figure, path)


def main(args):
    output_dir = Path(args.output_dir)
    check_output_folder(output_dir, overwrite=True)
    configs = [read_config(path)[0] for path in args.models]
    for path, config in zip(args.models, configs):
        if config["_class_name"] != "AutoencoderDL":
            raise ValueError(f"`models` must be AutoencoderDL, got {config['_class_name']} in {path}.")
    resolution = args.resolution or int(configs[0]["sample_size"])
    Degradation(args.task, args.scale, args.mask, args.mask_fraction)(torch.zeros(1, 3, resolution, resolution))
    dataset, about = load_data(args, resolution)
    rate_data = None if args.rate_data is None else load_rate_data(args, resolution)
    output_dir.mkdir(parents=True, exist_ok=True)
    metrics, missing = image_metrics(args.metrics, args, len(dataset))
    if "rfid" in metrics and args.models:  # the references' features serve all models
        for images in image_batches(dataset, args.batch_size, args.device, "rFID references"):
            metrics["rfid"].update(None, images)

    rows, shown, protocols = earlier_rows(args.earlier, about), [], {}
    cpu = platform.processor() or "cpu"

    def record(row, images, path=None):
        """Keeps a row, and writes all rows until now."""
        rows.append({"path": path} | row)
        if images is not None:
            shown.append((rows[-1], images))
        write()

    def write():
        results = {
            "settings": vars(args),
            "versions": environment(),
            "batch_size_of_speeds": min(args.batch_size, len(dataset)),
            "device": torch.cuda.get_device_name(args.device) if "cuda" in args.device else cpu,
            "data": about,
            "protocols": protocols,
            "unavailable": missing,
            "models": rows,
        }
        write_json(output_dir / "results.json", results)
        write_text(output_dir / "results.md", markdown(rows, about, missing, args))

    if args.task != "reconstruction":
        row, _, images = compare("degraded input", lambda inputs: inputs, dataset, metrics, missing, args)
        record(row, images)
    for path, name in zip(args.models, names_of(args.models)):
        for label, model in variants(path, name, args):
            row, used, images = evaluate(label, model, dataset, metrics, missing, args, rate_data)
            protocols |= used
            record(row, images, str(path))
    if not args.models:
        write()
    print(markdown(rows, about, missing, args))
    judgement = Judgement(output_dir, saved="The results are")
    if shown:
        with judgement.of("the pictures"):
            save_image(output_dir / "grid.png", draw(dataset, shown))
            print(f"Pictures: {output_dir / 'grid.png'}")
    kinds = [row["bottleneck"]["type"] for row in rows if row["entropy_bits_per_pixel"] is not None]
    if len(kinds) > len(set(kinds)):  # a code at several rates
        with judgement.of("the curves"):
            draw_curves(rows, output_dir / "rate_distortion.png", args.metrics)
            print(f"Curves: {output_dir / 'rate_distortion.png'}")
    judgement.end()


def cli(input_args=None):
    """Runs with a command line; what is wrong with it or its files is one sentence."""
    run_script(__file__, parse_args, main, input_args)


if __name__ == "__main__":
    cli()
