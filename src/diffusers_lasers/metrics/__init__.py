"""Metrics of quality, of the use of codes and of their rate, for torchmetrics. They record how they were computed."""

from .fid import RFID
from .flip import FLIP, flip_map
from .image import LPIPS, PSNR, SSIM
from .latent import LatentNMSE
from .rate import CodeRate
from .usage import AtomUsage


__all__ = ["AtomUsage", "CodeRate", "FLIP", "LPIPS", "LatentNMSE", "PSNR", "RFID", "SSIM", "flip_map"]
