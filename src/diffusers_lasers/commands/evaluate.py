"""`evaluate`: models on whole images: quality, and the bits that it costs.

Reconstructions come from the codes alone, are clamped to [-1, 1] and not rounded; figures are means over images,
entropies those of all codes together with one table a slot, and the prior's bits, where the model has one
(`fit-prior`), what files cost but for their headers. `examples/evaluate_autoencoder.py` judges crops, degraded
inputs, speed and usage, `examples/benchmark_codec.py` file formats beside codecs.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..utils.command_line import one_line
from ..utils.files import write_json
from .batch import SomeFailed, check_targets, for_each, report
from .image_io import to_tensor
from .loading import add_device_argument, get_device, load_model, load_prior


if TYPE_CHECKING:
    import torch

EXAMPLE = """example:
  diffusers-lasers evaluate outputs/dl outputs/vq outputs/opq --data photos/ --json results.json
"""
PRIOR_RATE, RATE_WEIGHT = "prior_bits_per_pixel", "rate_weight"
# Key, heading, format.
COLUMNS = [
    (RATE_WEIGHT, "rate weight", "{:g}"),
    ("psnr", "PSNR dB", "{:.2f}"),
    ("ssim", "SSIM", "{:.4f}"),
    ("flip", "FLIP", "{:.4f}"),
    ("bits_per_pixel", "bpp nominal", "{:.4f}"),
    ("entropy_bits_per_pixel", "bpp entropy", "{:.4f}"),
    (PRIOR_RATE, "bpp prior", "{:.4f}"),
]
METRICS = ("psnr", "ssim", "flip")


class EvaluateCommand:
    name = "evaluate"

    @staticmethod
    def register_subcommand(commands: argparse._SubParsersAction) -> None:
        parser = commands.add_parser(
            "evaluate",
            help="print quality and bits of models on images",
            description=__doc__,
            epilog=EXAMPLE,
        )
        parser.add_argument(
            "models", nargs="+", metavar="MODEL", help="folders or repositories of AutoencoderDL or ModelBasedVQCodec"
        )
        parser.add_argument(
            "--data",
            help="folder of images, one image, parquet, or a pattern; default: scikit-image's held-out photographs",
        )
        parser.add_argument(
            "--rate_weights",
            type=float,
            nargs="+",
            metavar="LAMBDA",
            help="a row for each: codes of the least error plus LAMBDA a bit of the prior; default: as trained",
        )
        parser.add_argument("--max_images", type=int, metavar="N", help="take only the first N images")
        parser.add_argument("--json", metavar="FILE", help="also write the figures and how they were computed")
        add_device_argument(parser)
        parser.set_defaults(command=EvaluateCommand)

    def __init__(self, args: argparse.Namespace):
        self.args = args

    def run(self) -> None:
        from ..utils.image_sources import load_image_dataset
        from .env import environment
        from .image_metrics import image_metrics

        args = self.args
        if args.json is not None:
            if not Path(args.json).absolute().parent.is_dir():
                raise ValueError(f"There is no folder {Path(args.json).parent} to write {Path(args.json).name} to.")
            check_targets([Path(args.json)])
        device = get_device(args.device)
        metrics, missing = image_metrics(list(METRICS), argparse.Namespace(device=device))
        source = load_image_dataset(train_data_dir=args.data, split="validation", max_samples=args.max_images)
        rows, protocols, unreadable = [], {}, {}

        def judge(name: str) -> None:
            model = load_model(name, device=device)
            prior = load_prior(name, None, None, model) if model.levels else None
            for weight in (args.rate_weights or [None]) if model.levels else [None]:
                row, used, skipped = evaluate(name, model, source, dict(metrics), missing, device, prior, weight)
                for index in skipped.keys() - unreadable.keys():
                    report(args, skipped[index])
                unreadable.update(skipped)
                rows.append(row)
                protocols.update(used)

        failure = None
        try:
            for_each(args, args.models, judge, "models")
        except SomeFailed as error:
            failure = error
        if rows:
            self._write(rows, protocols, missing, len(source) - len(unreadable), unreadable, environment())
        if failure is not None:
            raise failure
        if unreadable:
            raise SomeFailed(f"{len(unreadable)} of {len(source)} images could not be read and were left out.")

    def _write(
        self,
        rows: list[dict[str, Any]],
        protocols: dict[str, Any],
        missing: dict[str, str],
        images: int,
        unreadable: dict[int, Exception],
        environment: dict[str, Any],
    ) -> None:
        """Prints the table, and writes the JSON file."""
        args = self.args
        about = args.data or "scikit-image's photographs held out from training"
        left_out = f" {len(unreadable)} that could not be read were left out." if unreadable else ""
        print(table(rows, f"{images} whole images of {about}; means over images.{left_out}", missing))
        if args.json is not None:
            results = {
                "environment": environment,
                "data": {
                    "source": about,
                    "images": images,
                    "unreadable": [one_line(error) for _, error in sorted(unreadable.items())],
                },
                "protocols": protocols,
                "unavailable": missing,
                "models": rows,
            }
            write_json(args.json, results)


def evaluate(
    name: str,
    model: Any,
    source: Any,
    metrics: dict[str, Any],
    missing: dict[str, str],
    device: torch.device,
    prior: Any = None,
    rate_weight: float | None = None,
) -> tuple[dict[str, Any], dict[str, Any], dict[int, Exception]]:
    """
    One model's figures and the protocols of the metrics.

    Args:
        name (`str`): How the row is called.
        model ([`AutoencoderDL`] or [`ModelBasedVQCodec`]): The model, on the device.
        source (`Sequence[PIL.Image.Image]`): The images.
        metrics (`dict[str, Metric]`): Metrics by column; one that an image does not suit is left out, with the reason
            in `missing`.
        missing (`dict[str, str]`): What is not computed, and why; added to.
        device (`torch.device`): Where to compute.
        prior ([`FactorizedPrior`], *optional*): Prior of the model. Defaults to `None`: its rate is left out.
        rate_weight (`float`, *optional*): λ of the codes. Defaults to `None`: as the model was trained.

    Returns:
        `tuple[dict, dict, dict]`: Row, protocols, and by their numbers the errors of images that could not be read
        and were left out.

    Raises:
        ValueError: If no image can be read.
    """
    import torch
    from tqdm.auto import tqdm

    from ..utils.image_sources import UnreadableImageError
    from .image_metrics import computed, update_metrics

    for metric in metrics.values():
        metric.reset()
    coder, unreadable = _Coder(model, prior, rate_weight), {}
    for index in tqdm(range(len(source)), desc=name, leave=False, disable=None):
        try:
            pixels = to_tensor(source[index]).to(device)
        except UnreadableImageError as error:
            unreadable[index] = error
            continue
        with torch.no_grad():
            sample = coder(pixels).float().clamp(-1, 1)
        update_metrics(metrics, sample, pixels, missing, of=name)
    if len(unreadable) == len(source):
        raise unreadable[0]
    row = {"model": name, "class": type(model).__name__}
    row |= {} if rate_weight is None else {RATE_WEIGHT: rate_weight}
    row |= computed(metrics, list(METRICS))
    return row | coder.rates(), {key: metric.protocol() for key, metric in metrics.items()}, unreadable


class _Coder:
    """Reconstructs images by their codes, and counts what the codes cost."""

    def __init__(self, model: Any, prior: Any = None, rate_weight: float | None = None):
        self.model, self.pixels, self.bits, self.rate = model, 0, 0.0, None
        self.rate_weight = rate_weight
        self.prior, self.prior_bits = prior, 0.0
        if model.levels:
            from ..metrics import CodeRate

            self.rate = CodeRate(model).to(model.device)

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        model, (height, width) = self.model, images.shape[-2:]
        self.pixels += height * width
        self.bits += model.bits_per_pixel(height, width) * height * width
        if self.rate is None:  # without a code: latents in float16, 16 bits a value
            latents = model.encode(images).latents
            stored = latents.half().to(latents.dtype)
            return model.decode(stored, force_not_quantize=True).sample[..., :height, :width]
        code = model.encode_to_code(images, self.rate_weight, self.prior)
        self.rate.update(code)
        if self.prior is not None:
            self.prior_bits += float(self.prior.bits(code).sum())
        return model.decode_from_code(code).sample

    def rates(self) -> dict[str, float | None]:
        """Nominal, entropy and prior's bits a pixel of all images; those that there are without a code or a prior."""
        entropy = None if self.rate is None else float(self.rate.compute()["entropy_bits_per_pixel"])
        rates = {"bits_per_pixel": self.bits / self.pixels, "entropy_bits_per_pixel": entropy}
        return rates if self.prior is None else rates | {PRIOR_RATE: self.prior_bits / self.pixels}


def table(rows: list[dict[str, Any]], about: str, missing: dict[str, str]) -> str:
    """A Markdown table whose columns stand under each other, and notes."""
    found = {key for row in rows for key in row}
    columns = [column for column in COLUMNS if column[0] not in (PRIOR_RATE, RATE_WEIGHT) or column[0] in found]
    cells = [["model", *(title for _, title, _ in columns)]]
    for row in rows:
        figures = [form.format(row[key]) if row.get(key) is not None else "–" for key, _, form in columns]
        cells.append([row["model"], *figures])
    widths = [max(len(line[column]) for line in cells) for column in range(len(cells[0]))]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    lines = []
    for line in (cells[0], rule, *cells[1:]):
        padded = [line[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(line[1:], widths[1:]))]
        lines.append("| " + " | ".join(padded) + " |")
    notes = [f"- {what} is missing: {reason}" for what, reason in missing.items()]
    if any(row["entropy_bits_per_pixel"] is None for row in rows):
        notes.append("- A model without a bottleneck has no code; its nominal bits are those of float16 latents.")
    return "\n".join([*lines, "", about, *notes])
