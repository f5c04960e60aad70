"""Images as tensors: colours, patches as signals, and degradations."""

from .color import rgb_to_ycbcr, ycbcr_to_rgb
from .degradations import center_mask, hide, random_masks, reduce_bicubic, upscale_bicubic
from .patch_signals import latents_to_signals, patch_grid, signals_to_latents


__all__ = [
    "center_mask",
    "hide",
    "latents_to_signals",
    "patch_grid",
    "random_masks",
    "reduce_bicubic",
    "rgb_to_ycbcr",
    "signals_to_latents",
    "upscale_bicubic",
    "ycbcr_to_rgb",
]
