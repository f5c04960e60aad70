"""Times a whole training step of an autoencoder under several bottlenecks, as a ratio to the step with vector quantisation.

    python utils/benchmark_training_step.py [--batch_size 256] [--rounds 9] [--threads 2] [--profile] [--output_dir DIR]

Same encoder, decoder, images and optimiser; only the bottleneck differs: none, VQ with running means ("vq"), and the dictionary with OMP or OLS
on the compiled kernels ("fused") and on tensor operations ("torch"). A step is forward, mean squared error, backward, Adam and,
for a dictionary, its upkeep; "bcd" is OMP with the dictionary updated by block-coordinate descent instead of Adam. The variants take turns, one step each a round, and the ratio is the median over rounds of
step / VQ step of the same round, so that a drift of the machine's speed cancels. `--profile` also prints the operations on which a step
with OMP spends its time. With `--output_dir` the result is written to training_step.json there.
"""

import argparse
import statistics
import time
from pathlib import Path

import torch
import torch.nn.functional as F

from diffusers_lasers import AutoencoderDL
from diffusers_lasers.functional import set_backend
from diffusers_lasers.training import BlockCoordinateUpdate, DictionaryUpkeep
from diffusers_lasers.utils import write_json


# name -> bottleneck, its arguments beside the number of atoms, backend
VARIANTS = {
    "vq": ("vq", {}, "auto"),
    "none": ("none", {}, "auto"),
    "omp, fused": ("dictionary", {}, "fused"),
    "ols, fused": ("dictionary", {"pursuit": "ols"}, "fused"),
    "omp, torch": ("dictionary", {}, "torch"),
    "bcd": ("dictionary", {}, "auto"),
}


class Variant:
    """A model with its optimiser, that takes one step at a time."""

    def __init__(self, name: str, args: argparse.Namespace, images: torch.Tensor):
        kind, config, self.backend = VARIANTS[name]
        if kind == "dictionary":
            config = {"num_atoms": args.atoms, "sparsity": args.sparsity, **config}
        elif kind == "vq":
            config = {"num_codewords": args.atoms}
        torch.manual_seed(0)
        self.images = images
        self.model = AutoencoderDL(bottleneck_type=kind, bottleneck_config=config).train()
        with torch.no_grad():
            self.model.bottleneck.initialize(self.model.encode(images).latents)
        update = BlockCoordinateUpdate(self.model.bottleneck) if name == "bcd" else None
        trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.Adam(trained, lr=1e-4)
        self.upkeep = DictionaryUpkeep(self.model.bottleneck, self.optimizer, block_coordinate=update)

    def step(self) -> None:
        set_backend(self.backend)
        output = self.model(self.images)
        (F.mse_loss(output.sample, self.images) + output.loss).backward()
        self.upkeep.before_step()
        self.optimizer.step()
        self.upkeep.after_step(output.code, output.latents)
        self.optimizer.zero_grad()


def measure(args: argparse.Namespace) -> dict:
    """Seconds of every step, by variant."""
    images = torch.rand(args.batch_size, 3, args.resolution, args.resolution) * 2 - 1
    variants = {name: Variant(name, args, images) for name in args.variants}
    for variant in variants.values():
        variant.step()
    seconds = {name: [] for name in variants}
    for _ in range(args.rounds):
        for name, variant in variants.items():
            start = time.perf_counter()
            variant.step()
            seconds[name].append(time.perf_counter() - start)
    if args.profile:
        with torch.profiler.profile() as profile:
            variants["omp, fused"].step()
        print(profile.key_averages().table(sort_by="self_cpu_time_total", row_limit=20, max_name_column_width=40))
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch_size", type=int, default=256)
    parser.add_argument(
        "--resolution", type=int, default=32, help="side of the images; the latents have a quarter of it"
    )
    parser.add_argument("--atoms", type=int, default=512, help="atoms, or codewords")
    parser.add_argument("--sparsity", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--variants", nargs="+", choices=list(VARIANTS), default=list(VARIANTS), help="vq is always measured"
    )
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--output_dir", type=Path)
    args = parser.parse_args()
    args.variants = ["vq", *(name for name in args.variants if name != "vq")]
    if args.profile and "omp, fused" not in args.variants:
        parser.error("--profile needs the variant 'omp, fused'")
    torch.set_num_threads(args.threads)
    seconds = measure(args)
    rows = {
        name: {
            "milliseconds": 1e3 * statistics.median(times),
            "ratio_to_vq": statistics.median(a / b for a, b in zip(times, seconds["vq"])),
        }
        for name, times in seconds.items()
    }
    print(f"| bottleneck | step, ms | ratio to VQ |\n| --- | ---: | ---: |   (medians of {args.rounds} rounds)")
    for name, row in rows.items():
        print(f"| {name} | {row['milliseconds']:.1f} | {row['ratio_to_vq']:.3f} |")
    if args.output_dir:
        args.output_dir.mkdir(parents=True, exist_ok=True)
        settings = {name: value for name, value in vars(args).items() if name != "output_dir"}
        write_json(args.output_dir / "training_step.json", {"settings": settings, "rows": rows})


if __name__ == "__main__":
    main()
