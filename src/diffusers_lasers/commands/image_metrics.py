"""The image metrics that can be computed here, and a reason for each one that cannot.

A package or a file of weights may be missing. Then the metric's column stays empty, the reason stands below the table,
and all other figures are computed.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch

from ..metrics import FLIP, LPIPS, PSNR, RFID, SSIM
from ..models.perceptual import PerceptualSimilarity
from ..utils.command_line import one_line


#: How tables and reasons call each metric.
TITLES = {"psnr": "PSNR", "ssim": "SSIM", "lpips": "LPIPS", "flip": "FLIP", "rfid": "rFID", "fid": "FID"}


def add_lpips_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the flags that say which network LPIPS has."""
    add = parser.add_argument
    add("--lpips_weights", help="Folder or file with the weights of LPIPS. Default: torchvision's.")
    add("--lpips_net", default="squeeze", choices=["squeeze", "alex", "vgg"], help="Network of LPIPS.")


def add_fid_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the flags that say which feature network FID has, and what it takes."""
    add = parser.add_argument
    add("--fid_features", help="TorchScript feature network for FID, or `inception` (needs torch-fidelity).")
    add("--fid_resize", type=int, default=299, help="Side to which images are resized for FID; 0: not resized.")
    add(
        "--fid_range",
        nargs=2,
        type=float,
        default=(-1.0, 127 / 128),
        metavar=("LOW", "HIGH"),
        help="Network inputs for black and white. Default: (v - 128) / 128 of a byte v, as for Inception.",
    )


def image_metrics(
    names: list[str], args: argparse.Namespace, num_images: int | None = None
) -> tuple[dict[str, Any], dict[str, str]]:
    """
    The metrics that can be computed here, by name, and why each other one cannot, by title.

    Args:
        names (`list[str]`): Keys of `TITLES`; `rfid` and `fid` are the same metric.
        args (`argparse.Namespace`): With `device`, and the flags of LPIPS and FID if these are among the names.
        num_images (`int`, *optional*): Images there are; FID needs two.
    """

    def lpips():
        if args.lpips_weights and (Path(args.lpips_weights) / "config.json").is_file():
            return LPIPS(PerceptualSimilarity.from_pretrained(args.lpips_weights))
        return LPIPS(PerceptualSimilarity.from_weights(args.lpips_net, args.lpips_weights))

    def fid():
        if not args.fid_features:
            raise ValueError("no feature network was given (--fid_features).")
        if num_images is not None and num_images < 2:
            raise ValueError(f"it needs two images or more, got {num_images}.")
        return RFID(args.fid_features, tuple(args.fid_range), args.fid_resize or None, reset_real_features=False)

    makers = {"psnr": PSNR, "ssim": SSIM, "lpips": lpips, "flip": FLIP, "rfid": fid, "fid": fid}
    metrics, missing = {}, {}
    for name in names:
        try:
            metrics[name] = makers[name]().to(args.device)
        except (ImportError, OSError, ValueError) as error:
            missing[TITLES[name]] = one_line(error)
    return metrics, missing


def update_metrics(
    metrics: dict[str, Any], sample: torch.Tensor, images: torch.Tensor, missing: dict[str, str], of: str = ""
) -> None:
    """
    Adds reconstructions and references `(B, 3, H, W)` in [-1, 1] to every metric; FID has its references already. A
    metric that cannot take them is removed, and `missing` gets the reason, by title and what the images are `of`.
    """
    for name, metric in list(metrics.items()):
        try:
            metric.update(sample, None if name in ("rfid", "fid") else images)
        except ValueError as error:  # images too small for the metric, or values that are no images
            missing[f"{TITLES[name]} of {of}" if of else TITLES[name]] = str(error)
            del metrics[name]


def computed(metrics: dict[str, Any], names: list[str]) -> dict[str, float | None]:
    """The values of metrics by name, `None` for those that are left out."""
    return {name: float(metrics[name].compute()) if name in metrics else None for name in names}
