r"""The denoiser of diffusion on codebook indices: diffusers' `UNet2DModel` with an input and an output for them
(Scribano et al., 2023, sections 3.2 and 4.2).

    parameterization   input                               output
    categorical        numbers z_t (B, c̄, h, w)            logits (B, c̄, |C|, h, w)            eqs 20–25
    continuous         numbers z_t (B, c̄, h, w)            noise (B, c̄, h, w)                  eq 4
    discrete           indices, |C| is the mask            logits (B, c̄, |C|, h, w)            D3PM, the baseline

Everything between is the same network. Self-conditioning (Chen et al., 2023) adds c̄ channels with the last estimate of
z_0, zero where there is none.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin, UNet2DModel
from diffusers.configuration_utils import register_to_config
from diffusers.utils import BaseOutput
from torch import nn

from ..functional.diffusion.categorical import index_to_number
from ..utils import config_checks as checks
from ..utils.model_loading import LasersModelMixin


__all__ = ["CategoricalUNet2DModel", "CategoricalUNet2DOutput"]

#: Blocks of `UNet2DModel` that must stay on one device.
UNET_BLOCKS = ["AttnDownBlock2D", "AttnUpBlock2D", "DownBlock2D", "UNetMidBlock2D", "UpBlock2D"]
PARAMETERIZATIONS = ("categorical", "continuous", "discrete")


#: The paper's about 50 million parameters: four stages, attention only in the middle, self-conditioning.
_PRESETS = {
    "small": {"block_out_channels": (64, 128), "layers_per_block": 1},
    "paper": {
        "block_out_channels": (64, 128, 256, 464),
        "layers_per_block": 2,
        "attention": "middle",
        "norm_num_groups": 16,
        "self_conditioning": True,
    },
}


def run_padded(unet: UNet2DModel, sample: torch.Tensor, timestep: torch.Tensor | float | int) -> torch.Tensor:
    """Output of a U-Net for a sample of any size: its edge is repeated up to sides that the stages divide."""
    height, width = sample.shape[-2:]
    stride = 2 ** (len(unet.config.block_out_channels) - 1)
    pad = (0, -width % stride, 0, -height % stride)
    padded = F.pad(sample, pad, mode="replicate") if any(pad) else sample
    return unet(padded, timestep, return_dict=False)[0][..., :height, :width]


@dataclass
class CategoricalUNet2DOutput(BaseOutput):
    """
    Output of [`CategoricalUNet2DModel`].

    Args:
        sample (`torch.Tensor`): Logits `(B, c̄, |C|, h, w)`, or the noise `(B, c̄, h, w)`.
    """

    sample: torch.Tensor


class CategoricalUNet2DModel(LasersModelMixin, ModelMixin, ConfigMixin):
    r"""
    Creates a denoiser of indices.

    Args:
        num_slots (`int`, defaults to 6): Indices c̄ of a site.
        num_codewords (`int`, defaults to 256): Codewords |C| of each slot.
        parameterization (`str`, defaults to `"categorical"`): `"categorical"`, `"continuous"` or `"discrete"`, see
            above.
        self_conditioning (`bool`, defaults to `False`): Whether the last estimate of z_0 is an input.
        sample_size (`int`, *optional*): Sites down and across that pipelines make by default. Any size works.
        block_out_channels (`tuple[int, ...]`, defaults to `(64, 128)`): Channels of the stages.
        layers_per_block (`int`, defaults to 1): Residual blocks of a stage.
        attention (`str`, defaults to `"middle"`): `"middle"`: between down and up alone, as in the paper; `"low"`: also
            in the lowest stage.
        attention_head_dim (`int`, defaults to 32): Channels of a head.
        embedding_dim (`int`, defaults to 16): Channels of an index's embedding, for `"discrete"`.
        norm_num_groups (`int`, defaults to 32): Groups of the normalisations.
        dropout (`float`, defaults to 0.0): Dropout of the residual blocks.

    Raises:
        ValueError: If an argument is out of range.
    """

    _supports_gradient_checkpointing = True
    _no_split_modules = UNET_BLOCKS
    _config_fields = {
        "num_slots": checks.Integer(1, 4096),
        "num_codewords": checks.Integer(2, 2**20),
        "parameterization": checks.Word(*PARAMETERIZATIONS),
        "self_conditioning": checks.Flag(),
        "sample_size": checks.Optional(checks.Integer(1, 2**16)),
        "block_out_channels": checks.Sequence(checks.CHANNELS, most=12),
        "layers_per_block": checks.Integer(1, 128),
        "attention": checks.Word("middle", "low"),
        "attention_head_dim": checks.CHANNELS,
        "embedding_dim": checks.CHANNELS,
        "norm_num_groups": checks.CHANNELS,
        "dropout": checks.Number(0.0, 1.0),
    }

    @register_to_config
    def __init__(
        self,
        num_slots: int = 6,
        num_codewords: int = 256,
        parameterization: str = "categorical",
        self_conditioning: bool = False,
        sample_size: int | None = None,
        block_out_channels: tuple[int, ...] = (64, 128),
        layers_per_block: int = 1,
        attention: str = "middle",
        attention_head_dim: int = 32,
        embedding_dim: int = 16,
        norm_num_groups: int = 32,
        dropout: float = 0.0,
    ):
        super().__init__()
        checks.check_groups(norm_num_groups, block_out_channels)
        if attention_head_dim > block_out_channels[-1]:
            raise ValueError(
                f"`attention_head_dim` must be at most the last of `block_out_channels`, {block_out_channels[-1]}, "
                f"got {attention_head_dim}."
            )
        inputs = num_slots * (embedding_dim if parameterization == "discrete" else 1) + num_slots * self_conditioning
        outputs = num_slots * (1 if parameterization == "continuous" else num_codewords)
        embedding = num_slots * (num_codewords + 1) * embedding_dim if parameterization == "discrete" else 0
        checks.check_size(
            embedding,
            checks.unet_values(block_out_channels, layers_per_block, inputs, outputs),
            num_slots=num_slots,
            num_codewords=num_codewords,
            block_out_channels=block_out_channels,
            layers_per_block=layers_per_block,
        )
        stages = len(block_out_channels)
        low = ("Attn",) if attention == "low" else ("",)
        self.token_embedding = None
        if parameterization == "discrete":
            self.token_embedding = nn.Embedding(num_slots * (num_codewords + 1), embedding_dim)
        self.unet = UNet2DModel(
            in_channels=inputs,
            out_channels=outputs,
            down_block_types=tuple(f"{kind}DownBlock2D" for kind in [""] * (stages - 1) + list(low)),
            up_block_types=tuple(f"{kind}UpBlock2D" for kind in list(low) + [""] * (stages - 1)),
            block_out_channels=tuple(block_out_channels),
            layers_per_block=layers_per_block,
            attention_head_dim=attention_head_dim,
            norm_num_groups=norm_num_groups,
            dropout=dropout,
        )
        self.unet._no_split_modules = UNET_BLOCKS  # diffusers' own class says nothing, with which `device_map` fails

    @classmethod
    def from_preset(cls, preset: str, **arguments: Any) -> CategoricalUNet2DModel:
        """
        A new model of a known size.

        Args:
            preset (`str`): `"small"`, for a CPU, or `"paper"`, about 50 million parameters.
            **arguments: Arguments of the class; they come before the preset's.

        Returns:
            [`CategoricalUNet2DModel`]: The model.

        Raises:
            ValueError: If there is no such preset.
        """
        if preset not in _PRESETS:
            raise ValueError(f"`preset` must be one of {tuple(_PRESETS)}, got {preset!r}.")
        return cls(**{**_PRESETS[preset], **arguments})

    def forward(
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor | float | int,
        self_condition: torch.Tensor | None = None,
        return_dict: bool = True,
    ) -> CategoricalUNet2DOutput | tuple[torch.Tensor]:
        """
        Logits of the clean indices, or the noise.

        Args:
            sample (`torch.Tensor` of shape `(B, c̄, h, w)`): z_t as numbers, or indices as int64, which count as their
                numbers in [-1, 1]. For `"discrete"` indices, of which |C| is the mask.
            timestep (`torch.Tensor` of shape `(B,)` or a number): t.
            self_condition (`torch.Tensor` of shape `(B, c̄, h, w)`, *optional*): The last estimate of z_0 as numbers.
                Defaults to zeros.
            return_dict (`bool`, defaults to `True`): Whether to return an output class instead of a tuple.

        Returns:
            [`CategoricalUNet2DOutput`] or `tuple`: Logits `(B, c̄, |C|, h, w)`; for `"continuous"` the noise
            `(B, c̄, h, w)`.

        Raises:
            ValueError: If the shapes or dtypes do not fit.
        """
        slots, codewords = self.config.num_slots, self.config.num_codewords
        if sample.ndim != 4 or sample.shape[1] != slots:
            raise ValueError(f"`sample` must have shape (batch, {slots}, h, w), got {tuple(sample.shape)}.")
        if self_condition is not None and (not self.config.self_conditioning or self_condition.shape != sample.shape):
            raise ValueError(
                f"`self_condition` must have the shape of `sample`, {tuple(sample.shape)}, and needs a model with "
                "self_conditioning, got "
                f"{tuple(self_condition.shape)} and self_conditioning={self.config.self_conditioning}."
            )
        are_indices = not sample.is_floating_point()
        if self.token_embedding is not None:
            if not are_indices:
                raise ValueError(f"`sample` must be int64 indices for 'discrete', got {sample.dtype}.")
            first = (codewords + 1) * torch.arange(slots, device=sample.device).view(1, -1, 1, 1)
            features = self.token_embedding(sample + first).permute(0, 1, 4, 2, 3).flatten(1, 2)  # (B, c̄ e, h, w)
        else:
            features = index_to_number(sample, codewords) if are_indices else sample
        features = features.to(self.unet.dtype)
        if self.config.self_conditioning:
            last = torch.zeros(sample.shape, device=sample.device) if self_condition is None else self_condition
            features = torch.cat([features, last.to(features.dtype)], dim=1)
        output = run_padded(self.unet, features, timestep)
        if self.config.parameterization != "continuous":
            output = output.unflatten(1, (slots, codewords))
        return CategoricalUNet2DOutput(sample=output) if return_dict else (output,)
