#!/usr/bin/env python
"""Fits a patch codec (VQ, PQ, OPQ or RQ of YCbCr patches) to images, and saves it for `from_pretrained`.

    python examples/fit_codec.py --train_data_dir photos/ --notation "OPQ-{32-8-8}" --output_dir opq
    python examples/fit_codec.py --train_data_dir photos/ --notation "RQ-{32-8-8}" --validation_data_dir more_photos/ \\
        --output_dir rq

OUTPUT_DIR gets the codec, a prior of its codes in prior/, settings.json (command, data, seconds, peak memory) and a
model card with the rate. With --validation_data_dir the card also has the PSNR of held-out images, and
reconstructions.png shows some. The codec is saved before it is judged. Without --train_data_dir or --dataset_name the
codec is fitted to photographs that scikit-image installs, and judged on two others of them.
"""

import time
from pathlib import Path

import numpy as np
import torch

from diffusers_lasers import ModelBasedVQCodec
from diffusers_lasers.commands.image_io import Pictures, to_tensor
from diffusers_lasers.commands.scripts import run_script
from diffusers_lasers.commands.timing import peak_memory_gib
from diffusers_lasers.functional.images.psnr import image_psnr
from diffusers_lasers.models.priors.image_codes import fit_prior
from diffusers_lasers.training.data.image_flags import add_data_flags, check_held_out_images, open_images
from diffusers_lasers.training.run.cards import run_record
from diffusers_lasers.training.run.judgement import Judgement
from diffusers_lasers.training.run.run_flags import add_hub_flags
from diffusers_lasers.training.run.run_folder import check_output_folder
from diffusers_lasers.utils.command_line import CommandParser, check_at_least
from diffusers_lasers.utils.files import save_image, write_json
from diffusers_lasers.utils.hub import create_repository, push_folder, write_model_card
from diffusers_lasers.utils.tables import markdown_table
from diffusers_lasers.visualization import image_grid


RATES = {"bits_per_pixel": "bits a pixel", "entropy_bits_per_pixel": "entropy, bits a pixel"}


def parse_args(input_args=None):
    parser = CommandParser(description=__doc__)
    add = parser.add_argument
    add("--notation", default="OPQ-{32-8-8}", help="Kind, and bits a patch of Y, Cb and Cr, as in the paper.")
    add("--patch_size", type=int, default=8, help="Side of a patch in pixels.")
    add("--codebook_bits", type=int, default=8, help="Bits of a sub-codebook of PQ, OPQ and RQ.")
    add_data_flags(parser)
    add("--stride", type=int, default=1, help="Pixels from one patch to the next.")
    add("--max_patches", type=int, default=2**19, help="Patches that are drawn at random, at most.")
    add("--no_flip", action="store_true", help="Without patches of the images turned upside down.")
    add("--iterations", type=int, default=100, help="Iterations of k-means.")
    add("--seed", type=int, default=0)
    add("--threads", type=int, help="Threads of faiss. Default: all.")
    add("--output_dir", default="codec")
    add_hub_flags(parser)
    parser.check(check_at_least, 1, "stride", "max_patches", "iterations", "threads")
    parser.check(check_at_least, 1, "max_train_samples", "max_validation_samples")
    return parser.parse_args(input_args)


def judge(codec, images):
    """Mean PSNR and rate of images, and a picture of the first four beside their reconstructions."""
    psnr, bits, entropies, shown = [], [], [], []
    for image in images:
        pixels = to_tensor(image)
        output = codec.encode(pixels)
        sample = codec.decode(output.codes, output.image_size).sample.float().clamp(-1, 1)
        psnr.append(image_psnr(sample.double(), pixels.double()).item())
        bits.append(codec.bits_per_pixel(*output.image_size))
        entropies.append(codec.entropy_bits_per_pixel(output.codes, output.image_size))
        if len(shown) < 4:
            height, width = (min(side, 384) for side in output.image_size)
            top, left = ((side - taken) // 2 for side, taken in zip(output.image_size, (height, width)))
            pair = [view[..., top : top + height, left : left + width] for view in (pixels, sample)]
            shown.append(("", torch.cat(pair)))
    figures = {
        "images": len(psnr),
        "psnr_db": float(np.mean(psnr)),
        "bits_per_pixel": float(np.mean(bits)),
        "entropy_bits_per_pixel": float(np.mean(entropies)),
    }
    return figures, image_grid(shown, cell=1)


def card_sections(settings):
    """The model card's account of the fit and its figures, each with its bits."""
    fit = settings["arguments"]
    lines = [
        f"- Codec: {settings['notation']}, patches of {fit['patch_size']} × {fit['patch_size']} pixels",
        f"- Rate: {settings['bits_per_pixel']:.4g} bits per pixel (nominal), "
        f"compression 1:{settings['compression_ratio']:.4g}",
        f"- Data: {settings['data']} ({settings['images']} images), stride {fit['stride']}, "
        f"at most {fit['max_patches']} patches",
        f"- Seed {fit['seed']}, {fit['iterations']} iterations of k-means, {settings['seconds']:.0f} s",
    ]
    sections = {"Fit": "\n".join(lines)}
    if figures := settings["validation"]:
        cells = [f"{figures['psnr_db']:.2f}", *(f"{figures[key]:.3f}" for key in RATES)]
        table = markdown_table(["images", "PSNR dB", *RATES.values()], [[str(figures["images"]), *cells]])
        sections["Held-out images"] = f"{table}\n\n![Originals beside their reconstructions](reconstructions.png)"
    sections["Command"] = f"```bash\n{settings['command']}\n```"
    return sections


def write_about(folder, settings):
    """settings.json and the card, with what is known of the codec."""
    write_json(folder / "settings.json", settings)
    tags = ("image-compression", "vector-quantization")
    write_model_card(folder, "ModelBasedVQCodec", tags=tags, sections=card_sections(settings))


def main(args):
    folder = Path(args.output_dir)
    check_output_folder(folder, args.overwrite_output_dir)
    codec = ModelBasedVQCodec.from_notation(
        args.notation, patch_size=args.patch_size, codebook_bits=args.codebook_bits
    )
    held_out = check_held_out_images(open_images(args, "validation"), skip_unreadable=args.skip_unreadable)
    train = open_images(args)
    if args.skip_unreadable:  # each image is read once more; without it, fitting stops at the first that is damaged
        train = check_held_out_images(train, skip_unreadable=True)
    if args.push_to_hub:
        create_repository(folder, args.hub_model_id, args.hub_token)
    start = time.perf_counter()
    codec.fit(
        train,
        stride=args.stride,
        max_patches=args.max_patches,
        flip=not args.no_flip,
        seed=args.seed,
        iterations=args.iterations,
        threads=args.threads,
    )
    seconds, peak = time.perf_counter() - start, peak_memory_gib()
    settings = run_record(
        args,
        validation=None,
        notation=codec.notation,
        images=len(train),
        bits_per_pixel=sum(codec.config.bits) / args.patch_size**2,
        compression_ratio=codec.compression_ratio,
        seconds=seconds,
        peak_memory_gib=peak,
    )
    codec.save_pretrained(folder)
    (folder / "reconstructions.png").unlink(missing_ok=True)  # of a codec that was overwritten
    write_about(folder, settings)
    memory = "" if peak is None else f", peak memory {peak:.2f} GiB"
    print(f"{codec.notation} fitted to {len(train)} images in {seconds:.0f} s{memory}: {folder}")
    judgement = Judgement(folder, secret=args.hub_token)
    with judgement.of("the prior of its codes"):
        prior = fit_prior(codec, Pictures(train))
        prior.save_pretrained(folder / "prior")
    if held_out is not None:
        with judgement.of("the held-out images"):
            figures, picture = judge(codec, held_out)
            write_about(folder, {**settings, "validation": figures})
            at = f"{figures['psnr_db']:.2f} dB at {figures['bits_per_pixel']:.3f} bits a pixel"
            print(f"{figures['images']} held-out images: {at}")
            save_image(folder / "reconstructions.png", picture)
    if args.push_to_hub:
        with judgement.of("the upload"):
            push_folder(folder, args.hub_model_id, args.hub_token, f"{codec.notation}, fitted")
    judgement.end()


def cli(input_args=None):
    """Runs with a command line; what is wrong with it or its files is one sentence."""
    run_script(__file__, parse_args, main, input_args)


if __name__ == "__main__":
    cli()
