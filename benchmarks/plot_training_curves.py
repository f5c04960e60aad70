"""Draws the held-out PSNR and LPIPS of training runs over their steps, with a line where a discriminator starts.

    python benchmarks/plot_training_curves.py runs/dl-vae runs/dl-gan --output curves.png [--labels DL-VAE DL-GAN]

Reads `training_log.jsonl` and `settings.json` of each output folder of `examples/train_dlgan.py`. For each run with a
discriminator it also prints the last figures before its start, and the first and the worst ones after it. `--zoom`
shows only so many steps before and after the start; `--figures` draws other names of the log, such as `psnr
perplexity`.
"""

import json
from pathlib import Path

from diffusers_lasers.training import TrainingLog
from diffusers_lasers.utils.command_line import CommandParser
from diffusers_lasers.visualization import save_figure, training_curves


FIGURES = [("validation_psnr", "PSNR, dB", max), ("validation_lpips", "LPIPS", min)]


def discriminator_start(folder: Path) -> int | None:
    """The step at which the run's discriminator starts; None without one."""
    settings = json.loads((folder / "settings.json").read_text(encoding="utf-8"))
    return settings["arguments"].get("discriminator_start") if settings.get("discriminator") is not None else None


def print_start(label: str, records: list[dict], start: int) -> None:
    """The figures across the start of a discriminator."""
    for name, title, best in FIGURES:
        before = [record[name] for record in records if name in record and record["step"] <= start]
        after = [record[name] for record in records if name in record and record["step"] > start]
        if before and after:
            worst = (min if best is max else max)(after)
            print(f"{label}: {title} {before[-1]:.4f} before step {start}, then {after[0]:.4f}; worst {worst:.4f}")


def main(input_args: list[str] | None = None) -> None:
    parser = CommandParser(description=__doc__)
    parser.add_argument("runs", nargs="+", type=Path, help="Output folders of train_dlgan.py.")
    parser.add_argument("--labels", nargs="+", help="Default: the folders' names.")
    parser.add_argument("--output", type=Path, default=Path("curves.png"), help="A .png, .pdf or .svg file.")
    parser.add_argument("--figures", nargs="+", help="Names in the log. Default: the held-out PSNR and LPIPS.")
    parser.add_argument("--smooth", type=int, help="Odd number of records in the window of a Savitzky-Golay filter.")
    parser.add_argument("--zoom", type=int, help="Steps to show before and after the start of a discriminator.")
    args = parser.parse_args(input_args)
    labels = args.labels or [run.name for run in args.runs]
    if len(labels) != len(args.runs):
        parser.error(f"--labels must be as many as the runs, {len(args.runs)}, got {len(labels)}")
    if len(set(labels)) != len(labels):
        parser.error(f"--labels must tell the runs apart, got {' '.join(labels)}")
    missing = [run for run in args.runs if not (run / "training_log.jsonl").is_file()]
    if missing:
        parser.error(f"{missing[0]} holds no training_log.jsonl")
    runs = {label: TrainingLog.read(run / "training_log.jsonl") for label, run in zip(labels, args.runs)}
    starts = {label: discriminator_start(run) for label, run in zip(labels, args.runs)}
    present = {name for records in runs.values() for record in records for name in record}
    figures = args.figures or [name for name, _, _ in FIGURES if name in present]
    marked = sorted(set(starts.values()) - {None})
    try:
        figure = training_curves(runs, figures, args.smooth, marked, args.zoom if marked else None)
        args.output.parent.mkdir(parents=True, exist_ok=True)
        save_figure(figure, args.output, dpi=110)
    except ValueError as error:
        parser.error(str(error))
    for label, start in starts.items():
        if start is not None:
            print_start(label, runs[label], start)


if __name__ == "__main__":
    main()
