"""Times files of a prior beside gzip and xz of the packed code, and compares their sizes.

    OMP_NUM_THREADS=1 python benchmarks/benchmark_prior_speed.py [MODEL …] [--side 128] [--rounds 5]

MODEL is a folder of an `AutoencoderDL` or a `ModelBasedVQCodec`. Without one, autoencoders with a dictionary (atoms in
order, and as sets), residual VQ and scalar quantisation, and a patch codec, start from scikit-image's photographs.
Priors are fitted to codes of the photographs to train on and code those of the held-out ones, in disjoint tiles.

Times are medians, of one thread for all: coding has no other. They start with a code and end with bytes, and back. What
comes back is compared with the code. gzip has level 6, xz its default. `--output_dir` gets prior_speed.json.
"""

import lzma
import statistics
import time
import zlib
from pathlib import Path

import torch

from diffusers_lasers import AutoencoderDL, FactorizedPrior, ModelBasedVQCodec
from diffusers_lasers.commands.image_io import to_tensor
from diffusers_lasers.commands.loading import load_model
from diffusers_lasers.training import load_image_dataset
from diffusers_lasers.utils.command_line import CommandParser, check_at_least
from diffusers_lasers.utils.files import write_json
from diffusers_lasers.utils.tables import figure_table


# Key in prior_speed.json, heading, format.
COLUMNS = [
    ("nominal", "bits a pixel, nominal", "{:.3f}"),
    ("gzip", "gzip", "{:.3f}"),
    ("xz", "xz", "{:.3f}"),
    ("prior", "prior", "{:.3f}"),
    ("compress_sites", "compress, 10⁶ sites/s", "{:.2f}"),
    ("compress_pixels", "MP/s", "{:.1f}"),
    ("compress_images", "images/s", "{:.0f}"),
    ("compress_ratio", "time / gzip's", "{:.2f}"),
    ("decompress_sites", "decompress, 10⁶ sites/s", "{:.2f}"),
    ("decompress_pixels", "MP/s", "{:.1f}"),
    ("decompress_images", "images/s", "{:.0f}"),
    ("decompress_ratio", "time / gzip's", "{:.2f}"),
]
CODES = {
    "dictionary": {"num_atoms": 512, "sparsity": 5, "coefficient_bits": 8},
    "dictionary (sets)": {"num_atoms": 512, "sparsity": 5, "coefficient_bits": 8, "coefficient_scaling": "shared"},
    "residual_vq": {"num_codewords": 512, "depth": 5},
    "scalar": {"rate_weight": 0.001},
}


def tiles(split: str, side: int) -> torch.Tensor:
    """All disjoint tiles `(B, 3, side, side)` of scikit-image's photographs: overlaps would flatter gzip and xz."""
    found = []
    for photo in load_image_dataset(split=split):
        pixels = to_tensor(photo)[0]
        rows = pixels.unfold(1, side, side).unfold(2, side, side)
        found.append(rows.permute(1, 2, 0, 3, 4).flatten(0, 1))
    return torch.cat(found)


def default_models(images: torch.Tensor) -> dict:
    """Models that start from images in closed form or by few iterations."""
    models = {}
    for name, config in CODES.items():
        kind = name.split(" ")[0]
        models[name] = AutoencoderDL(
            backbone="residual", block_out_channels=(32,), bottleneck_type=kind, bottleneck_config=config
        )
        models[name].initialize(images)
    codec = ModelBasedVQCodec.from_notation("OPQ-{32-8-8}")
    codec.fit(images, max_patches=2**14, iterations=5)
    return models | {codec.notation: codec}


def median_seconds(function, rounds: int) -> float:
    seconds = []
    for _ in range(rounds + 1):  # of which the first does not count
        start = time.perf_counter()
        function()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[1:])


@torch.no_grad()
def measure(model, fitted: torch.Tensor, coded: torch.Tensor, rounds: int) -> dict:
    """One row."""
    prior = FactorizedPrior.from_coder(model).fit(model.encode_to_code(fitted))
    code = model.encode_to_code(coded)
    data, packed = prior.compress(code), model.pack(code)
    if prior.compress(prior.decompress(data)) != data:
        raise RuntimeError("what was decompressed is another code")
    deflated = zlib.compress(packed, 6)
    pixels = coded.shape[0] * coded.shape[-2] * coded.shape[-1]
    sizes = {"nominal": packed, "gzip": deflated, "xz": lzma.compress(packed), "prior": data}
    row = {name: 8 * len(part) / pixels for name, part in sizes.items()}
    ways = {
        "compress": (lambda: prior.compress(code), lambda: zlib.compress(packed, 6)),
        "decompress": (lambda: prior.decompress(data), lambda: zlib.decompress(deflated)),
    }
    for name, (ours, peer) in ways.items():
        seconds = median_seconds(ours, rounds)
        row[f"{name}_sites"] = code.num_sites / seconds / 1e6
        row[f"{name}_pixels"] = pixels / seconds / 1e6
        row[f"{name}_images"] = len(coded) / seconds
        row[f"{name}_ratio"] = seconds / median_seconds(peer, rounds)
    return row


def main() -> None:
    parser = CommandParser(description=__doc__)
    add = parser.add_argument
    add("models", nargs="*", help="Folders of models. Default: new ones.")
    add("--side", type=int, default=128, help="Side of the tiles in pixels.")
    add("--rounds", type=int, default=5, help="Timed calls.")
    add("--output_dir", type=Path, help="Folder that gets prior_speed.json.")
    parser.check(check_at_least, 1, "side", "rounds")
    args = parser.parse_args()
    torch.set_num_threads(1)
    fitted, coded = (tiles(split, args.side) for split in ("train", "validation"))
    models = {Path(path).name: load_model(path, None, None, torch.device("cpu")) for path in args.models}
    rows = {}
    for name, model in (models or default_models(fitted)).items():
        rows[name] = measure(model.eval(), fitted, coded, args.rounds)
        print(f"{name}: done", flush=True)
    print(f"{len(coded)} tiles of {args.side}×{args.side}, medians of {args.rounds} calls on one thread\n")
    print(figure_table("code", COLUMNS, rows.items()))
    if args.output_dir:
        args.output_dir.mkdir(parents=True, exist_ok=True)
        settings = {name: value for name, value in vars(args).items() if name != "output_dir"}
        write_json(args.output_dir / "prior_speed.json", {"settings": settings, "rows": rows})


if __name__ == "__main__":
    main()
