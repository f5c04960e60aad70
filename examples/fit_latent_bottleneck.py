#!/usr/bin/env python
"""Learns a bottleneck for the latents of a trained autoencoder, whose weights stay as they are (LASERS, 2024, section 12.3).

    python examples/fit_latent_bottleneck.py --autoencoder stable-diffusion/ --subfolder vae --train_data_dir photos/ --output_dir dictionary
    python examples/fit_latent_bottleneck.py --autoencoder vae/ --train_data_dir photos/ --bottleneck residual_vq --num_symbols 256 --depth 4 --output_dir rvq

OUTPUT_DIR gets the bottleneck, which `LatentDLPipeline.from_pretrained(stable_diffusion, bottleneck=...)` takes, settings.json and a card with the figures of held-out
images (--validation_data_dir) and the bits that they cost; the bottleneck is saved before it is judged. Without
--train_data_dir or --dataset_name the photographs that scikit-image installs are read.
"""

import shlex
import sys
import time
from pathlib import Path

import torch
from diffusers import AutoModel

import diffusers_lasers
from diffusers_lasers import (
    DictionaryBottleneck,
    FSQBottleneck,
    ResidualVQBottleneck,
    ScalarQuantizerBottleneck,
    VectorQuantizerBottleneck,
)
from diffusers_lasers.metrics import PSNR, CodeRate, LatentNMSE
from diffusers_lasers.models.autoencoders import decode_latents
from diffusers_lasers.training import ImageDataset, fit_bottleneck
from diffusers_lasers.training.data.image_flags import add_data_flags, check_held_out_images, open_images
from diffusers_lasers.training.dictionary.retrofit import collect_latents
from diffusers_lasers.training.run.judgement import Judgement
from diffusers_lasers.training.run.run_flags import add_hub_flags
from diffusers_lasers.training.run.run_folder import check_output_folder
from diffusers_lasers.utils import (
    CommandParser,
    create_repository,
    hide_token,
    push_folder,
    recorded_arguments,
    write_json,
    write_model_card,
)


def parse_args(input_args=None):
    parser = CommandParser(description=__doc__)
    add = parser.add_argument
    add("--autoencoder", required=True, help="Folder (or Hub name) of an autoencoder of diffusers, or of a pipeline.")
    add("--subfolder", help="Where it is in a pipeline's folder, e.g. vae.")
    add_data_flags(parser, max_validation_samples=64)
    add("--resolution", type=int, default=256, help="Side of the square crops.")
    add("--crops_per_image", type=int, help="Default: 1, or 32 of the bundled photographs.")
    add("--batch_size", type=int, default=16, help="Images that the autoencoder reads at a time.")
    add(
        "--bottleneck",
        default="dictionary",
        choices=["dictionary", "vq", "residual_vq", "fsq", "scalar"],
        help="scalar: uniform quantisation, of each channel or, with --transform klt, of principal axes.",
    )
    add("--num_symbols", type=int, default=1024, help="Atoms, or codewords of each stage.")
    add("--sparsity", type=int, default=2, help="Atoms a site.")
    add("--patch_size", type=int, default=1, help="Side of a site, in latent positions.")
    add("--coefficient_bits", type=int, default=6, help="Of the dictionary; 0: floats.")
    add("--coefficient_scaling", default="depth", choices=["depth", "shared"])
    add("--pursuit", default="omp", choices=["omp", "ols", "iht", "fista"])
    add("--depth", type=int, default=4, help="Stages of residual VQ.")
    add("--beam_size", type=int, default=8, help="Of residual VQ.")
    add("--fsq_levels", type=int, nargs="+", default=[5] * 8)
    add("--fsq_steps", type=int, default=3000, help="Steps that FSQ's projections learn.")
    add("--bits", type=int, default=4, help="Of a value of scalar quantisation.")
    add("--transform", choices=["klt"])
    add("--step", type=float, help="One step for all values of scalar quantisation; its rate is then its entropy.")
    add(
        "--normalize", default="mean", choices=["mean", "channel", "none"], help="What is taken out of channels first."
    )
    add("--passes", type=int, default=3, help="Passes over the latents, of the dictionary.")
    add("--seed", type=int, default=0)
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    add("--output_dir", default="latent-bottleneck")
    add_hub_flags(parser)
    args = parser.parse_args(input_args)
    for name in (
        "resolution",
        "batch_size",
        "passes",
        "max_train_samples",
        "max_validation_samples",
        "crops_per_image",
    ):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            parser.error(f"--{name} must be at least 1, got {getattr(args, name)}")
    return args


def build_bottleneck(args, channels):
    """The bottleneck that the arguments describe, and the arguments of its `fit`."""
    shared = {"latent_channels": channels, "patch_size": args.patch_size}
    if args.bottleneck == "dictionary":
        bottleneck = DictionaryBottleneck(
            num_atoms=args.num_symbols,
            sparsity=args.sparsity,
            coefficient_bits=args.coefficient_bits or None,
            coefficient_scaling=args.coefficient_scaling,
            pursuit=args.pursuit,
            **shared,
        )
        return bottleneck, {"passes": args.passes, "seed": args.seed}
    if args.bottleneck == "vq":
        bottleneck = VectorQuantizerBottleneck(num_codewords=args.num_symbols, **shared)
    elif args.bottleneck == "residual_vq":
        bottleneck = ResidualVQBottleneck(
            num_codewords=args.num_symbols, depth=args.depth, beam_size=args.beam_size, **shared
        )
    elif args.bottleneck == "fsq":
        bottleneck = FSQBottleneck(levels=tuple(args.fsq_levels), **shared)
        return bottleneck, {"steps": args.fsq_steps, "seed": args.seed}
    else:
        bottleneck = ScalarQuantizerBottleneck(bits=args.bits, transform=args.transform, step=args.step, **shared)
    return bottleneck, {"seed": args.seed}


@torch.no_grad()
def judge(autoencoder, bottleneck, data, args):
    """What the bottleneck loses of held-out images, beside the autoencoder alone, and what its code costs."""
    rate, nmse, psnr = CodeRate(bottleneck), LatentNMSE(bottleneck.config.latent_channels), PSNR()
    rate, nmse, psnr = (metric.to(args.device) for metric in (rate, nmse, psnr))
    for latents in collect_latents(autoencoder, data, args.batch_size):
        latents = latents.to(args.device)
        code = bottleneck.encode(latents)
        decoded = bottleneck.decode(code)
        nmse.update(decoded, latents)
        rate.update(code, num_pixels=len(latents) * data.resolution**2)
        images = [
            decode_latents(autoencoder, z.to(autoencoder.dtype)).float().clamp(-1, 1) for z in (decoded, latents)
        ]
        psnr.update(*images)
    values = rate.compute()
    elements = latents[0].numel() / data.resolution**2  # a pixel
    return {
        "images": len(data),
        "latent_snr_db": float(-10 * torch.log10(nmse.compute())),
        "psnr_db": float(psnr.compute()),
        "bits_per_pixel": float(values["nominal_bits_per_pixel"]),
        "entropy_bits_per_pixel": float(values["entropy_bits_per_pixel"]),
        "entropy_bits_per_element": float(values["entropy_bits_per_pixel"]) / elements,
    }


def card_sections(settings):
    """The model card's account of the fit and its figures, each with its bits."""
    fit = settings["arguments"]
    lines = [
        f"- Autoencoder: {settings['autoencoder']}",
        f"- Data: {settings['data']} ({settings['images']} crops of {fit['resolution']} pixels)",
        f"- Nominal bits a site: {settings['bits_per_site']:.4g}; {settings['seconds']:.0f} s",
    ]
    sections = {"Fit": "\n".join(lines)}
    if settings["validation"]:
        figures = settings["validation"]
        sections["Held-out images"] = (
            "| images | latent SNR dB | PSNR to the autoencoder's own images, dB | bits a pixel, nominal | entropy, bits a pixel | entropy, bits a latent element |\n"
            "| ---: | ---: | ---: | ---: | ---: | ---: |\n"
            f"| {figures['images']} | {figures['latent_snr_db']:.2f} | {figures['psnr_db']:.2f} | {figures['bits_per_pixel']:.3f} | "
            f"{figures['entropy_bits_per_pixel']:.3f} | {figures['entropy_bits_per_element']:.3f} |"
        )
    sections["Command"] = f"```bash\n{settings['command']}\n```"
    return sections


def write_about(folder, bottleneck, settings):
    """settings.json and the card, with what is known of the bottleneck."""
    write_json(folder / "settings.json", settings)
    write_model_card(folder, type(bottleneck).__name__, tags=("latent-compression",), sections=card_sections(settings))


def main(args):
    folder = Path(args.output_dir)
    check_output_folder(folder, args.overwrite_output_dir)

    def crops(images, own, skip_unreadable=False):
        number, resize = args.crops_per_image or (1 if own else 32), args.resolution if own else None
        return ImageDataset(
            images,
            args.resolution,
            resize,
            center_crop=number == 1,
            crops_per_image=number,
            seed=args.seed,
            skip_unreadable=skip_unreadable,
        )

    own = bool(args.train_data_dir or args.dataset_name)
    held_out = check_held_out_images(open_images(args, "validation"), skip_unreadable=args.skip_unreadable)
    if held_out is not None:
        held_out = crops(held_out, own or args.validation_data_dir is not None)
    train = crops(open_images(args), own, args.skip_unreadable)
    autoencoder = AutoModel.from_pretrained(args.autoencoder, subfolder=args.subfolder).to(args.device).eval()
    bottleneck, fit_arguments = build_bottleneck(args, autoencoder.config.latent_channels)
    bottleneck.to(args.device)
    if args.push_to_hub:
        create_repository(folder, args.hub_model_id, args.hub_token)
    start = time.perf_counter()
    fit_bottleneck(autoencoder, train, bottleneck, args.batch_size, args.normalize, **fit_arguments)
    settings = {
        "command": "python " + shlex.join(hide_token(sys.argv, args.hub_token)),
        "arguments": recorded_arguments(args),
        "autoencoder": f"{type(autoencoder).__name__} of {args.autoencoder}",
        "data": args.dataset_name or args.train_data_dir or "photographs bundled with scikit-image",
        "images": len(train),
        "seconds": time.perf_counter() - start,
        "bits_per_site": bottleneck.bits_per_site,
        "validation": None,
        "versions": {"diffusers_lasers": diffusers_lasers.__version__, "torch": torch.__version__},
    }
    bottleneck.save_pretrained(folder)
    write_about(folder, bottleneck, settings)
    print(f"{type(bottleneck).__name__} fitted to {len(train)} crops in {settings['seconds']:.0f} s: {folder}")
    judgement = Judgement(folder, secret=args.hub_token)
    if held_out is not None:
        with judgement.of("the held-out images"):
            figures = judge(autoencoder, bottleneck, held_out, args)
            write_about(folder, bottleneck, {**settings, "validation": figures})
            print(
                f"{figures['images']} held-out crops: latent SNR {figures['latent_snr_db']:.2f} dB, PSNR {figures['psnr_db']:.2f} dB, "
                f"{figures['entropy_bits_per_element']:.3f} bits a latent element, {figures['entropy_bits_per_pixel']:.3f} a pixel (entropy)"
            )
    if args.push_to_hub:
        with judgement.of("the upload"):
            push_folder(folder, args.hub_model_id, args.hub_token, f"{type(bottleneck).__name__}, fitted")
    judgement.end()


def cli(input_args=None):
    """Runs with a command line; what is wrong with it or its files is one sentence."""
    args = parse_args(input_args)
    try:
        main(args)
    except (ValueError, ImportError, OSError) as error:
        raise SystemExit(hide_token([f"fit_latent_bottleneck.py: error: {error}"], args.hub_token)[0]) from error


if __name__ == "__main__":
    cli()
