r"""Finds how a dictionary code spends its bits best: atoms, atoms a site, bits of a coefficient, and their scales.

    python benchmarks/search_allocation.py --train_data_dir data/train --validation_data_dir data/test --bits 9 18 27

A site of at most S of K atoms with b-bit coefficients costs log₂ M + S·b bits, M the number of supports. For each
budget, S, b and kind of scales the largest dictionary that the budget allows is tried. Only the dictionary is trained:
the networks start from the images in closed form, and the dictionary learns from their latents by online learning. So
an allocation takes seconds, and the PSNR is that of a transform code, on held-out images. The best of each budget are
printed, and all written to OUTPUT_DIR/allocations.json.
"""

import bisect
import itertools
import json
from pathlib import Path

import torch
from tqdm.auto import tqdm

from diffusers_lasers import AutoencoderDL
from diffusers_lasers.functional.images.psnr import image_psnr
from diffusers_lasers.functional.rates import support_bits
from diffusers_lasers.training import ImageDataset, load_image_dataset
from diffusers_lasers.utils.command_line import CommandParser, check_at_least
from diffusers_lasers.utils.files import write_text
from diffusers_lasers.utils.tables import figure_table


COLUMNS = [
    ("target", "budget", "{:g}"),
    ("bits", "bits a site", "{:.2f}"),
    ("num_atoms", "K", "{:d}"),
    ("sparsity", "S", "{:d}"),
    ("coefficient_bits", "b", "{:d}"),
    ("psnr", "PSNR ↑ dB", "{:.2f}"),
]


def allocations(target: float, largest: int, sparsest: int) -> list[dict]:
    """For all S, b and scales the allocation with as many atoms as `target` bits a site allow, at most `largest`."""
    found = []
    for sparsity in range(1, sparsest + 1):
        scalings = ("depth", "shared") if sparsity > 1 else ("shared",)  # which are the same for one atom
        for bits, scaling in itertools.product(range(2, 11), scalings):

            def cost(atoms: int) -> float:
                return support_bits(atoms, sparsity, ordered=scaling == "depth") + sparsity * bits

            sizes = range(max(8, 2 * sparsity), largest + 1)
            atoms = sizes.start + bisect.bisect_right(sizes, target, key=cost) - 1
            if atoms < sizes.start or cost(atoms) < 0.95 * target:
                continue
            found.append(
                {
                    **{"target": target, "num_atoms": atoms, "sparsity": sparsity, "coefficient_bits": bits},
                    **{"coefficient_scaling": scaling, "bits": cost(atoms)},
                }
            )
    return found


def images(place: str, resolution: int, count: int, column: str, seed: int) -> torch.Tensor:
    """Up to `count` images `(B, 3, H, W)`, spread over the data."""
    source = load_image_dataset(train_data_dir=place, split="train", image_column=column)
    dataset = ImageDataset(source, resolution, resize=resolution, center_crop=True, seed=seed)
    count = min(count, len(dataset))
    return torch.stack([dataset[index * len(dataset) // count]["pixel_values"] for index in range(count)])


@torch.no_grad()
def judge(model: AutoencoderDL, latents: torch.Tensor, held_out: torch.Tensor, allocation: dict, args) -> float:
    """PSNR of held-out images with a dictionary of this allocation, learned from the latents."""
    names = ("num_atoms", "sparsity", "coefficient_bits", "coefficient_scaling")
    config = {name: allocation[name] for name in names}
    torch.manual_seed(args.seed)
    bottleneck = type(model.bottleneck)(latent_channels=model.config.latent_channels, **config)
    bottleneck.initialize(latents, torch.Generator().manual_seed(args.seed))
    bottleneck.fit(latents, passes=args.passes, progress=False, seed=args.seed)
    found = []
    for batch in held_out.split(args.batch_size):
        coded = bottleneck.decode(bottleneck.encode(model.encode(batch).latents))
        found.append(image_psnr(model.decode(coded, force_not_quantize=True).sample.clamp(-1, 1), batch))
    return float(torch.cat(found).double().mean())


def main() -> None:
    parser = CommandParser(description=__doc__)
    add = parser.add_argument
    add("--train_data_dir", required=True, help="Images to learn from.")
    add("--validation_data_dir", required=True, help="Images to judge on.")
    add("--image_column", default="image", help="Column of the images in parquet files.")
    add("--resolution", type=int, default=32)
    add("--latent_channels", type=int, default=16)
    add("--bits", type=float, nargs="+", default=[9, 18, 27, 45, 85], help="Budgets, bits a site.")
    add("--max_atoms", type=int, default=4096)
    add("--max_sparsity", type=int, default=16)
    add("--images", type=int, default=2000, help="Images to learn from, and at most a quarter as many to judge on.")
    add("--passes", type=int, default=2, help="Passes of online dictionary learning.")
    add("--batch_size", type=int, default=100)
    add("--seed", type=int, default=0)
    add("--output_dir", type=Path, default=Path("outputs/allocations"))
    parser.check(check_at_least, 1, "resolution", "latent_channels", "max_atoms", "max_sparsity", "passes")
    parser.check(check_at_least, 4, "images")
    args = parser.parse_args()
    train = images(args.train_data_dir, args.resolution, args.images, args.image_column, args.seed)
    held_out = images(args.validation_data_dir, args.resolution, args.images // 4, args.image_column, args.seed)
    model = AutoencoderDL.from_preset("corrected", latent_channels=args.latent_channels, sample_size=args.resolution)
    model.eval().initialize(train, torch.Generator().manual_seed(args.seed))
    with torch.no_grad():
        latents = torch.cat([model.encode(batch).latents for batch in train.split(args.batch_size)])
    candidates = [item for target in args.bits for item in allocations(target, args.max_atoms, args.max_sparsity)]
    for item in tqdm(candidates, desc="Allocations"):
        item["psnr"] = judge(model, latents, held_out, item, args)
        args.output_dir.mkdir(parents=True, exist_ok=True)
        write_text(args.output_dir / "allocations.json", json.dumps(candidates, indent=1))
    for target in args.bits:
        of_target = [item for item in candidates if item["target"] == target]
        best = sorted(of_target, key=lambda item: -item["psnr"])[:5]
        print(figure_table("scales", COLUMNS, [(item["coefficient_scaling"], item) for item in best]), end="\n\n")
    print(f"All {len(candidates)} allocations: {args.output_dir / 'allocations.json'}")


if __name__ == "__main__":
    main()
