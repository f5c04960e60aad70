#!/usr/bin/env python
r"""Bottlenecks on the latents of a trained autoencoder at their rates: Table 8 of LASERS (2024) with the bits that it leaves out.

    python examples/evaluate_retrofit.py --autoencoder stable-diffusion/ --subfolder vae --train_data_dir photos/ --validation_data_dir more_photos/
    python examples/evaluate_retrofit.py --taef2 weights/ --train_data_dir photos/ --validation_data_dir more_photos/ --grid small

All bottlenecks are fitted to the same latents z of training images and judged on the same held-out ones: signal-to-noise ratio of the latents,

    SNR = 10 log10 Σ ‖z − z̄‖² / Σ ‖z − ẑ‖²,

PSNR, SSIM, FLIP, LPIPS and FID of decode(ẑ) against decode(z), and bits: nominal, and by the empirical entropy of the code's symbols with one table a slot (supports as
sets where the coefficients' scale does not depend on the depth). OUTPUT_DIR gets results.json, results.md – every configuration, and what each family reaches at
0.5, 1, 2, 3 and 4 bits a latent element – rate_distortion.png and, with image metrics, grid.png.

A configuration is KIND:NAME=VALUE,…, e.g. `dictionary:K=1024,S=3,bits=6,pursuit=ols`, `vq:K=1024`, `rvq:K=256,D=8`, `fsq:levels=5,channels=12`, `scalar:bits=4`,
`klt:step=0.5`, `float:bits=16`; p is the patch size. Residual quantisers of one K and p share their first stages.
"""

import time
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderTiny, AutoModel
from diffusers.models.unets.unet_2d_blocks import AutoencoderTinyBlock
from safetensors.torch import load_file
from torch import nn
from tqdm.auto import tqdm

import diffusers_lasers
from diffusers_lasers import (
    DictionaryBottleneck,
    FSQBottleneck,
    PerceptualSimilarity,
    ResidualVQBottleneck,
    ScalarQuantizerBottleneck,
    VectorQuantizerBottleneck,
)
from diffusers_lasers.metrics import FLIP, LPIPS, PSNR, RFID, SSIM, CodeRate, LatentNMSE, flip_map
from diffusers_lasers.models.autoencoders import decode_latents
from diffusers_lasers.training import ImageDataset, load_image_dataset
from diffusers_lasers.training.data.image_flags import check_held_out_images
from diffusers_lasers.training.dictionary.retrofit import collect_latents, fit_to_latents
from diffusers_lasers.training.run.judgement import Judgement
from diffusers_lasers.training.run.run_folder import check_output_folder
from diffusers_lasers.utils import CommandParser, save_image, write_json, write_text
from diffusers_lasers.utils.import_utils import requires
from diffusers_lasers.visualization import image_grid, new_figure, rate_distortion, save_figure


RATES = (0.5, 1.0, 2.0, 3.0, 4.0)  # bits a latent element
DEFAULTS = {
    "dictionary": {"K": 1024, "S": 2, "p": 1, "bits": 6, "pursuit": "omp", "scale": "depth", "tolerance": None},
    "vq": {"K": 1024, "p": 1},
    "rvq": {"K": 256, "D": 4, "p": 1, "beam": 8},
    "fsq": {"levels": 5, "channels": 8, "p": 1},
    "scalar": {"bits": 8, "p": 1},
    "klt": {"step": 0.5, "p": 1, "bits": 10},
    "float": {"bits": 16, "p": 1},
}
STEPS = (0.1, 0.15, 0.25, 0.4, 0.6, 0.9, 1.3, 1.8, 2.5, 3.5)
BASELINES = [
    *(
        "float:bits=16",
        "scalar:bits=8",
        "scalar:bits=6",
        "scalar:bits=5",
        "scalar:bits=4",
        "scalar:bits=3",
        "scalar:bits=2",
    ),
    *(f"klt:step={step}" for step in STEPS),
    *(f"rvq:K=256,D={depth}" for depth in (1, 2, 3, 4, 6, 8, 12, 16)),
    *(f"rvq:K=256,D={depth},p=2" for depth in (3, 6, 9, 12, 16)),
    *(f"klt:step={step},p=2" for step in (0.9, 1.3, 1.8, 2.5, 3.5)),
    "vq:K=4096",
    *("fsq:levels=3,channels=10", "fsq:levels=4,channels=16", "fsq:levels=5,channels=27", "fsq:levels=8,channels=31"),
]
SMALL = [
    *(f"dictionary:K=1024,S={s},pursuit={pursuit}" for pursuit in ("omp", "ols") for s in (1, 2, 4, 6, 8)),
    *("dictionary:K=256,S=8", "dictionary:K=256,S=8,bits=4", "dictionary:K=1024,S=4,bits=4", "dictionary:K=1024,S=4,scale=shared"),
    *("dictionary:K=1024,S=4,p=2", "dictionary:K=1024,S=8,p=2", "dictionary:K=1024,S=8,tolerance=0.5"),
]  # fmt: skip
PAPER = [
    f"dictionary:K={k},S={s},p={p},pursuit={pursuit}"
    for pursuit in ("omp", "ols")
    for p in (1, 2)
    for k in (64, 256, 1024, 4096)
    for s in range(1, 9)
]
GRIDS = {"small": SMALL + BASELINES, "paper": PAPER + BASELINES, "none": []}


def parse_args(input_args=None):
    parser = CommandParser(description=__doc__)
    add = parser.add_argument
    add("--autoencoder", help="Folder (or Hub name) of an autoencoder of diffusers, or of a pipeline.")
    add("--subfolder", help="Where it is in a pipeline's folder, e.g. vae.")
    add(
        "--taef2",
        help="Folder with taef2_encoder.safetensors and taef2_decoder.safetensors, instead of --autoencoder.",
    )
    add(
        "--train_data_dir",
        help="Folder of images (recursive), parquet file or folder, or pattern. Default: scikit-image's photos.",
    )
    add("--validation_data_dir", help="Held-out images.")
    add("--image_column", default="image")
    add("--max_train_samples", type=int)
    add("--max_validation_samples", type=int)
    add("--resolution", type=int, default=256, help="Side of the square crops.")
    add("--crops_per_image", type=int, help="Default: 1, or 16 of the bundled photographs.")
    add("--batch_size", type=int, default=8)
    add(
        "--grid", default="small", choices=sorted(GRIDS), help="paper: S = 1…8, p = 1, 2, K = 64…4096, by OMP and OLS."
    )
    add("--configurations", nargs="*", default=[], metavar="KIND:NAME=VALUE,…", help="Further ones.")
    add("--normalize", default="mean", choices=["mean", "channel", "none"])
    add("--passes", type=int, default=3, help="Passes over the latents, of dictionaries.")
    add("--fsq_steps", type=int, default=2000)
    add("--iterations", type=int, default=20, help="Of faiss's k-means.")
    add("--max_signals", type=int, default=2**16, help="Sites that baselines are fitted to.")
    add(
        "--image_metrics",
        type=int,
        default=32,
        help="Held-out images that are decoded for PSNR, SSIM, FLIP, LPIPS and FID; 0: none.",
    )
    add("--lpips_weights", help="Folder or file with LPIPS weights, see PerceptualSimilarity. Default: torchvision's.")
    add("--lpips_net", default="squeeze", choices=["squeeze", "alex", "vgg"])
    add("--fid_features", help="TorchScript feature network for FID, or `inception` (needs torch-fidelity).")
    add("--seed", type=int, default=0)
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    add("--output_dir", default="retrofit")
    args = parser.parse_args(input_args)
    if bool(args.autoencoder) == bool(args.taef2):
        parser.error("give --autoencoder or --taef2")
    for name in ("resolution", "batch_size", "passes", "fsq_steps", "iterations", "max_signals", "crops_per_image"):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            parser.error(f"--{name} must be at least 1, got {getattr(args, name)}")
    try:
        args.parsed = [parse_configuration(text) for text in dict.fromkeys(GRIDS[args.grid] + args.configurations)]
    except ValueError as error:
        parser.error(str(error))
    for name in ("image_metrics", "max_train_samples", "max_validation_samples"):
        least = 0 if name == "image_metrics" else 1
        if getattr(args, name) is not None and getattr(args, name) < least:
            parser.error(f"--{name} must be at least {least}, got {getattr(args, name)}")
    if bool(args.train_data_dir) != bool(args.validation_data_dir):
        parser.error("give both --train_data_dir and --validation_data_dir, or neither")
    if not args.parsed:
        parser.error("--configurations must name one at least with --grid none")
    return args


def parse_configuration(text):
    """`KIND:NAME=VALUE,…` as a dict with all of the kind's settings."""
    kind, _, rest = text.partition(":")
    if kind not in DEFAULTS:
        raise ValueError(f"a configuration must begin with one of {', '.join(DEFAULTS)}, got {text!r}")
    settings = {"kind": kind, **DEFAULTS[kind]}
    for part in filter(None, rest.split(",")):
        name, _, value = part.partition("=")
        if name not in DEFAULTS[kind]:
            raise ValueError(f"a configuration of {kind} has {', '.join(DEFAULTS[kind])}, got {name!r} in {text!r}")
        try:
            settings[name] = (
                value
                if name in ("pursuit", "scale")
                else float(value)
                if name in ("step", "tolerance")
                else int(value)
            )
        except ValueError:
            raise ValueError(f"{name} must be a number, got {value!r} in {text!r}") from None
    if kind == "float" and (settings["bits"], settings["p"]) != (16, 1):
        raise ValueError(f"a configuration of float has bits=16 and p=1 only, got {text!r}")
    return settings


class NormedTinyBlock(AutoencoderTinyBlock):
    """A block of TAEF2's middle: its input plus a normalised 1 × 1 branch, then the plain block."""

    def __init__(self, channels):
        super().__init__(channels, channels, "relu")
        wide = 4 * channels
        self.pool = nn.Sequential(
            nn.Conv2d(channels, wide, 1, bias=False), nn.GroupNorm(4, wide), nn.ReLU(), nn.Conv2d(wide, channels, 1, bias=False)
        )  # fmt: skip

    def forward(self, x):
        return super().forward(x + self.pool(x))


def load_taef2(folder):
    """TAEF2 as an `AutoencoderTiny`, which lacks the blocks of its middle."""
    model = AutoencoderTiny(latent_channels=32)
    for part, network, shift in (("encoder", model.encoder, 0), ("decoder", model.decoder, 1)):
        state = load_file(Path(folder) / f"taef2_{part}.safetensors")
        # the release counts the clamp before its decoder as a layer
        state = {
            f"{int(name.split('.')[0]) - shift}.{name.split('.', 1)[1]}": value.float()
            for name, value in state.items()
        }
        for index in {int(name.split(".")[0]) for name in state if ".pool." in name}:
            network.layers[index] = NormedTinyBlock(network.layers[index].conv[0].in_channels)
        network.layers.load_state_dict(state)
    return model.eval()


def load_data(args, folder, split, limit):
    bundled = args.train_data_dir is None
    crops = args.crops_per_image or (16 if bundled else 1)
    images = load_image_dataset(train_data_dir=folder, split=split, image_column=args.image_column, max_samples=limit)
    resize = None if bundled else args.resolution
    return ImageDataset(images, args.resolution, resize, center_crop=crops == 1, crops_per_image=crops, seed=args.seed)


def label(settings):
    """A configuration in short, without what is at its default."""
    kind = settings["kind"]
    shown = [
        name
        for name in DEFAULTS[kind]
        if name in ("K", "S", "D", "levels", "channels", "step") or settings[name] != DEFAULTS[kind][name]
    ]
    if kind in ("scalar", "float"):
        return f"{'int' if kind == 'scalar' else 'float'}{settings['bits']}" + (
            f" p={settings['p']}" if settings["p"] > 1 else ""
        )
    return kind + "".join(f" {name}={settings[name]}" for name in shown)


def family(settings):
    return f"dictionary, {settings['pursuit']}" if settings["kind"] == "dictionary" else settings["kind"]


def fit(settings, latents, channels, args, residual_books):
    """The fitted bottleneck of a configuration; None where floats are stored as they are."""
    kind, shared = settings["kind"], {"latent_channels": channels, "patch_size": settings["p"]}
    plain = {"max_signals": args.max_signals, "seed": args.seed}
    if kind == "float":
        return None
    if kind == "dictionary":
        bottleneck = DictionaryBottleneck(
            num_atoms=settings["K"],
            sparsity=settings["S"],
            coefficient_bits=settings["bits"] or None,
            coefficient_scaling=settings["scale"],
            pursuit=settings["pursuit"],
            tolerance=settings["tolerance"],
            **shared,
        )
        arguments = {"passes": args.passes, "seed": args.seed}
    elif kind == "vq":
        bottleneck = VectorQuantizerBottleneck(num_codewords=settings["K"], **shared)
        arguments = {**plain, "iterations": args.iterations}
    elif kind == "rvq":
        # stages do not depend on later ones: the deepest quantiser of a K and p is fitted once
        key, depths = (
            (settings["K"], settings["p"]),
            [
                other["D"]
                for other in args.parsed
                if other["kind"] == "rvq" and (other["K"], other["p"]) == (settings["K"], settings["p"])
            ],
        )
        if key not in residual_books:
            deepest = ResidualVQBottleneck(num_codewords=settings["K"], depth=max(depths), **shared).to(args.device)
            residual_books[key] = fit_to_latents(
                deepest, latents, args.normalize, False, **plain, iterations=args.iterations
            )
        whole = residual_books[key]
        bottleneck = ResidualVQBottleneck(
            num_codewords=settings["K"], depth=settings["D"], beam_size=settings["beam"], **shared
        ).to(args.device)
        bottleneck.set_latent_statistics(whole.latent_shift, whole.latent_scale)
        bottleneck.codebook.copy_(whole.codebook[: settings["D"]])
        return bottleneck.eval()
    elif kind == "fsq":
        bottleneck = FSQBottleneck(levels=(settings["levels"],) * settings["channels"], **shared)
        arguments = {**plain, "steps": args.fsq_steps}
    else:
        transform, step = ("klt", settings["step"]) if kind == "klt" else (None, None)
        bottleneck = ScalarQuantizerBottleneck(bits=settings["bits"], transform=transform, step=step, **shared)
        arguments = plain
    return fit_to_latents(bottleneck.to(args.device), latents, args.normalize, False, **arguments)


def image_metrics(args):
    """The image metrics that can be computed here, and why each other one cannot."""

    def lpips():
        if args.lpips_weights and (Path(args.lpips_weights) / "config.json").is_file():
            return LPIPS(PerceptualSimilarity.from_pretrained(args.lpips_weights))
        return LPIPS(PerceptualSimilarity.from_weights(args.lpips_net, args.lpips_weights))

    def fid():
        if not args.fid_features:
            raise ValueError("no feature network was given (--fid_features).")
        return RFID(args.fid_features, reset_real_features=False)

    metrics, missing = {}, {}
    for name, make in (("psnr", PSNR), ("ssim", SSIM), ("flip", FLIP), ("lpips", lpips), ("fid", fid)):
        try:
            metrics[name] = make().to(args.device)
        except (ImportError, OSError, ValueError) as error:
            missing[name] = " ".join(str(error).split())
    return metrics, missing


@torch.no_grad()
def judge(bottleneck, settings, autoencoder, latents, references, metrics, args):
    """One row: distortion of latents and images, bits; and the first decoded images."""
    channels = latents[0].shape[1]
    nmse, rate = (
        LatentNMSE(channels).to(args.device),
        None if bottleneck is None else CodeRate(bottleneck).to(args.device),
    )
    for metric in metrics.values():
        metric.reset()
    shown, done = [], 0
    for batch in latents:
        z = batch.to(args.device)
        if bottleneck is None:
            decoded = z.half().float()
        else:
            code = bottleneck.encode(z)
            decoded = bottleneck.decode(code)
            rate.update(code, num_pixels=len(z) * args.resolution**2)
        nmse.update(decoded, z)
        if done < len(references):
            images = decode_latents(autoencoder, decoded.to(autoencoder.dtype)).float().clamp(-1, 1)
            images = images[: len(references) - done]
            for name, metric in metrics.items():
                metric.update(images, None if name == "fid" else references[done : done + len(images)].to(args.device))
            if sum(map(len, shown)) < 4:
                shown.append(images[:4].cpu())
            done += len(images)
    elements = latents[0][0].numel() / args.resolution**2  # a pixel; sites that only pad cost bits, too
    if rate is None:
        nominal = entropy = float(settings["bits"])
    else:
        values = rate.compute()
        nominal, entropy = (float(values[f"{kind}_bits_per_pixel"]) / elements for kind in ("nominal", "entropy"))
    row = {
        "name": label(settings),
        "family": family(settings),
        "settings": settings,
        "bits_per_element": entropy,
        "nominal_bits_per_element": nominal,
        "bits_per_pixel": entropy * elements,
        "latent_snr_db": float(-10 * torch.log10(nmse.compute())),
    }
    row |= {name: float(metric.compute()) for name, metric in metrics.items()} if done else {}
    return row, torch.cat(shown)[:4] if shown else None


def upper_hull(points):
    """The points that no mixture of two others beats, by rate."""
    hull = []
    for x, y in sorted(points):
        while hull and hull[-1][0] == x:
            hull.pop()  # the lower of two at one rate
        while len(hull) > 1:
            (x0, y0), (x1, y1) = hull[-2:]
            if (y1 - y0) * (x - x0) > (y - y0) * (x1 - x0):
                break
            hull.pop()
        hull.append((x, y))
    return hull


def at_rates(rows, value):
    """What each family reaches at RATES: linear between the neighbours on its upper hull, which mixes two codes; None beyond it."""
    found = {}
    for name in dict.fromkeys(row["family"] for row in rows):
        x, y = zip(*upper_hull((row["bits_per_element"], row[value]) for row in rows if row["family"] == name))
        found[name] = [float(np.interp(rate, x, y)) if x[0] <= rate <= x[-1] else None for rate in RATES]
    return found


def markdown(results):
    def cell(value, form):
        return "–" if value is None else form.format(value)

    lines = [
        "## Latent SNR in dB at bits a latent element",
        "",
        "| family | " + " | ".join(f"{rate:g}" for rate in RATES) + " |",
    ]
    lines.append("| --- |" + " ---: |" * len(RATES))
    for name, values in results["at_rates"].items():
        lines.append(f"| {name} | " + " | ".join(cell(value, "{:.2f}") for value in values) + " |")
    columns = [
        ("bits_per_element", "bits/element", "{:.3f}"),
        ("nominal_bits_per_element", "nominal", "{:.3f}"),
        ("bits_per_pixel", "bits/pixel", "{:.3f}"),
    ]
    columns += [
        ("latent_snr_db", "latent SNR dB", "{:.2f}"),
        ("psnr", "PSNR dB", "{:.2f}"),
        ("ssim", "SSIM", "{:.4f}"),
    ]
    columns += [
        ("flip", "FLIP", "{:.4f}"),
        ("lpips", "LPIPS", "{:.4f}"),
        ("fid", "FID", "{:.2f}"),
        ("seconds", "fit s", "{:.1f}"),
    ]
    lines += [
        "",
        "## All configurations",
        "",
        "| configuration | " + " | ".join(title for _, title, _ in columns) + " |",
    ]
    lines.append("| --- |" + " ---: |" * len(columns))
    for row in sorted(results["rows"], key=lambda row: (row["family"], row["bits_per_element"])):
        lines.append(f"| {row['name']} | " + " | ".join(cell(row.get(key), form) for key, _, form in columns) + " |")
    about = results["data"]
    lines += [
        "",
        f"Fitted to {about['train']} and judged on {about['held_out']} crops of {about['resolution']} pixels, images on {about['decoded']}; against decode(z).",
    ]
    if any(row["family"] == "rvq" for row in results["rows"]):
        lines.append("The first residual quantiser of a K and p bears the time of all of them.")
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
        rate_distortion(points, "bits a latent element (entropy)", title, log_rate=True, connect=False, axis=axis)
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
    metrics, missing = image_metrics(args) if args.image_metrics else ({}, {})
    references = torch.zeros(0)
    if args.image_metrics:
        needed = judged[: -(-args.image_metrics // args.batch_size)]
        references = torch.cat(
            [decode_latents(autoencoder, z.to(args.device, autoencoder.dtype)).float().cpu() for z in needed]
        )
        references = references[: args.image_metrics].clamp(-1, 1)
        own = held_out.take(range(len(references)))
        psnr = PSNR()
        psnr.update(references, own)
        autoencoder_psnr = float(psnr.compute())
        if "fid" in metrics:
            for batch in references.split(args.batch_size):
                metrics["fid"].update(None, batch.to(args.device))
    rows, residual_books, shown = [], {}, {}
    for settings in tqdm(args.parsed, desc="Configurations"):
        start = time.perf_counter()
        bottleneck = fit(settings, latents, latents[0].shape[1], args, residual_books)
        seconds = time.perf_counter() - start
        row, images = judge(bottleneck, settings, autoencoder, judged, references, metrics, args)
        rows.append(row | {"seconds": seconds})
        shown[row["name"]] = images
        tqdm.write(f"{row['name']}: {row['latent_snr_db']:.2f} dB at {row['bits_per_element']:.3f} bits")
        results = {
            "arguments": {name: value for name, value in vars(args).items() if name != "parsed"},
            "data": {
                "train": len(train),
                "held_out": len(held_out),
                "resolution": args.resolution,
                "decoded": len(references),
            },
            "autoencoder_psnr_db": autoencoder_psnr if args.image_metrics else None,
            "protocols": {name: metric.protocol() for name, metric in metrics.items()},
            "missing": missing,
            "at_rates": at_rates(rows, "latent_snr_db"),
            "rows": rows,
            "versions": {"diffusers_lasers": diffusers_lasers.__version__, "torch": torch.__version__},
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
    try:
        main(parse_args(input_args))
    except (ValueError, ImportError, OSError) as error:
        raise SystemExit(f"evaluate_retrofit.py: error: {error}") from error


if __name__ == "__main__":
    cli()
