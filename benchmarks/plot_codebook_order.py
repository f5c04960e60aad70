"""Compares orders of a patch codec's sub-codebooks: Fig. 3 of Scribano et al. (2023) as a picture and as numbers.

    python benchmarks/plot_codebook_order.py CODEC IMAGE [--shift 1] [--output order.png] [--crop 256]

Each order sorts all sub-codebooks. The image is coded, `shift` is added to every index (the last ones stay), and the
result is decoded. Without an order that is noise; a good order leaves the image. For each order the table has the PSNR
to the unshifted reconstruction and the three measures of `score_order`, as means over the sub-codebooks. "random"
stands for the order in which k-means leaves its means, which is that of the random patches that it started from.
"""

import statistics
from pathlib import Path

import torch

from diffusers_lasers import ModelBasedVQCodec
from diffusers_lasers.commands.image_io import read_image
from diffusers_lasers.functional.images.psnr import image_psnr
from diffusers_lasers.functional.quantisers import ORDERS, score_order
from diffusers_lasers.utils.command_line import CommandParser
from diffusers_lasers.utils.files import save_image
from diffusers_lasers.utils.tables import markdown_table
from diffusers_lasers.visualization import image_grid


HEADERS = ["order", "PSNR to the unshifted, dB", "neighbour distance ↓", "Spearman ↑", "violations of eqs 18–19 ↓"]


def main() -> None:
    parser = CommandParser(description=__doc__)
    add = parser.add_argument
    add("codec", help="Folder of a fitted ModelBasedVQCodec.")
    add("image", help="Image file.")
    add("--shift", type=int, default=1, help="What is added to every index.")
    add("--orders", nargs="+", choices=ORDERS, default=["random", "norm", "pca", "spectral", "salesman"])
    add("--crop", type=int, default=256, help="Side of the centre crop in the picture.")
    add("--output", type=Path, default=Path("codebook_order.png"))
    args = parser.parse_args()
    codec = ModelBasedVQCodec.from_pretrained(args.codec)
    pixels = read_image(args.image)
    last = 2 ** torch.tensor(codec.slot_bits).view(1, -1, 1, 1) - 1
    original = codec(pixels).sample.clamp(-1, 1)
    samples, rows = [original], []
    for order in args.orders:
        codec.reorder(order, torch.Generator().manual_seed(0))
        codes = codec.encode(pixels).codes
        shifted = codec.decode((codes + args.shift).clamp(min=torch.zeros_like(last), max=last), pixels.shape[-2:])
        samples.append(shifted.sample.clamp(-1, 1))
        scores = [score_order(book) for books in codec.codebooks.values() for book in books]
        means = [f"{statistics.fmean(score[entry] for score in scores):.3f}" for entry in range(3)]
        rows.append([order, f"{image_psnr(samples[-1], original).item():.2f}", *means])
    print(f"{codec.notation}, {Path(args.image).name}, every index + {args.shift}\n")
    print(markdown_table(HEADERS, rows))
    height, width = (min(side, args.crop) for side in pixels.shape[-2:])
    top, left = (pixels.shape[-2] - height) // 2, (pixels.shape[-1] - width) // 2
    crops = torch.cat(samples)[..., top : top + height, left : left + width]
    save_image(args.output, image_grid([(", ".join(["unshifted", *args.orders]), crops)], cell=1))


if __name__ == "__main__":
    main()
