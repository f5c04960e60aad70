#!/usr/bin/env python
"""Judges samples of pipelines against real images: KID and FID, with the protocol, beside the codec's floor and a real-against-real figure.

    python examples/evaluate_generation.py cats-categorical cats-continuous --data cats/train --held_out cats/test --features inception.pt \\
        --num_images 400 --temperatures 0 0.1 1 2 --output_dir outputs/generation

The *floor* is the distance of decoded real codes from the real images: no prior on these codes can be expected below it. KID is unbiased; FID grows as the number of
images shrinks, so that only figures of one table compare. OUTPUT_DIR gets results.json, results.md (also on stdout), samples-*.png, and neighbours-*.png: samples above
their nearest training images in the features' space, since a small set is soon known by heart.
"""

import argparse
import hashlib
import json
import os
import statistics
import time
from pathlib import Path

import torch
from PIL import Image
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import KernelInceptionDistance
from tqdm.auto import tqdm

from diffusers_lasers import ModelBasedLatentDiffusionPipeline
from diffusers_lasers.metrics.fid import FeatureNetwork
from diffusers_lasers.models.codecs import decode_indices, encode_indices
from diffusers_lasers.training import ImageDataset, load_image_dataset


def parse_args(input_args=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("pipelines", nargs="+", help="Folders of ModelBasedLatentDiffusionPipeline.")
    add("--data", required=True, help="Reference images: folder, parquet, or pattern.")
    add("--held_out", help="Other real images, for the real-against-real figure.")
    add("--image_column", default="image")
    add("--resolution", type=int, help="Default: what the first pipeline makes.")
    add("--features", required=True, help="TorchScript feature network.")
    add(
        "--feature_resize", type=int, default=299, help="Side that images are resized to for it; 0: it resizes itself."
    )
    add("--feature_range", nargs=2, type=float, default=(-1.0, 127 / 128), metavar=("LOW", "HIGH"))
    add("--num_images", type=int, default=400, help="Samples of each pipeline.")
    add("--num_inference_steps", type=int, default=50)
    add("--temperatures", type=float, nargs="*", help="Sample with each of these γ. Default: the pipeline's own.")
    add("--batch_size", type=int, default=50)
    add("--kid_subset_size", type=int, default=100)
    add("--seed", type=int, default=0)
    add("--output_dir", default="generation")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args(input_args)
    for name in ("num_images", "num_inference_steps", "batch_size", "kid_subset_size"):
        if getattr(args, name) < 1:
            parser.error(f"--{name} must be at least 1, got {getattr(args, name)}")
    if args.num_images < args.kid_subset_size:
        parser.error(f"--num_images must be at least --kid_subset_size, {args.kid_subset_size}, got {args.num_images}")
    return args


class Given(torch.nn.Module):
    """Stands for the feature network where the features are known."""

    def __init__(self, size):
        super().__init__()
        self.num_features = size

    def forward(self, features):
        return features


def as_uint8(images):
    return images.float().clamp(-1, 1).add(1).mul(127.5).round().to(torch.uint8)


@torch.no_grad()
def features_of(network, images, args):
    parts = [images[start : start + args.batch_size] for start in range(0, len(images), args.batch_size)]
    return torch.cat([network(part.to(args.device)).cpu() for part in tqdm(parts, desc="Features", leave=False)])


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


def picture(rows, path):
    """Rows of uint8 images as one picture."""
    canvas = torch.cat([torch.cat(list(row), dim=2) for row in rows], dim=1)
    scratch = path.with_name(path.name + ".tmp.png")
    Image.fromarray(canvas.permute(1, 2, 0).contiguous().numpy()).save(scratch)
    os.replace(scratch, path)


def sample(pipeline, temperature, args):
    images = []
    for start in tqdm(range(0, args.num_images, args.batch_size), desc="Samples", leave=False):
        count = min(args.batch_size, args.num_images - start)
        generators = [torch.Generator().manual_seed(args.seed + start + index) for index in range(count)]
        output = pipeline(
            batch_size=count,
            num_inference_steps=args.num_inference_steps,
            temperature=temperature,
            generator=generators,
            output_type="pt",
        )
        images.append(output.images.cpu().mul(255).round().to(torch.uint8))
    return torch.cat(images)


def real_images(path, resolution, args):
    source = load_image_dataset(train_data_dir=path, image_column=args.image_column)
    dataset = ImageDataset(source, resolution, resize=resolution, center_crop=True)
    return torch.cat(
        [
            dataset.__getitems__(list(range(start, min(start + 64, len(dataset)))))["pixel_values"]
            for start in range(0, len(dataset), 64)
        ]
    )


def main(args):
    if not Path(args.features).is_file():
        raise ValueError(f"--features must be a TorchScript file, {args.features!r} does not exist.")
    pipelines = {path: ModelBasedLatentDiffusionPipeline.from_pretrained(path) for path in args.pipelines}
    first = next(iter(pipelines.values()))
    resolution = args.resolution or first.unet.config.sample_size * first.codec_scale_factor
    network = FeatureNetwork(
        torch.jit.load(args.features, map_location=args.device), tuple(args.feature_range), args.feature_resize or None
    ).eval()
    reference = real_images(args.data, resolution, args)
    known = features_of(network, as_uint8(reference), args)
    out = Path(args.output_dir)
    out.mkdir(parents=True, exist_ok=True)
    rows = []

    def judge(name, images, seconds=None, neighbours=False):
        features = features_of(network, images, args)
        rows.append(
            {"name": name, **distances(features, known, args), "images_per_second": seconds and len(images) / seconds}
        )
        if neighbours:
            nearest = torch.cdist(features[:8], known).min(dim=1)
            rows[-1]["nearest_distance"] = statistics.fmean(nearest.values.tolist())
            label = name.replace("/", "-").replace(" ", "")
            shown = images[: 32 - 32 % 8] if len(images) >= 32 else images[:8]
            picture(list(shown.split(8)) if len(shown) % 8 == 0 else [shown], out / f"samples-{label}.png")
            picture([images[:8], as_uint8(reference[nearest.indices])], out / f"neighbours-{label}.png")

    if args.held_out:
        judge("other real images", as_uint8(real_images(args.held_out, resolution, args)))
    coded = []
    for part in reference.split(64):
        coded.append(decode_indices(first.codec, encode_indices(first.codec, part)))
    judge("codec floor", as_uint8(torch.cat(coded)))
    for path, pipeline in pipelines.items():
        pipeline.to(args.device).set_progress_bar_config(disable=True)
        logits = pipeline.unet.config.parameterization != "continuous"
        for temperature in args.temperatures if args.temperatures and logits else [None]:
            start = time.perf_counter()
            images = sample(pipeline, temperature, args)
            name = Path(path).name + ("" if temperature is None else f" γ={temperature:g}")
            judge(name, images, time.perf_counter() - start, neighbours=True)

    lines = ["| images | KID × 1000 ↓ | ± | FID ↓ | n | samples/s |", "| --- | ---: | ---: | ---: | ---: | ---: |"]
    for row in rows:
        speed = "–" if row["images_per_second"] is None else f"{row['images_per_second']:.2f}"
        lines.append(
            f"| {row['name']} | {1000 * row['kid']:.1f} | {1000 * row['kid_std']:.1f} | {row['fid']:.1f} | {row['n']} | {speed} |"
        )
    lines += [
        "",
        f"Against {len(reference)} images of {resolution} × {resolution}; {args.num_inference_steps} steps; KID of 50 subsets.",
    ]
    protocol = {
        "reference": str(args.data),
        "reference_images": len(reference),
        "crop": f"short side {resolution}, centre",
        "rounding": "8 bits",
        "resize": args.feature_resize,
        "interpolation": "bilinear, antialiased",
        "features": Path(args.features).name,
        "features_sha256": hashlib.sha256(Path(args.features).read_bytes()).hexdigest(),
        "bits_per_pixel": first.codec.bits_per_pixel(resolution, resolution),
    }
    results = {"settings": vars(args), "protocol": protocol, "rows": rows}
    for name, text in (("results.json", json.dumps(results, indent=2)), ("results.md", "\n".join(lines))):
        scratch = out / f"{name}.tmp"
        scratch.write_text(text + "\n", encoding="utf-8")
        os.replace(scratch, out / name)
    print("\n".join(lines))


def cli(input_args=None):
    """Runs with a command line; what is wrong with it or its files is one sentence."""
    args = parse_args(input_args)
    try:
        main(args)
    except (ValueError, ImportError, OSError) as error:
        raise SystemExit(f"evaluate_generation.py: error: {error}") from error


if __name__ == "__main__":
    cli()
