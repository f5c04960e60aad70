#!/usr/bin/env python
r"""Compares bottlenecks on the latents of a trained autoencoder at their rates: Table 8 of LASERS (2024) with its bits.

    python examples/evaluate_retrofit.py --autoencoder stable-diffusion/ --subfolder vae --train_data_dir photos/ \
        --validation_data_dir more_photos/
    python examples/evaluate_retrofit.py --taef2 weights/ --train_data_dir photos/ --validation_data_dir more_photos/

All bottlenecks are fitted to the same latents z of training images and judged on the same held-out ones. Computed are
the signal-to-noise ratio of the latents,

    SNR = 10 log10 Σ ‖z − z̄‖² / Σ ‖z − ẑ‖²,

PSNR, SSIM, FLIP, LPIPS and FID of decode(ẑ) against decode(z), and the bits a latent element. Codes are compared by
the bytes of a whole file: a `FactorizedPrior` is fitted to the codes of the first --prior_images training images, and
its `compress` writes all held-out codes. float16 is stored as it is. Files need the extra `entropy`.

The tables of a prior are stored once, in bytes of their own. With contexts they are much larger, so that these are only
used where --stored_images images save more than they take. Beside the files stand nominal bits, the entropy of the
held-out symbols with one table a slot, files without contexts, and what gzip and xz make of the packed code.

OUTPUT_DIR gets results.json, results.md, rate_distortion.png and, with image metrics, grid.png. results.md has every
configuration, and what each family reaches at 0.5, 1, 2, 3 and 4 bits a latent element.

A configuration is KIND:NAME=VALUE,…, e.g. `dictionary:K=1024,S=3,bits=6,pursuit=ols`, `vq:K=1024`, `rvq:K=256,D=8`,
`fsq:levels=5,channels=12`, `scalar:bits=4`, `klt:step=0.5`, `float:bits=16`. p is the patch size. Residual quantisers
of one K and p share their first stages.
"""

import gzip
import lzma
import time
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoModel
from tqdm.auto import tqdm

from diffusers_lasers.coding.code import joined
from diffusers_lasers.commands.bottleneck_configurations import build, family, label, parse_configuration
from diffusers_lasers.commands.env import environment
from diffusers_lasers.commands.image_metrics import add_fid_flags, add_lpips_flags, computed, image_metrics
from diffusers_lasers.commands.latent_figures import LatentFigures
from diffusers_lasers.commands.scripts import add_device_flag, run_script
from diffusers_lasers.commands.taef2 import load_taef2
from diffusers_lasers.metrics import PSNR, flip_map
from diffusers_lasers.models.autoencoders import decode_latents
from diffusers_lasers.models.priors import FactorizedPrior
from diffusers_lasers.training import ImageDataset, load_image_dataset
from diffusers_lasers.training.data.image_flags import check_held_out_images
from diffusers_lasers.training.dictionaries.retrofit import collect_latents, fit_to_latents
from diffusers_lasers.training.run.judgement import Judgement
from diffusers_lasers.training.run.run_folder import check_output_folder
from diffusers_lasers.utils.command_line import CommandParser, check_at_least
from diffusers_lasers.utils.files import save_image, write_json, write_text
from diffusers_lasers.utils.import_utils import requires
from diffusers_lasers.utils.tables import figure_table
from diffusers_lasers.visualization import image_grid, rate_distortion, save_figure
from diffusers_lasers.visualization.figures import new_figure


RATES = (0.5, 1.0, 2.0, 3.0, 4.0)  # bits a latent element
STEPS = (0.1, 0.15, 0.25, 0.4, 0.6, 0.9, 1.3, 1.8, 2.5, 3.5)
BASELINES = [
    "float:bits=16",
    *(f"scalar:bits={bits}" for bits in (8, 6, 5, 4, 3, 2)),
    *(f"klt:step={step}" for step in STEPS),
    *(f"rvq:K=256,D={depth}" for depth in (1, 2, 3, 4, 6, 8, 12, 16)),
    *(f"rvq:K=256,D={depth},p=2" for depth in (3, 6, 9, 12, 16)),
    *(f"klt:step={step},p={side}" for side in (2, 4) for step in (0.9, 1.3, 1.8, 2.5, 3.5)),
    "vq:K=4096",
    *(f"fsq:levels={levels},channels={channels}" for levels, channels in ((3, 10), (4, 16), (5, 27), (8, 31))),
]
SMALL = [
    *(f"dictionary:K=1024,S={s},pursuit={pursuit}" for pursuit in ("omp", "ols") for s in (1, 2, 4, 6, 8)),
    *("dictionary:K=256,S=8", "dictionary:K=256,S=8,bits=4", "dictionary:K=1024,S=4,bits=4"),
    *("dictionary:K=1024,S=4,scale=shared", "dictionary:K=1024,S=4,p=2", "dictionary:K=1024,S=8,p=2"),
    "dictionary:K=1024,S=8,tolerance=0.5",
]
PAPER = [
    f"dictionary:K={k},S={s},p={p},pursuit={pursuit}"
    for pursuit in ("omp", "ols")
    for p in (1, 2)
    for k in (64, 256, 1024, 4096)
    for s in range(1, 9)
]
GRIDS = {"small": SMALL + BASELINES, "paper": PAPER + BASELINES, "none": []}
# Key in results.json, heading, format.
COLUMNS = [
    ("bits_per_element", "bits/element, files", "{:.3f}"),
    ("nominal_bits_per_element", "nominal", "{:.3f}"),
    ("entropy_bits_per_element", "entropy", "{:.3f}"),
    ("plain_bits_per_element", "without contexts", "{:.3f}"),
    ("gzip_bits_per_element", "gzip", "{:.3f}"),
    ("xz_bits_per_element", "xz", "{:.3f}"),
    ("table_bytes", "tables, bytes", "{:,}"),
    ("bits_per_pixel", "bits/pixel, files", "{:.3f}"),
    ("latent_snr_db", "latent SNR dB", "{:.2f}"),
    ("psnr", "PSNR dB", "{:.2f}"),
    ("ssim", "SSIM", "{:.4f}"),
    ("flip", "FLIP", "{:.4f}"),
    ("lpips", "LPIPS", "{:.4f}"),
    ("fid", "FID", "{:.2f}"),
    ("seconds", "fit s", "{:.1f}"),
    ("prior_seconds", "prior s", "{:.1f}"),
]


def parse_args(input_args=None):
    parser = CommandParser(description=__doc__)
    add = parser.add_argument
    add("--autoencoder", help="Folder (or Hub name) of an autoencoder of diffusers, or of a pipeline.")
    add("--subfolder", help="Folder of the autoencoder in a pipeline, e.g. vae.")
    add("--taef2", help="Folder of taef2_encoder.safetensors and taef2_decoder.safetensors, instead of --autoencoder.")
    add("--train_data_dir", help="Folder of images (recursive), parquet, or pattern. Default: scikit-image's photos.")
    add("--validation_data_dir", help="Held-out images.")
    add("--image_column", default="image", help="Column of the images in parquet files.")
    add("--max_train_samples", type=int, help="Take only the first so many images.")
    add("--max_validation_samples", type=int, help="Take only the first so many held-out images.")
    add("--resolution", type=int, default=256, help="Side of the square crops.")
    add("--crops_per_image", type=int, help="Default: 1, or 16 of the bundled photographs.")
    add("--batch_size", type=int, default=8)
    add(
        "--grid", default="small", choices=sorted(GRIDS), help="paper: S = 1…8, p = 1, 2, K = 64…4096, by OMP and OLS."
    )
    add("--configurations", nargs="*", default=[], metavar="KIND:NAME=VALUE,…", help="More than those of --grid.")
    add("--normalize", default="mean", choices=["mean", "channel", "none"], help="How channels are normalised first.")
    add("--passes", type=int, default=3, help="Passes of dictionary learning over the latents.")
    add("--fsq_steps", type=int, default=2000, help="Training steps of FSQ's projections.")
    add("--iterations", type=int, default=20, help="Iterations of faiss's k-means.")
    add("--max_signals", type=int, default=2**16, help="Sites that all but dictionaries are fitted to, at most.")
    add("--prior_images", type=int, default=128, help="Training images to whose codes a prior is fitted, at most.")
    add("--stored_images", type=int, default=10_000, help="Images that share tables: whether contexts pay for theirs.")
    add("--image_metrics", type=int, default=32, help="Held-out images that are decoded for image metrics; 0: none.")
    add_lpips_flags(parser)
    add_fid_flags(parser)
    add("--seed", type=int, default=0)
    add_device_flag(parser)
    add("--output_dir", default="retrofit")
    parser.check(check_at_least, 1, "resolution", "batch_size", "passes", "fsq_steps", "iterations", "max_signals")
    parser.check(check_at_least, 1, "prior_images", "stored_images")
    parser.check(check_at_least, 1, "crops_per_image", "max_train_samples", "max_validation_samples")
    parser.check(check_at_least, 0, "image_metrics")
    args = parser.parse_args(input_args)
    if bool(args.autoencoder) == bool(args.taef2):
        parser.error("give --autoencoder or --taef2")
    try:
        args.parsed = [parse_configuration(text) for text in dict.fromkeys(GRIDS[args.grid] + args.configurations)]
    except ValueError as error:
        parser.error(str(error))
    if bool(args.train_data_dir) != bool(args.validation_data_dir):
        parser.error("give both --train_data_dir and --validation_data_dir, or neither")
    if not args.parsed:
        parser.error("--configurations must name one at least with --grid none")
    return args


def load_data(args, folder, split, limit):
    bundled = args.train_data_dir is None
    crops = args.crops_per_image or (16 if bundled else 1)
    images = load_image_dataset(train_data_dir=folder, split=split, image_column=args.image_column, max_samples=limit)
    resize = None if bundled else args.resolution
    return ImageDataset(images, args.resolution, resize, center_crop=crops == 1, crops_per_image=crops, seed=args.seed)


def fit(settings, latents, channels, args, deepest):
    """The fitted bottleneck of a configuration. `deepest` keeps residual quantisers, whose first stages are shared."""
    kind, bottleneck = settings["kind"], build(settings, channels).to(args.device)
    if kind == "float":
        return bottleneck
    arguments = {"seed": args.seed}
    if kind == "dictionary":
        arguments["passes"] = args.passes
    else:
        arguments["max_signals"] = args.max_signals
    if kind in ("vq", "rvq"):
        arguments["iterations"] = args.iterations
    if kind == "fsq":
        arguments["steps"] = args.fsq_steps
    if kind != "rvq":
        return fit_to_latents(bottleneck, latents, args.normalize, False, **arguments)
    # A stage does not depend on later ones: the deepest quantiser of a K and p is fitted, and others take its stages.
    key = settings["K"], settings["p"]
    if key not in deepest:
        depth = max(other["D"] for other in args.parsed if other["kind"] == "rvq" and (other["K"], other["p"]) == key)
        fitted = build({**settings, "D": depth, "beam": 1}, channels)
        deepest[key] = fit_to_latents(fitted.to(args.device), latents, args.normalize, False, **arguments)
    bottleneck.set_latent_statistics(deepest[key].latent_shift, deepest[key].latent_scale)
    bottleneck.codebook.copy_(deepest[key].codebook[: settings["D"]])
    return bottleneck.eval()


def fit_priors(bottleneck, latents, args):
    """Priors of a bottleneck's codes of training latents: without contexts, and with them where these fit in memory."""
    if not bottleneck.levels:
        return []
    batches = latents[0][: args.prior_images].split(args.batch_size)
    codes = [bottleneck.encode(batch.to(args.device)) for batch in batches]
    plain, wide = FactorizedPrior.from_coder(bottleneck, contexts=False), FactorizedPrior.from_coder(bottleneck)
    return [prior.fit(codes) for prior in (plain, wide)[: 1 + wide.config.contexts]]


def stored(bottleneck, priors, codes, latents, args):
    """Bits a latent element of files, by what wrote them, and the bytes of the tables that were chosen."""
    elements, images, tables = sum(batch.numel() for batch in latents), sum(map(len, latents)), None
    if priors:
        code = joined(codes)
        packed = bottleneck.pack(code)
        files = [(len(prior.compress(code)), prior.summary()["prior"]["table_bytes"]) for prior in priors]
        size, tables = min(files, key=lambda file: file[0] * args.stored_images / images + file[1])
        sizes = {"": size, "plain_": files[0][0]}
    else:
        packed = torch.cat(latents).half().numpy().tobytes()
        sizes = {"": len(packed)}
    sizes |= {"gzip_": len(gzip.compress(packed)), "xz_": len(lzma.compress(packed))}
    return {f"{name}bits_per_element": 8 * size / elements for name, size in sizes.items()} | {"table_bytes": tables}


def decode(autoencoder, latents):
    """Images in [-1, 1] of latents."""
    return decode_latents(autoencoder, latents.to(autoencoder.dtype)).float().clamp(-1, 1)


@torch.no_grad()
def judge(bottleneck, priors, settings, autoencoder, latents, references, metrics, args):
    """One row: distortion of latents and images, bits; and the first decoded images."""
    figures, codes, shown, done = LatentFigures(bottleneck, args.device), [], [], 0
    for metric in metrics.values():
        metric.reset()
    for batch in latents:
        code, decoded = figures.update(batch.to(args.device), (args.resolution, args.resolution))
        codes.append(code)
        if done < len(references):
            images = decode(autoencoder, decoded)[: len(references) - done]
            for name, metric in metrics.items():
                metric.update(images, None if name == "fid" else references[done : done + len(images)].to(args.device))
            if sum(map(len, shown)) < 4:
                shown.append(images[:4].cpu())
            done += len(images)
    values, elements = figures.compute(), latents[0][0].numel() / args.resolution**2  # a pixel
    row = {"name": label(settings), "family": family(settings), "settings": settings}
    row |= stored(bottleneck, priors, codes, latents, args)
    row["bits_per_pixel"] = row["bits_per_element"] * elements  # sites that only pad cost bits, too
    for name in ("nominal", "entropy"):
        rate = values[f"{name}_bits_per_pixel"]
        row[f"{name}_bits_per_element"] = None if rate is None else rate / elements
    row["latent_snr_db"] = values["latent_snr_db"]
    return row | (computed(metrics, list(metrics)) if done else {}), torch.cat(shown)[:4] if shown else None


def front(points):
    """The points that no other beats at its rate or a lower one, by rate."""
    best = []
    for x, y in sorted(points, key=lambda point: (point[0], -point[1])):
        if not best or y > best[-1][1]:
            best.append((x, y))
    return best


def at_rates(rows, value):
    """What each family has at RATES, linear between its codes that no other of it beats, and None beyond them."""
    found = {}
    for name in dict.fromkeys(row["family"] for row in rows):
        x, y = zip(*front((row["bits_per_element"], row[value]) for row in rows if row["family"] == name))
        found[name] = [float(np.interp(rate, x, y)) if x[0] <= rate <= x[-1] else None for rate in RATES]
    return found


def markdown(results):
    rates = [(index, f"{rate:g}", "{:.2f}") for index, rate in enumerate(RATES)]
    reached = [(name, dict(enumerate(values))) for name, values in results["at_rates"].items()]
    rows = sorted(results["rows"], key=lambda row: (row["family"], row["bits_per_element"]))
    about = results["data"]
    lines = [
        *("## Latent SNR in dB at bits a latent element", "", figure_table("family", rates, reached), ""),
        *("## All configurations", ""),
        *(figure_table("configuration", COLUMNS, [(row["name"], row) for row in rows]), ""),
        f"Fitted to {about['train']} and judged on {about['held_out']} crops of {about['resolution']} pixels, "
        f"images on {about['decoded']}; against decode(z). Priors are fitted to the codes of {about['priors']} "
        "crops; all held-out codes are one file, without tables.",
    ]
    if any(row["family"] == "rvq" for row in rows):
        lines.append("The time of all residual quantisers of one K and p stands in the first one that was fitted.")
    lines += [f"- {name} is missing: {reason}" for name, reason in results["missing"].items()]
    return "\n".join(lines) + "\n"


def draw(rows, path):
    """Distortion over rate: SNR of the latents and, where it was computed, PSNR of the images."""
    panels = {"latent_snr_db": "latent SNR, dB", "psnr": "PSNR of decode(ẑ) to decode(z), dB"}
    panels = {key: title for key, title in panels.items() if key in rows[0]}
    figure, axes = new_figure(columns=len(panels), width=6.5, height=5)
    for axis, (key, title) in zip(axes, panels.items()):
        points = {}
        for row in rows:
            name = {"scalar": "int2 … int8", "float": "fp16"}.get(row["family"], row["family"])
            points.setdefault(name, []).append((row["bits_per_element"], row[key]))
        rate_distortion(points, "bits a latent element (files)", title, log_rate=True, connect=False, axis=axis)
    save_figure(figure, path)


def draw_images(rows, references, shown, flip):
    """The first images of the configuration of each family that is nearest to one bit a latent element, with FLIP maps
    where these can be made."""
    pictures = [("decode(z)", references)]
    for name in dict.fromkeys(row["family"] for row in rows):
        family = (row for row in rows if row["family"] == name)
        near = min(family, key=lambda row: abs(row["bits_per_element"] - 1))["name"]
        pictures.append((near, shown[near]))
        if flip:
            pictures.append(("FLIP", flip_map(references, shown[near], magma=True)))
    return image_grid(pictures)


@torch.no_grad()
def main(args):
    requires("matplotlib", extra="visualization")
    requires("constriction", extra="entropy")
    folder = Path(args.output_dir)
    check_output_folder(folder, overwrite=True)
    train = load_data(args, args.train_data_dir, "train", args.max_train_samples)
    held_out = load_data(args, args.validation_data_dir, "validation", args.max_validation_samples)
    check_held_out_images(held_out.source)
    if args.taef2:
        autoencoder = load_taef2(args.taef2).to(args.device)
    else:
        autoencoder = AutoModel.from_pretrained(args.autoencoder, subfolder=args.subfolder).to(args.device).eval()
    folder.mkdir(parents=True, exist_ok=True)
    latents = [torch.cat(collect_latents(autoencoder, train, args.batch_size))]
    judged = collect_latents(autoencoder, held_out, args.batch_size)
    metrics, missing, references, autoencoder_psnr = {}, {}, torch.zeros(0), None
    if args.image_metrics:
        metrics, missing = image_metrics(["psnr", "ssim", "flip", "lpips", "fid"], args)
        needed = judged[: -(-args.image_metrics // args.batch_size)]
        references = torch.cat([decode(autoencoder, z.to(args.device)).cpu() for z in needed])[: args.image_metrics]
        psnr = PSNR()
        psnr.update(references, held_out.take(range(len(references))))
        autoencoder_psnr = float(psnr.compute())
        if "fid" in metrics:
            for batch in references.split(args.batch_size):
                metrics["fid"].update(None, batch.to(args.device))
    sizes = {"train": len(train), "held_out": len(held_out), "decoded": len(references)}
    sizes["priors"] = min(len(train), args.prior_images)
    about, rows, deepest, shown = {"resolution": args.resolution, **sizes}, [], {}, {}
    for settings in tqdm(args.parsed, desc="Configurations"):
        start = time.perf_counter()
        bottleneck = fit(settings, latents, latents[0].shape[1], args, deepest)
        fitted = time.perf_counter()
        priors = fit_priors(bottleneck, latents, args)
        seconds = {"seconds": fitted - start, "prior_seconds": time.perf_counter() - fitted}
        row, images = judge(bottleneck, priors, settings, autoencoder, judged, references, metrics, args)
        rows.append(row | seconds)
        shown[row["name"]] = images
        tqdm.write(f"{row['name']}: {row['latent_snr_db']:.2f} dB at {row['bits_per_element']:.3f} bits")
        results = {
            "arguments": {name: value for name, value in vars(args).items() if name != "parsed"},
            "data": about,
            "autoencoder_psnr_db": autoencoder_psnr,
            "protocols": {name: metric.protocol() for name, metric in metrics.items()},
            "missing": missing,
            "at_rates": at_rates(rows, "latent_snr_db"),
            "rows": rows,
            "versions": environment(),
        }
        write_json(folder / "results.json", results)
        write_text(folder / "results.md", markdown(results))
    print(markdown(results))
    judgement = Judgement(folder, saved="The results are")
    with judgement.of("the curves"):
        draw(rows, folder / "rate_distortion.png")
    if args.image_metrics:
        with judgement.of("the pictures"):
            save_image(folder / "grid.png", draw_images(rows, references[:4], shown, "flip" in metrics))
    judgement.end()


def cli(input_args=None):
    """Runs with a command line; what is wrong with it or its files is one sentence."""
    run_script(__file__, parse_args, main, input_args)


if __name__ == "__main__":
    cli()
