r"""Times online dictionary learning beside SPAMS and scikit-learn on patches of images: objective against seconds.

    python benchmarks/benchmark_dictionary_learning.py --output_dir outputs/dictionary_learning
    python benchmarks/benchmark_dictionary_learning.py --images photos/ --color --atoms 1024 --sparsity 8 \
        --learners omp "SPAMS, float64"
    python benchmarks/benchmark_dictionary_learning.py --variants --output_dir outputs/dictionary_learning_variants

All learners get the same patches, number of atoms K, sparsity S, minibatch ξ and, unless their name says otherwise, the
same first dictionary: random patches, normalised. Each point of a curve is a fit of its own with that many minibatches,
from the start, so that no learner is interrupted. Conversions of the inputs and the computation of the objective are
outside the measured time. The objective is

    mean of ½ ‖y − D γ‖²,  γ from our `omp` with S atoms in float64, for every learner,

over patches of other images. In each round the first dictionary and the order of the signals change. The learners take
turns, and each round starts with another one; medians over the rounds. `dictionary_learning_peers.py` says how the
peers are called, and what is not equal. Those that are not installed are skipped (`pip install
diffusers_lasers[benchmark]`).

Writes results.json and results.md into the folder after each round, and figure.png at the end.
"""

import argparse
import shlex
import statistics
import sys
import time
from pathlib import Path

import numpy as np
import torch
from dictionary_learning_peers import LEARNERS, VARIANTS, Task
from sparse_coding_machine import PAUSE, fix_threads, machine
from sparse_coding_report import number, table
from tqdm import tqdm

from diffusers_lasers.functional import omp, synthesize
from diffusers_lasers.functional.dictionary import dictionary_from_signals
from diffusers_lasers.training import load_image_dataset
from diffusers_lasers.utils.command_line import CommandParser, check_at_least
from diffusers_lasers.utils.files import write_json, write_text
from diffusers_lasers.utils.import_utils import requires
from diffusers_lasers.visualization import save_figure
from diffusers_lasers.visualization.figures import new_figure


HELD_OUT_SHARE = 5  # of the images of --images, one in so many is held out
MACHINE = ("cpu", "threads", "torch", "spams-bin", "scikit-learn", "date", "commit")


def parse_arguments() -> argparse.Namespace:
    parser = CommandParser(description=__doc__)
    add = parser.add_argument
    add("--output_dir", type=Path, default=Path("outputs/dictionary_learning"))
    add("--images", help="Folder of images, or pattern; every fifth is held out. Default: scikit-image's photos.")
    add("--patch_size", type=int, default=8, help="Side of a patch in pixels. Default: 8.")
    add("--color", action="store_true", help="Patches of three channels. Default: luminance.")
    add("--keep_mean", action="store_true", help="Keep the mean of a patch. Default: it is subtracted.")
    add("--patches", type=int, default=100_000, help="Patches to learn from. Default: 100000.")
    add("--held_out", type=int, default=10_000, help="Patches to judge by. Default: 10000.")
    add("--atoms", type=int, default=256)
    add("--sparsity", type=int, default=5)
    add("--batch_size", type=int, default=512)
    add("--passes", type=float, default=4, help="Passes over the patches at the last point. Default: 4.")
    add("--points", type=int, default=6, help="Points of a curve; each has twice the minibatches of the one before.")
    add("--learners", nargs="+", default=list(LEARNERS), choices=[*LEARNERS, *VARIANTS], metavar="NAME")
    add("--variants", action="store_true", help="Our learner with one default changed, in place of the others.")
    add("--time_limit", type=float, default=120.0, help="Longer fits are left out, in seconds. Default: 120.")
    add("--rounds", type=int, default=3)
    add("--threads", type=int, default=2, help="Threads of every learner. Default: 2.")
    add("--seed", type=int, default=0)
    parser.check(check_at_least, 1, "patch_size", "patches", "held_out", "atoms", "sparsity", "batch_size")
    parser.check(check_at_least, 1, "points", "rounds", "threads")
    args = parser.parse_args()
    if args.sparsity > args.atoms or not args.passes > 0:
        parser.error("--sparsity must be at most --atoms, and --passes above 0.")
    if args.variants:
        args.learners = ["omp", "omp, own start", *VARIANTS]
    return args


def image_sets(folder: str | None) -> tuple[list, list]:
    """Images to learn from and images to judge by; RGB."""
    if folder is None:
        return tuple(list(load_image_dataset(split=split)) for split in ("train", "validation"))
    source = load_image_dataset(train_data_dir=folder)
    held_out = range(HELD_OUT_SHARE - 1, len(source), HELD_OUT_SHARE) or range(len(source) - 1, len(source))
    images = [[source[i] for i in range(len(source)) if (i in held_out) == judged] for judged in (False, True)]
    if not images[0]:
        raise ValueError(f"--images must hold at least two images, got {len(source)} at {folder!r}.")
    return tuple(images)


def patches(images: list, count: int, args: argparse.Namespace, seed: int) -> torch.Tensor:
    """`(count, features)` float32 patches in [0, 1] at random places, equally many of each image, in random order."""
    random, side, found = np.random.default_rng(seed), args.patch_size, []
    for number_of_image, image in enumerate(images):
        pixels = np.asarray(image.convert("RGB" if args.color else "L"), np.float32) / 255
        if min(pixels.shape[:2]) < side:
            raise ValueError(f"--patch_size must be at most the side of an image, got {side} for {pixels.shape[:2]}.")
        windows = np.lib.stride_tricks.sliding_window_view(pixels, (side, side), axis=(0, 1))
        share = (number_of_image + 1) * count // len(images) - number_of_image * count // len(images)
        top, left = (random.integers(0, size, share) for size in windows.shape[:2])
        found.append(windows[top, left].reshape(share, -1))
    signals = torch.from_numpy(random.permutation(np.concatenate(found)))
    return signals if args.keep_mean else signals - signals.mean(dim=1, keepdim=True)


def objective(signals: torch.Tensor, dictionary: torch.Tensor, sparsity: int) -> float:
    """Mean of ½ ‖y − D γ‖² with γ from `omp` in float64."""
    signals, dictionary = signals.double(), dictionary.double()
    indices, coefficients = omp(signals, dictionary, sparsity)
    return 0.5 * (signals - synthesize(indices, coefficients, dictionary)).square().sum(dim=1).mean().item()


def measure_round(args, signals, held_out, steps, round_, rows, bar) -> None:
    """One fit of every learner at every point; appends to the lists `seconds` and `objective` of its row, by point."""
    seed = args.seed + round_
    start = dictionary_from_signals(signals, args.atoms, generator=torch.Generator().manual_seed(seed))
    task = Task(signals, start, args.sparsity, args.batch_size, args.threads, seed)
    names = list(rows)
    for name in names[round_ % len(names) :] + names[: round_ % len(names)]:
        fit = {**LEARNERS, **VARIANTS}[name](task)
        fit(1)  # warms up
        expected = 0.0
        for point, count in enumerate(steps):
            bar.set_postfix_str(f"{name}, {count} minibatches")
            if expected <= args.time_limit:
                time.sleep(PAUSE)
                before = time.perf_counter()
                dictionary = fit(count)
                seconds = time.perf_counter() - before
                rows[name]["seconds"][point].append(seconds)
                rows[name]["objective"][point].append(objective(held_out, dictionary, args.sparsity))
                expected = 2 * seconds
            bar.update()


def medians(row: dict, key: str) -> list[float | None]:
    return [statistics.median(values) if values else None for values in row[key]]


def markdown(results: dict) -> str:
    """The tables of results.md: seconds and objective of each learner at each number of minibatches."""
    facts = ", ".join(f"{name} {results['machine'][name]}" for name in MACHINE)
    lines = ["# Online dictionary learning", "", f"`{results['command']}`", "", facts, "", results["data"], ""]
    for key, title in (("seconds", "Seconds"), ("objective", "Objective on held-out patches")):
        rows = [[name, *map(number, medians(row, key))] for name, row in results["learners"].items()]
        lines += [f"## {title}, medians", "", *table(["minibatches", *map(str, results["steps"])], rows)]
    return "\n".join(lines)


def draw(results: dict, path: Path) -> None:
    """The figure: objective against seconds, a curve a learner."""
    requires("matplotlib", "benchmark")
    figure, (axes,) = new_figure(width=8, height=5)
    for name, row in results["learners"].items():
        points = [(s, o) for s, o in zip(medians(row, "seconds"), medians(row, "objective")) if s is not None]
        style = {"SPAMS": "--", "sciki": ":"}.get(name[:5], "-")
        axes.plot(*zip(*points), style, marker="o", markersize=4, label=name)
    axes.set(xscale="log", xlabel="time, s", ylabel="½ ‖y − Dγ‖² on held-out patches")
    axes.legend(fontsize=8)
    axes.set_title(results["data"], fontsize=8)
    save_figure(figure, path, dpi=150)


def available(names: list[str], task: Task) -> list[str]:
    """Learners that are installed; a line for each other one says what is missing."""
    found = []
    for name in names:
        try:
            {**LEARNERS, **VARIANTS}[name](task)
            found.append(name)
        except ImportError as error:
            print(f"Skipping {name}: {error}")
    return found


def main() -> int:
    args = parse_arguments()
    fix_threads(args.threads)
    torch.set_num_threads(args.threads)
    images = image_sets(args.images)
    signals, held_out = (
        patches(images[0], args.patches, args, args.seed),
        patches(images[1], args.held_out, args, -1 % 2**32),
    )
    total = max(1, round(args.passes * len(signals) / args.batch_size))
    steps = sorted({max(1, round(total / 2**halvings)) for halvings in range(args.points)})
    probe = dictionary_from_signals(signals[: 4 * args.atoms], args.atoms)
    names = available(
        args.learners, Task(signals[:64], probe, args.sparsity, args.batch_size, args.threads, args.seed)
    )
    words = [
        f"--{name}" if value is True else f"--{name}={Path(value).name if name == 'images' else value}"
        for name, value in vars(args).items()
        if value not in (None, False) and name not in ("output_dir", "learners")
    ]
    results = {
        "machine": machine(args.threads),
        "command": shlex.join(["python", f"benchmarks/{Path(__file__).name}", *words]),
        "data": f"{len(signals)} patches of {len(images[0])} images, {len(held_out)} of {len(images[1])} others, "
        f"L = {signals.shape[1]}, K = {args.atoms}, S = {args.sparsity}, minibatches of {args.batch_size}",
        "steps": steps,
        "learners": {name: {key: [[] for _ in steps] for key in ("seconds", "objective")} for name in names},
    }
    args.output_dir.mkdir(parents=True, exist_ok=True)
    with tqdm(total=args.rounds * len(names) * len(steps), desc="fits") as bar:
        for round_ in range(args.rounds):
            measure_round(args, signals, held_out, steps, round_, results["learners"], bar)
            write_json(args.output_dir / "results.json", results)
            write_text(args.output_dir / "results.md", markdown(results))
    try:
        draw(results, args.output_dir / "figure.png")
    except ImportError as error:
        print(f"Skipping the figure: {error}")
    print(f"Results are in {args.output_dir}.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
