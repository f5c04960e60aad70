"""Draws the held-out PSNR and LPIPS of training runs over their steps, with a line where a discriminator starts.

    python utils/plot_training_curves.py runs/dl-vae runs/dl-gan --output curves.png [--labels DL-VAE DL-GAN] [--zoom 300]

Reads `training_log.jsonl` and `settings.json` of each output folder of `examples/train_dlgan.py`. Also prints, for each run with a discriminator, the
last figures before its start and the first ones and the worst ones after it. `--zoom` shows only so many steps before and after the start.
"""

import argparse
import json
from pathlib import Path

import matplotlib


matplotlib.use("Agg")
from matplotlib import pyplot  # noqa: E402


FIGURES = [("validation_psnr", "PSNR, dB", max), ("validation_lpips", "LPIPS", min)]


def read(folder: Path) -> tuple[dict[str, tuple[list, list]], int | None]:
    """Steps and values by figure, and the step at which the discriminator starts."""
    lines = [json.loads(line) for line in (folder / "training_log.jsonl").read_text(encoding="utf-8").splitlines()]
    settings = json.loads((folder / "settings.json").read_text(encoding="utf-8"))
    start = settings["arguments"].get("discriminator_start") if settings.get("discriminator") is not None else None
    curves = {}
    for name, _, _ in FIGURES:
        rows = [(line["step"], line[name]) for line in lines if name in line]
        curves[name] = ([step for step, _ in rows], [value for _, value in rows])
    return curves, start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--labels", nargs="+", help="Default: the folders' names.")
    parser.add_argument("--output", type=Path, default=Path("curves.png"))
    parser.add_argument("--zoom", type=int)
    args = parser.parse_args()
    labels = args.labels or [run.name for run in args.runs]
    if len(labels) != len(args.runs):
        parser.error(f"--labels must be as many as the runs, {len(args.runs)}, got {len(labels)}")
    missing = [run for run in args.runs if not (run / "training_log.jsonl").is_file()]
    if missing:
        parser.error(f"{missing[0]} holds no training_log.jsonl")
    figure, axes = pyplot.subplots(1, len(FIGURES), figsize=(11, 4), layout="constrained")
    starts = set()
    for run, label in zip(args.runs, labels):
        curves, start = read(run)
        for axis, (name, title, best) in zip(axes, FIGURES):
            steps, values = curves[name]
            axis.plot(steps, values, label=label, linewidth=1.2)
            axis.set(title=title, xlabel="step")
            if start is not None and values:
                before = [value for step, value in zip(steps, values) if step <= start]
                after = [value for step, value in zip(steps, values) if step > start]
                worst = (min if best is max else max)(after)
                print(f"{label}: {title} {before[-1]:.4f} before step {start}, then {after[0]:.4f}; worst {worst:.4f}")
        starts |= {start} - {None}
    for axis in axes:
        for start in starts:
            axis.axvline(start, color="grey", linestyle=":", linewidth=1)
        if args.zoom and starts:
            left, right = min(starts) - args.zoom, max(starts) + args.zoom
            axis.set_xlim(left, right)
            inside = [
                y
                for line in axis.get_lines()
                for x, y in zip(*line.get_data())
                if len(line.get_data()[0]) > 2 and left <= x <= right
            ]
            if inside:
                margin = 0.05 * (max(inside) - min(inside))
                axis.set_ylim(min(inside) - margin, max(inside) + margin)
        axis.grid(alpha=0.3)
    axes[0].legend()
    args.output.parent.mkdir(parents=True, exist_ok=True)
    unfinished = args.output.with_name(f"{args.output.stem}.tmp{args.output.suffix}")
    figure.savefig(unfinished, dpi=110)
    unfinished.replace(args.output)


if __name__ == "__main__":
    main()
