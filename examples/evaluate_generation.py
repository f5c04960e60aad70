#!/usr/bin/env python
"""Evaluates samples of pipelines by KID and FID against real images, beside two reference distances.

    python examples/evaluate_generation.py cats-categorical cats-continuous --data cats/train --held_out cats/test \\
        --features inception.pt --num_images 400 --temperatures 0 0.1 1 2 --output_dir outputs/generation

The *codec floor* is the distance of decoded real codes from the real images: no prior on these codes can be expected
below it. `--held_out` adds the distance of other real images. KID is unbiased. FID grows as the number of images
shrinks, so that only figures of one table compare.

OUTPUT_DIR gets results.json, results.md (also on stdout), samples-*.png, and neighbours-*.png with samples above their
nearest training images in the space of the features: small training sets are soon memorised.
"""

import hashlib
import statistics
import time
from pathlib import Path

import torch
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import KernelInceptionDistance
from tqdm.auto import tqdm

from diffusers_lasers import ModelBasedLatentDiffusionPipeline
from diffusers_lasers.commands.scripts import add_device_flag, check_at_least, image_batches, run_script
from diffusers_lasers.commands.tables import figure_table
from diffusers_lasers.metrics.fid import FeatureNetwork
from diffusers_lasers.training import ImageDataset, load_image_dataset
from diffusers_lasers.training.data.code_cache import model_fingerprint
from diffusers_lasers.training.run.judgement import Judgement
from diffusers_lasers.training.run.run_folder import check_output_folder
from diffusers_lasers.utils.command_line import CommandParser
from diffusers_lasers.utils.files import save_image, write_json, write_text
from diffusers_lasers.visualization import image_grid


# Key of a row, heading, format.
COLUMNS = [
    ("bits_per_pixel", "bpp", "{:.3f}"),
    ("kid_1000", "KID × 1000 ↓", "{:.1f}"),
    ("kid_std_1000", "±", "{:.1f}"),
    ("fid", "FID ↓", "{:.1f}"),
    ("n", "n", "{}"),
    ("images_per_second", "images/s", "{:.2f}"),
]


def parse_args(input_args=None):
    parser = CommandParser(description=__doc__)
    add = parser.add_argument
    add("pipelines", nargs="+", help="Folders of ModelBasedLatentDiffusionPipeline.")
    add("--data", required=True, help="Reference images: folder, parquet, or pattern.")
    add("--held_out", help="Other real images; their distance is a row of the table.")
    add("--image_column", default="image")
    add("--resolution", type=int, help="Side of the square images. Default: that of the first pipeline.")
    add("--features", required=True, help="TorchScript feature network.")
    add("--feature_resize", type=int, default=299, help="Side to which its images are resized; 0: not resized.")
    add(
        "--feature_range",
        nargs=2,
        type=float,
        default=(-1.0, 127 / 128),
        metavar=("LOW", "HIGH"),
        help="Network inputs for black and white. Default: (v - 128) / 128 of a byte v, as for Inception.",
    )
    add("--num_images", type=int, default=400, help="Samples of each pipeline.")
    add("--num_inference_steps", type=int, default=50)
    add("--temperatures", type=float, nargs="*", help="Sample with each of these γ. Default: the pipeline's own.")
    add("--batch_size", type=int, default=50)
    add("--kid_subset_size", type=int, default=100)
    add("--seed", type=int, default=0)
    add("--output_dir", default="generation")
    add_device_flag(parser)
    args = parser.parse_args(input_args)
    check_at_least(parser, args, 1, "num_images", "num_inference_steps", "batch_size", "kid_subset_size")
    if args.num_images < args.kid_subset_size:
        parser.error(f"--num_images must be at least --kid_subset_size, {args.kid_subset_size}, got {args.num_images}")
    return args


class Given(torch.nn.Module):
    """Stands for the feature network where features are computed already."""

    def __init__(self, size):
        super().__init__()
        self.num_features = size

    def forward(self, features):
        return features


def as_uint8(images):
    return images.float().clamp(-1, 1).add(1).mul(127.5).round().to(torch.uint8)


def distances(features, reference, args):
    """FID, and mean and standard deviation of KID over subsets, of two sets of features."""
    fid = FrechetInceptionDistance(feature=Given(features.shape[1]), normalize=False).set_dtype(torch.float64)
    size = min(args.kid_subset_size, len(features), len(reference))
    kid = KernelInceptionDistance(feature=Given(features.shape[1]), subsets=50, subset_size=size)
    torch.manual_seed(args.seed)
    for metric in (fid, kid):
        metric.update(reference, real=True)
        metric.update(features, real=False)
    mean, deviation = kid.compute()
    return {"fid": float(fid.compute()), "kid": float(mean), "kid_std": float(deviation), "n": len(features)}


def picture(rows):
    """Rows of uint8 images `(n, 3, H, W)` as one picture, pixel by pixel."""
    return image_grid([("", row / 127.5 - 1) for row in rows], cell=1, margin=0)


@torch.no_grad()
def samples(pipeline, temperature, args):
    """Batches of samples, uint8; image i has the seed --seed + i."""
    for start in tqdm(range(0, args.num_images, args.batch_size), desc="Samples", leave=False):
        count = min(args.batch_size, args.num_images - start)
        output = pipeline(
            batch_size=count,
            num_inference_steps=args.num_inference_steps,
            temperature=temperature,
            generator=[torch.Generator().manual_seed(args.seed + start + index) for index in range(count)],
            output_type="pt",
        )
        yield output.images.mul(255).round().to(torch.uint8)


def real_images(path, resolution, args):
    source = load_image_dataset(train_data_dir=path, image_column=args.image_column)
    return ImageDataset(source, resolution, resize=resolution, center_crop=True)


class Judge:
    """Collects features of images batch by batch, and turns them into rows, each of which is written at once."""

    def __init__(self, args, network, reference, write):
        self.args, self.network, self.reference, self.write, self.rows = args, network, reference, write, []
        self.folder = Path(args.output_dir)
        self.pictures = Judgement(self.folder, saved="The results are")
        self.known, _ = self.features(
            map(as_uint8, image_batches(reference, args.batch_size, args.device, "References"))
        )

    @torch.no_grad()
    def features(self, images):
        """Features of all batches, and the first 32 images."""
        features, shown = [], []
        for batch in images:
            features.append(self.network(batch.to(self.args.device)).cpu())
            if sum(map(len, shown)) < 32:
                shown.append(batch[:32].cpu())
        return torch.cat(features), torch.cat(shown)[:32]

    def row(self, name, images, pictures=False, **more):
        start = time.perf_counter()
        features, shown = self.features(images)
        seconds = time.perf_counter() - start
        row = {"name": name, **distances(features, self.known, self.args), **more}
        if pictures:
            nearest = torch.cdist(features[:8], self.known).min(dim=1)
            row["images_per_second"] = len(features) / seconds
            row["nearest_distance"] = statistics.fmean(nearest.values.tolist())
        self.rows.append(row)
        self.write(self.rows)
        if pictures:
            with self.pictures.of(f"the pictures of {name}"):
                self.draw(name, shown, nearest.indices.tolist())

    def draw(self, name, shown, neighbours):
        label = name.replace("/", "-").replace(" ", "-").replace("γ=", "temperature-")
        count = len(shown) - len(shown) % 8 or len(shown)  # full rows of eight
        save_image(self.folder / f"samples-{label}.png", picture(shown[:count].split(min(8, count))))
        found = as_uint8(self.reference.take(neighbours))
        save_image(self.folder / f"neighbours-{label}.png", picture([shown[:8], found]))


def markdown(rows, reference, args):
    table = figure_table("images", COLUMNS, [(row["name"], scaled(row)) for row in rows])
    return (
        f"{table}\n\nAgainst {len(reference)} images of {reference.resolution} × {reference.resolution}; "
        f"{args.num_inference_steps} steps; KID of 50 subsets of {args.kid_subset_size}; "
        "images/s with the feature network."
    )


def scaled(row):
    """A row with its KID in thousandths."""
    return row | {f"{key}_1000": 1000 * row[key] for key in ("kid", "kid_std")}


def main(args):
    if not Path(args.features).is_file():
        raise ValueError(f"--features must be a TorchScript file, {args.features!r} does not exist.")
    check_output_folder(args.output_dir, overwrite=True)
    pipelines = {path: ModelBasedLatentDiffusionPipeline.from_pretrained(path) for path in args.pipelines}
    for path, pipeline in pipelines.items():
        trained = pipeline.scheduler.config.get("num_train_timesteps")  # a DiscreteDDIMScheduler has no such limit
        if trained is not None and args.num_inference_steps > trained:
            raise ValueError(
                f"--num_inference_steps must be at most the {trained} that {path} was trained with, "
                f"got {args.num_inference_steps}."
            )
    first = next(iter(pipelines.values()))
    resolution = args.resolution or first.unet.config.sample_size * first.codec_scale_factor
    network = FeatureNetwork(
        torch.jit.load(args.features, map_location=args.device), tuple(args.feature_range), args.feature_resize or None
    ).eval()
    reference = real_images(args.data, resolution, args)
    held_out = real_images(args.held_out, resolution, args) if args.held_out else None
    out = Path(args.output_dir)
    out.mkdir(parents=True, exist_ok=True)
    protocol = {
        "reference": str(args.data),
        "reference_images": len(reference),
        "crop": f"short side {resolution}, centre",
        "rounding": "8 bits",
        "resize": args.feature_resize,
        "interpolation": "bilinear, antialiased",
        "features": Path(args.features).name,
        "features_sha256": hashlib.sha256(Path(args.features).read_bytes()).hexdigest(),
        "kid_subsets": [50, args.kid_subset_size],
    }

    def write(rows):
        write_json(out / "results.json", {"settings": vars(args), "protocol": protocol, "rows": rows})
        write_text(out / "results.md", markdown(rows, reference, args) + "\n")

    judge = Judge(args, network, reference, write)
    if held_out is not None:
        others = image_batches(held_out, args.batch_size, args.device, "Other real images")
        judge.row("other real images", map(as_uint8, others))
    floors = set()
    for path, pipeline in pipelines.items():
        pipeline.to(args.device).set_progress_bar_config(disable=True)
        codec, bits = pipeline.codec, pipeline.codec.bits_per_pixel(resolution, resolution)
        if model_fingerprint(codec) not in floors:
            floors.add(model_fingerprint(codec))
            decoded = (
                as_uint8(codec.decode_indices(codec.encode_indices(batch))[..., :resolution, :resolution])
                for batch in image_batches(reference, args.batch_size, args.device, "Codec floor")
            )
            label = "codec floor" if len(floors) == 1 else f"codec floor of {Path(path).name}"
            judge.row(label, decoded, bits_per_pixel=bits)
        logits = pipeline.unet.config.parameterization != "continuous"
        for temperature in args.temperatures if args.temperatures and logits else [None]:
            name = Path(path).name + ("" if temperature is None else f" γ={temperature:g}")
            judge.row(name, samples(pipeline, temperature, args), pictures=True, bits_per_pixel=bits)
    print(markdown(judge.rows, reference, args))
    judge.pictures.end()


def cli(input_args=None):
    """Runs with a command line; what is wrong with it or its files is one sentence."""
    run_script(__file__, parse_args, main, input_args)


if __name__ == "__main__":
    cli()
