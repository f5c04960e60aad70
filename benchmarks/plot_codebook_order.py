"""Judges orders of a patch codec's sub-codebooks: Fig. 3 of Scribano et al. (2023) as a picture, and as numbers.

    python benchmarks/plot_codebook_order.py CODEC IMAGE [--shift 1] [--output order.png] [--crop 256]

Each order sorts all sub-codebooks; the image is coded, `shift` is added to every index (the last ones stay), and the result is decoded. Without an
order that is noise; a good order leaves the image. For each order the table has the PSNR to the unshifted reconstruction and, means over the
sub-codebooks, the three measures of `score_order`. "random" stands for the order in which k-means happens to leave its means, which is that of
the random patches that it started from.
"""

import statistics
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw

from diffusers_lasers import ModelBasedVQCodec
from diffusers_lasers.functional import ORDERS, score_order
from diffusers_lasers.functional.images.psnr import image_psnr
from diffusers_lasers.utils import CommandParser, save_image
from diffusers_lasers.utils.image_sources import to_rgb


def main() -> None:
    parser = CommandParser(description=__doc__)
    parser.add_argument("codec")
    parser.add_argument("image")
    parser.add_argument("--shift", type=int, default=1)
    parser.add_argument(
        "--orders", nargs="+", choices=ORDERS, default=["random", "norm", "pca", "spectral", "salesman"]
    )
    parser.add_argument("--crop", type=int, default=256, help="Side of the centre crop in the picture.")
    parser.add_argument("--output", type=Path, default=Path("codebook_order.png"))
    args = parser.parse_args()
    codec = ModelBasedVQCodec.from_pretrained(args.codec)
    pixels = torch.from_numpy(np.array(to_rgb(args.image, args.image))).permute(2, 0, 1)[None] / 127.5 - 1
    last = 2 ** torch.tensor(codec.slot_bits).view(1, -1, 1, 1) - 1
    original = codec(pixels).sample.clamp(-1, 1)
    print(f"{codec.notation}, {Path(args.image).name}, every index + {args.shift}\n")
    print("| order | PSNR to the unshifted, dB | neighbour distance ↓ | Spearman ↑ | violations of eqs 18–19 ↓ |")
    print("| --- |" + " ---: |" * 4)
    pictures = [("unshifted", original)]
    for order in args.orders:
        codec.reorder(order, torch.Generator().manual_seed(0))
        codes = codec.encode(pixels).codes
        shifted = codec.decode((codes + args.shift).clamp(min=torch.zeros_like(last), max=last), pixels.shape[-2:])
        sample = shifted.sample.clamp(-1, 1)
        psnr = image_psnr(sample, original).item()
        books = [book for channel in ("y", "cb", "cr") for book in getattr(codec, f"codebooks_{channel}")]
        scores = [score_order(book) for book in books]
        means = [statistics.fmean(score[entry] for score in scores) for entry in range(3)]
        print(f"| {order} | {psnr:.2f} | {means[0]:.3f} | {means[1]:.3f} | {means[2]:.3f} |")
        pictures.append((order, sample))
    height, width = (min(side, args.crop) for side in pixels.shape[-2:])
    top, left = (pixels.shape[-2] - height) // 2, (pixels.shape[-1] - width) // 2
    canvas = Image.new("RGB", (len(pictures) * (width + 4) - 4, height + 16), "white")
    draw = ImageDraw.Draw(canvas)
    for number, (label, sample) in enumerate(pictures):
        piece = sample[0, :, top : top + height, left : left + width].add(1).mul(127.5).round().to(torch.uint8)
        canvas.paste(Image.fromarray(piece.permute(1, 2, 0).contiguous().numpy()), (number * (width + 4), 16))
        draw.text((number * (width + 4) + 2, 2), label, fill="black")
    save_image(args.output, canvas)


if __name__ == "__main__":
    main()
