"""What is measured: torchmetrics metrics that record how they were computed, and that count bits beside quality."""

from .fid import RFID
from .flip import FLIP, flip_map
from .image import LPIPS, PSNR, SSIM
from .latent import LatentNMSE
from .rate import CodeRate
from .usage import AtomUsage


__all__ = ["AtomUsage", "CodeRate", "FLIP", "LPIPS", "LatentNMSE", "PSNR", "RFID", "SSIM", "flip_map"]
