#!/usr/bin/env python
"""Learns a bottleneck for the latents of a trained autoencoder that does not change (LASERS, 2024, section 12.3).

    python examples/fit_latent_bottleneck.py --autoencoder stable-diffusion/ --subfolder vae --train_data_dir photos/ \\
        --output_dir dictionary
    python examples/fit_latent_bottleneck.py --autoencoder vae/ --train_data_dir photos/ --bottleneck residual_vq \\
        --num_symbols 256 --depth 4 --output_dir rvq

OUTPUT_DIR gets the bottleneck, the prior of its codes in prior/, settings.json and a model card.
`LatentDLPipeline.from_pretrained(stable_diffusion, bottleneck=...)` takes the bottleneck and finds the prior. With
--validation_data_dir the card has its figures on held-out images, with the bits that they cost; the bottleneck is
saved before it is judged. Without --train_data_dir or --dataset_name it is
fitted to photographs that scikit-image installs.
"""

import time
from pathlib import Path

import torch
from diffusers import AutoModel

from diffusers_lasers import (
    DictionaryBottleneck,
    FSQBottleneck,
    ResidualVQBottleneck,
    ScalarQuantizerBottleneck,
    VectorQuantizerBottleneck,
)
from diffusers_lasers.commands.latent_figures import LatentFigures
from diffusers_lasers.commands.scripts import add_device_flag, run_script
from diffusers_lasers.metrics import PSNR
from diffusers_lasers.models.autoencoders import decode_latents
from diffusers_lasers.models.autoencoders.diffusers_latents import latent_channels
from diffusers_lasers.models.priors import FactorizedPrior
from diffusers_lasers.training import ImageDataset
from diffusers_lasers.training.data.image_flags import add_data_flags, check_held_out_images, open_images
from diffusers_lasers.training.dictionaries.retrofit import collect_latents, fit_to_latents
from diffusers_lasers.training.run.cards import run_record
from diffusers_lasers.training.run.judgement import Judgement
from diffusers_lasers.training.run.run_flags import add_hub_flags
from diffusers_lasers.training.run.run_folder import check_output_folder
from diffusers_lasers.utils.command_line import CommandParser, check_at_least
from diffusers_lasers.utils.files import write_json
from diffusers_lasers.utils.hub import create_repository, push_folder, write_model_card
from diffusers_lasers.utils.tables import figure_table


PRIOR_SITES = 2**18  # whose codes a prior is fitted to, about
# Key in settings.json, heading, format.
COLUMNS = [
    ("latent_snr_db", "latent SNR dB", "{:.2f}"),
    ("psnr_db", "PSNR to the autoencoder's own images, dB", "{:.2f}"),
    ("bits_per_pixel", "bits a pixel, nominal", "{:.3f}"),
    ("entropy_bits_per_pixel", "entropy, bits a pixel", "{:.3f}"),
    ("entropy_bits_per_element", "entropy, bits a latent element", "{:.3f}"),
    ("cross_entropy_bits_per_element", "cross-entropy, bits a latent element", "{:.3f}"),
]


def parse_args(input_args=None):
    parser = CommandParser(description=__doc__)
    add = parser.add_argument
    add("--autoencoder", required=True, help="Folder (or Hub name) of an autoencoder of diffusers, or of a pipeline.")
    add("--subfolder", help="Folder of the autoencoder in a pipeline, e.g. vae.")
    add_data_flags(parser, max_validation_samples=64)
    add("--resolution", type=int, default=256, help="Side of the square crops.")
    add("--crops_per_image", type=int, help="Default: 1, or 32 of the bundled photographs.")
    add("--batch_size", type=int, default=16, help="Images that the autoencoder reads at a time.")
    add(
        "--bottleneck",
        default="dictionary",
        choices=["dictionary", "vq", "residual_vq", "fsq", "scalar"],
        help="scalar: uniform quantisation of each channel, or with --transform klt of each principal axis.",
    )
    add("--num_symbols", type=int, default=1024, help="Atoms, or codewords of each stage.")
    add("--sparsity", type=int, default=2, help="Atoms a site of the dictionary.")
    add("--patch_size", type=int, default=1, help="Side of a site, in latent positions.")
    add("--coefficient_bits", type=int, default=6, help="Bits of a coefficient of the dictionary; 0: floats.")
    add("--coefficient_scaling", default="depth", choices=["depth", "shared"], help="A scale a depth, or one for all.")
    add("--pursuit", default="omp", choices=["omp", "ols", "iht", "fista"])
    add("--depth", type=int, default=4, help="Stages of residual VQ.")
    add("--beam_size", type=int, default=8, help="Partial codes that coding by residual VQ keeps.")
    add("--fsq_levels", type=int, nargs="+", default=[5] * 8, help="Levels of each value of FSQ.")
    add("--fsq_steps", type=int, default=3000, help="Training steps of FSQ's projections.")
    add("--bits", type=int, default=4, help="Bits of a value of scalar quantisation.")
    add("--transform", choices=["klt"], help="Quantise principal axes instead of channels.")
    add("--step", type=float, help="One step for all values of scalar quantisation; its rate is then its entropy.")
    add("--normalize", default="mean", choices=["mean", "channel", "none"], help="How channels are normalised first.")
    add("--passes", type=int, default=3, help="Passes of dictionary learning over the latents.")
    add("--seed", type=int, default=0)
    add_device_flag(parser)
    add("--output_dir", default="latent-bottleneck")
    add_hub_flags(parser)
    parser.check(check_at_least, 1, "resolution", "batch_size", "passes", "crops_per_image")
    parser.check(check_at_least, 1, "max_train_samples", "max_validation_samples")
    return parser.parse_args(input_args)


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
def fit_prior(bottleneck, latents, args):
    """The prior of the bottleneck's codes of the first training latents."""
    codes, sites = [], 0
    for batch in latents:
        codes.append(bottleneck.encode(batch.to(args.device)))
        sites += codes[-1].num_sites
        if sites >= PRIOR_SITES:
            break
    return FactorizedPrior.from_coder(bottleneck).fit(codes)


@torch.no_grad()
def judge(autoencoder, bottleneck, prior, data, args):
    """What the bottleneck loses of held-out images, beside the autoencoder alone, and what its code costs."""
    losses, psnr, bits = LatentFigures(bottleneck, args.device), PSNR().to(args.device), []
    for latents in collect_latents(autoencoder, data, args.batch_size):
        latents = latents.to(args.device)
        code, decoded = losses.update(latents, (data.resolution, data.resolution))
        if prior is not None:
            bits.append(prior.bits(code))
        parts = (decode_latents(autoencoder, z.to(autoencoder.dtype)) for z in (decoded, latents))
        psnr.update(*(images.float().clamp(-1, 1) for images in parts))
    values = losses.compute()
    elements = latents[0].numel() / data.resolution**2  # a pixel
    return {
        "images": len(data),
        "latent_snr_db": values["latent_snr_db"],
        "psnr_db": float(psnr.compute()),
        "bits_per_pixel": values["nominal_bits_per_pixel"],
        "entropy_bits_per_pixel": values["entropy_bits_per_pixel"],
        "entropy_bits_per_element": values["entropy_bits_per_pixel"] / elements,
        "cross_entropy_bits_per_element": float(torch.cat(bits).mean()) / latents[0].numel() if bits else None,
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
    if figures := settings["validation"]:
        sections["Held-out images"] = figure_table("images", COLUMNS, [(str(figures["images"]), figures)])
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
    bottleneck, fit_arguments = build_bottleneck(args, (latent_channels(autoencoder) or [0])[-1])
    bottleneck.to(args.device)
    if args.push_to_hub:
        create_repository(folder, args.hub_model_id, args.hub_token)
    start = time.perf_counter()
    latents = collect_latents(autoencoder, train, args.batch_size)
    fit_to_latents(bottleneck, latents, args.normalize, **fit_arguments)
    settings = run_record(
        args,
        validation=None,
        autoencoder=f"{type(autoencoder).__name__} of {args.autoencoder}",
        images=len(train),
        seconds=time.perf_counter() - start,
        bits_per_site=bottleneck.bits_per_site,
    )
    bottleneck.save_pretrained(folder)
    write_about(folder, bottleneck, settings)
    print(f"{type(bottleneck).__name__} fitted to {len(train)} crops in {settings['seconds']:.0f} s: {folder}")
    judgement, prior = Judgement(folder, secret=args.hub_token), None
    with judgement.of("the prior of its codes"):
        prior = fit_prior(bottleneck, latents, args)
        prior.save_pretrained(folder / "prior")
    if held_out is not None:
        with judgement.of("the held-out images"):
            figures = judge(autoencoder, bottleneck, prior, held_out, args)
            write_about(folder, bottleneck, {**settings, "validation": figures})
            quality = f"latent SNR {figures['latent_snr_db']:.2f} dB, PSNR {figures['psnr_db']:.2f} dB"
            bits = f"entropy {figures['entropy_bits_per_element']:.3f} bits a latent element"
            if prior is not None:
                bits += f", {figures['cross_entropy_bits_per_element']:.3f} by the prior"
            print(f"{figures['images']} held-out crops: {quality}, {bits}")
    if args.push_to_hub:
        with judgement.of("the upload"):
            push_folder(folder, args.hub_model_id, args.hub_token, f"{type(bottleneck).__name__}, fitted")
    judgement.end()


def cli(input_args=None):
    """Runs with a command line; what is wrong with it or its files is one sentence."""
    run_script(__file__, parse_args, main, input_args)


if __name__ == "__main__":
    cli()
