r"""The refiner of decoded samples (Scribano et al., 2023, section 4.2.2): a small U-Net that repairs images whose codes
are slightly wrong.

    x̂ = x_n + U(x_n),    x_n = D(E(x) + noise)

It is trained with L1 and SSIM on images with corrupted codes, `examples/train_refiner.py`.
"""

from __future__ import annotations

import torch
from diffusers import ConfigMixin, ModelMixin, UNet2DModel
from diffusers.configuration_utils import register_to_config
from diffusers.models.autoencoders.vae import DecoderOutput

from ..utils import config_checks as checks
from ..utils.model_loading import LasersModelMixin
from .categorical_unet import UNET_BLOCKS, run_padded


__all__ = ["LatentRefiner"]


class LatentRefiner(LasersModelMixin, ModelMixin, ConfigMixin):
    r"""
    Creates a refiner of about 1.7 million parameters. It adds a correction, at first nothing, to the image.

    Args:
        in_channels (`int`, defaults to 3): Channels of the images.
        block_out_channels (`tuple[int, ...]`, defaults to `(32, 64, 96)`): Channels of the stages.
        layers_per_block (`int`, defaults to 1): Residual blocks of a stage.
        norm_num_groups (`int`, defaults to 16): Groups of the normalisations.

    Raises:
        ValueError: If the groups do not divide the channels.
    """

    _supports_gradient_checkpointing = True
    _no_split_modules = UNET_BLOCKS
    _config_fields = {
        "in_channels": checks.CHANNELS,
        "block_out_channels": checks.Sequence(checks.CHANNELS, most=12),
        "layers_per_block": checks.Integer(1, 128),
        "norm_num_groups": checks.CHANNELS,
    }

    @register_to_config
    def __init__(
        self,
        in_channels: int = 3,
        block_out_channels: tuple[int, ...] = (32, 64, 96),
        layers_per_block: int = 1,
        norm_num_groups: int = 16,
    ):
        super().__init__()
        checks.check_groups(norm_num_groups, block_out_channels)
        checks.check_size(
            checks.unet_values(block_out_channels, layers_per_block, in_channels, in_channels),
            in_channels=in_channels,
            block_out_channels=block_out_channels,
            layers_per_block=layers_per_block,
        )
        stages = len(block_out_channels)
        self.unet = UNet2DModel(
            in_channels=in_channels,
            out_channels=in_channels,
            down_block_types=("DownBlock2D",) * stages,
            up_block_types=("UpBlock2D",) * stages,
            block_out_channels=tuple(block_out_channels),
            layers_per_block=layers_per_block,
            norm_num_groups=norm_num_groups,
            add_attention=False,
        )
        self.unet._no_split_modules = UNET_BLOCKS  # diffusers' own class says nothing, with which `device_map` fails
        torch.nn.init.zeros_(self.unet.conv_out.weight)
        torch.nn.init.zeros_(self.unet.conv_out.bias)

    def forward(self, sample: torch.Tensor, return_dict: bool = True) -> DecoderOutput | tuple[torch.Tensor]:
        """
        Repairs images.

        Args:
            sample (`torch.Tensor` of shape `(B, 3, H, W)`): Images in [-1, 1], of any size.
            return_dict (`bool`, defaults to `True`): Whether to return an output class instead of a tuple.

        Returns:
            `DecoderOutput` or `tuple`: Images of the same size; not clamped.

        Raises:
            ValueError: If the shape does not fit.
        """
        if sample.ndim != 4 or sample.shape[1] != self.config.in_channels:
            raise ValueError(
                f"`sample` must have shape (batch, {self.config.in_channels}, H, W), got {tuple(sample.shape)}."
            )
        output = sample + run_padded(self.unet, sample, 0)
        return DecoderOutput(sample=output) if return_dict else (output,)
