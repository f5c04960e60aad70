r"""PatchGAN (Isola et al., "Image-to-Image Translation with Conditional Adversarial Networks", CVPR 2017): the
discriminator of DL-GAN.

LASERS (2024), section 3.4, takes it over from VQ-GAN. Each logit judges one patch of the image; with three strided
layers the patch is 70 × 70 pixels. The last layer gives logits, which the hinge loss takes without a sigmoid.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from diffusers.utils import BaseOutput
from torch import nn

from ..utils import config_checks as checks
from ..utils.model_loading import LasersModelMixin


__all__ = ["PatchDiscriminator", "PatchDiscriminatorOutput"]

_KERNEL = 4
_WIDEST = 8  # the channels double with each layer up to this multiple of `base_channels`
_SLOPE = 0.2


@dataclass
class PatchDiscriminatorOutput(BaseOutput):
    """
    Output of [`PatchDiscriminator`].

    Args:
        logits (`torch.Tensor` of shape `(B, 1, h, w)`): One a patch, large for real.
    """

    logits: torch.Tensor


class PatchDiscriminator(LasersModelMixin, ModelMixin, ConfigMixin):
    r"""
    Creates a PatchGAN discriminator. Weights start as N(0, 0.02²), the scales of a normalisation as N(1, 0.02²).

    Args:
        in_channels (`int`, defaults to 3): Channels of the images.
        base_channels (`int`, defaults to 64): Channels of the first layer; each further one doubles them, up to eight
            times.
        num_layers (`int`, defaults to 3): Strided layers; 3 gives the 70 × 70 PatchGAN.
        norm_type (`str`, defaults to `"group"`): `"group"` judges each image alone; `"batch"` is the original, whose
            statistics mix the images of a batch and, over several processes, need `torch.nn.SyncBatchNorm`; `"none"`
            has no normalisation.
        norm_num_groups (`int`, defaults to 32): Groups of `"group"`; must divide the channels of every layer but the
            first.

    Raises:
        ValueError: If an argument is out of range.
    """

    _no_split_modules: list[str] = []
    _config_fields = {
        "in_channels": checks.CHANNELS,
        "base_channels": checks.Integer(1, 2**13),
        "num_layers": checks.Integer(1, 16),
        "norm_type": checks.Word("batch", "group", "none"),
        "norm_num_groups": checks.CHANNELS,
    }

    @register_to_config
    def __init__(
        self,
        in_channels: int = 3,
        base_channels: int = 64,
        num_layers: int = 3,
        norm_type: str = "group",
        norm_num_groups: int = 32,
    ):
        super().__init__()
        widths = [base_channels * min(2**depth, _WIDEST) for depth in range(num_layers + 1)]
        if norm_type == "group" and any(width % norm_num_groups for width in widths[1:]):
            raise ValueError(f"`norm_num_groups` must divide the channels {widths[1:]}, got {norm_num_groups!r}.")
        weights = [_KERNEL**2 * a * b for a, b in zip([in_channels, *widths], [*widths, 1])]
        checks.check_size(*weights, in_channels=in_channels, base_channels=base_channels, num_layers=num_layers)
        layers: list[nn.Module] = [nn.Conv2d(in_channels, widths[0], _KERNEL, 2, 1), nn.LeakyReLU(_SLOPE)]
        for depth in range(1, num_layers + 1):
            stride = 2 if depth < num_layers else 1
            # a batch's mean takes a bias away again
            bias = norm_type != "batch"
            layers.append(nn.Conv2d(widths[depth - 1], widths[depth], _KERNEL, stride, 1, bias=bias))
            if norm_type == "batch":
                layers.append(nn.BatchNorm2d(widths[depth]))
            elif norm_type == "group":
                layers.append(nn.GroupNorm(norm_num_groups, widths[depth]))
            layers.append(nn.LeakyReLU(_SLOPE))
        layers.append(nn.Conv2d(widths[-1], 1, _KERNEL, 1, 1))
        self.layers = nn.Sequential(*layers)
        for layer in self.layers:
            if isinstance(layer, nn.Conv2d):
                nn.init.normal_(layer.weight, 0.0, 0.02)
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)
            elif isinstance(layer, (nn.BatchNorm2d, nn.GroupNorm)):
                nn.init.normal_(layer.weight, 1.0, 0.02)
                nn.init.zeros_(layer.bias)

    @property
    def receptive_field(self) -> int:
        """Side in pixels of the patch that one logit judges."""
        field, step = 1, 1
        for layer in self.layers:
            if isinstance(layer, nn.Conv2d):
                field, step = field + (_KERNEL - 1) * step, step * layer.stride[0]
        return field

    @property
    def smallest_size(self) -> int:
        """Least side in pixels of an image: below it there is no logit left."""
        return 3 * 2**self.config.num_layers

    def forward(
        self, images: torch.Tensor, return_dict: bool = True
    ) -> PatchDiscriminatorOutput | tuple[torch.Tensor]:
        """
        Judges images.

        Args:
            images (`torch.Tensor` of shape `(B, in_channels, H, W)`): Images in [-1, 1].
            return_dict (`bool`, defaults to `True`): Whether to return an output class instead of a tuple.

        Returns:
            [`PatchDiscriminatorOutput`] or `tuple`: Logits `(B, 1, h, w)`; `h = ⌊H / 2ⁿ⌋ − 2` with n = `num_layers`.

        Raises:
            ValueError: If the images have another number of channels or are too small.
        """
        channels, least = self.config.in_channels, self.smallest_size
        if images.ndim != 4 or images.shape[1] != channels or min(images.shape[-2:]) < least:
            raise ValueError(
                f"`images` must have shape (batch, {channels}, height, width) with sides of at least {least}, got "
                f"{tuple(images.shape)}."
            )
        logits = self.layers(images)
        return PatchDiscriminatorOutput(logits=logits) if return_dict else (logits,)
