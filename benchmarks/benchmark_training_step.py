"""Times a training step of an autoencoder under several bottlenecks, as a ratio to the step with vector quantisation.

    python benchmarks/benchmark_training_step.py [--batch_size 256] [--rounds 9] [--device cpu] [--profile]

Encoder, decoder, images and optimiser are the same; only the bottleneck differs: none, VQ with running means ("vq"),
and the dictionary with OMP or OLS on the compiled kernels ("fused") or in tensor operations ("torch"). "bcd" is OMP
with the dictionary updated by block-coordinate descent instead of Adam. "vq, light" is VQ in the networks of the paper;
all others have those of `--backbone`, at the same widths. A step is forward, mean squared error, backward, Adam and,
for a dictionary, its upkeep. "saved" is what the forward pass keeps for the backward pass.

The variants take turns, one step each a round. The ratio is the median over rounds of step / VQ step of the same
round, so that a drift of the machine's speed cancels. A step is timed from an idle device to an idle device. The
kernels run on the CPU only. `--profile` also prints the operations on which a step with OMP spends its time. With
`--output_dir` the result is written to training_step.json there.
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
from diffusers_lasers.utils.command_line import CommandParser, check_at_least
from diffusers_lasers.utils.files import write_json
from diffusers_lasers.utils.tables import figure_table


# name -> bottleneck, its arguments beside the number of atoms, backend
VARIANTS = {
    "vq": ("vq", {}, "auto"),
    "vq, light": ("vq", {}, "auto"),
    "none": ("none", {}, "auto"),
    "omp, fused": ("dictionary", {}, "fused"),
    "ols, fused": ("dictionary", {"pursuit": "ols"}, "fused"),
    "omp, torch": ("dictionary", {}, "torch"),
    "ols, torch": ("dictionary", {"pursuit": "ols"}, "torch"),
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
        preset = "paper" if name == "vq, light" else "corrected" if args.backbone == "residual" else "paper"
        self.model = AutoencoderDL.from_preset(preset, bottleneck_type=kind, bottleneck_config=config)
        self.model.to(images.device).train()
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

    def saved_bytes(self) -> int:
        """Bytes that a forward pass keeps for the backward pass, without the parameters."""
        parameters = {parameter.untyped_storage().data_ptr() for parameter in self.model.parameters()}
        kept = {}

        def keep(tensor: torch.Tensor) -> torch.Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in parameters:
                kept[storage.data_ptr()] = storage.nbytes()
            return tensor

        set_backend(self.backend)
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            output = self.model(self.images)
            loss = F.mse_loss(output.sample, self.images) + output.loss
        del loss
        return sum(kept.values())


def measure(args: argparse.Namespace) -> tuple[dict, dict]:
    """Seconds of every step and bytes saved for the backward pass, by variant."""
    images = (torch.rand(args.batch_size, 3, args.resolution, args.resolution) * 2 - 1).to(args.device)
    wait = torch.cuda.synchronize if images.is_cuda else lambda: None
    variants = {name: Variant(name, args, images) for name in args.variants}
    for variant in variants.values():
        for _ in range(3 if images.is_cuda else 1):
            variant.step()
    seconds = {name: [] for name in variants}
    for _ in range(args.rounds):
        for name, variant in variants.items():
            wait()
            start = time.perf_counter()
            variant.step()
            wait()
            seconds[name].append(time.perf_counter() - start)
    if args.profile:
        with torch.profiler.profile() as profile:
            variants[args.profiled].step()
            wait()
        sort = "self_cuda_time_total" if images.is_cuda else "self_cpu_time_total"
        print(profile.key_averages().table(sort_by=sort, row_limit=20, max_name_column_width=40))
    return seconds, {name: variant.saved_bytes() for name, variant in variants.items()}


def main() -> None:
    parser = CommandParser(description=__doc__)
    add = parser.add_argument
    add("--batch_size", type=int, default=256)
    add("--resolution", type=int, default=32, help="Side of the images; the latents have a quarter of it.")
    add("--atoms", type=int, default=512, help="Atoms, or codewords.")
    add("--sparsity", type=int, default=5, help="Atoms a site.")
    add("--backbone", choices=["residual", "light"], default="residual", help="Networks of the presets.")
    add("--rounds", type=int, default=9, help="Timed steps of each variant.")
    add("--threads", type=int, default=2)
    add("--variants", nargs="+", choices=list(VARIANTS), help="Which ones beside vq. Default: all that run.")
    add("--device", default="cpu", help="cpu or cuda.")
    add("--profile", action="store_true", help="Print where a step with OMP spends its time.")
    add("--output_dir", type=Path, help="Folder that gets training_step.json.")
    parser.check(check_at_least, 1, "batch_size", "resolution", "rounds", "threads")
    args = parser.parse_args()
    on_cpu = torch.device(args.device).type == "cpu"
    usable = [name for name in VARIANTS if on_cpu or VARIANTS[name][2] != "fused"]
    args.variants = ["vq", *(name for name in args.variants or usable if name != "vq")]
    args.profiled = "omp, fused" if on_cpu else "omp, torch"
    if not set(args.variants) <= set(usable):
        parser.error(f"the kernels run on the CPU only; on {args.device} --variants takes {', '.join(usable)}")
    if args.profile and args.profiled not in args.variants:
        parser.error(f"--profile needs the variant {args.profiled!r}")
    torch.set_num_threads(args.threads)
    seconds, saved = measure(args)
    rows = {
        name: {
            "milliseconds": 1e3 * statistics.median(times),
            "ratio_to_vq": statistics.median(a / b for a, b in zip(times, seconds["vq"])),
            "saved_mebibytes": saved[name] / 2**20,
        }
        for name, times in seconds.items()
    }
    columns = [("milliseconds", "step, ms", "{:.1f}"), ("ratio_to_vq", "ratio to VQ", "{:.3f}")]
    columns.append(("saved_mebibytes", "saved, MiB", "{:.0f}"))
    print(f"Medians of {args.rounds} rounds\n\n{figure_table('bottleneck', columns, rows.items())}")
    if args.output_dir:
        args.output_dir.mkdir(parents=True, exist_ok=True)
        settings = {name: value for name, value in vars(args).items() if name != "output_dir"}
        write_json(args.output_dir / "training_step.json", {"settings": settings, "rows": rows})


if __name__ == "__main__":
    main()
