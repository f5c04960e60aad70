r"""The dictionary-learning autoencoder of LASERS (2024): encoder, bottleneck, decoder.

    x ─ encoder → z_e ─ bottleneck → ẑ_e ─ decoder → x̂

One encoder and decoder serve every bottleneck (dictionary, VQ, residual VQ, FSQ, scalar, none), so that they can be
compared at equal network and equal rate. As in diffusers' `VQModel`, `encode` gives the latents *before* the bottleneck
and `decode` takes such latents through it, so that a stock pipeline's latents are coded on their way to the image;
`encode_to_code` and `decode_from_code` give and take the code itself.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.activations import ACT2CLS
from diffusers.models.autoencoders.vae import AutoencoderMixin, DecoderOutput
from diffusers.utils import BaseOutput
from diffusers.utils.accelerate_utils import apply_forward_hook
from torch.nn import functional as F

from ...coding import Code
from ...functional.images.patch_signals import patch_grid
from ...learning.principal_axes import mean_and_covariance, principal_axes
from ...utils import config_checks as checks
from ...utils.model_loading import LasersModelMixin
from ..bottlenecks import (
    DictionaryBottleneck,
    EntropyScalarBottleneck,
    ExternalQuantizerBottleneck,
    FSQBottleneck,
    IdentityBottleneck,
    ResidualVQBottleneck,
    VectorQuantizerBottleneck,
)
from ..image_coder import BottleneckCoder
from .networks import build_networks
from .residual import STEM, set_transform
from .tiling import TiledNetworks


__all__ = ["AutoencoderDL", "AutoencoderDLEncoderOutput", "AutoencoderDLOutput"]

BOTTLENECKS = {
    "dictionary": DictionaryBottleneck,
    "vq": VectorQuantizerBottleneck,
    "residual_vq": ResidualVQBottleneck,
    "fsq": FSQBottleneck,
    "scalar": EntropyScalarBottleneck,
    "external": ExternalQuantizerBottleneck,
    "none": IdentityBottleneck,
}

# The bottleneck of LASERS as its text has it, and with coefficients of a stated rate (docs: conceptual/design). How the
# two differ in training is the training script's matter.
PRESETS = {
    "paper": {"bottleneck_config": {"num_atoms": 512, "sparsity": 5, "patch_size": 1}},
    "corrected": {
        **{"backbone": "residual", "block_out_channels": (128,)},
        "bottleneck_config": {"num_atoms": 512, "sparsity": 5, "patch_size": 1, "coefficient_bits": 8},
    },
}


@dataclass
class AutoencoderDLEncoderOutput(BaseOutput):
    """
    Output of [`AutoencoderDL.encode`].

    Args:
        latents (`torch.Tensor` of shape `(B, latent_channels, h, w)`): Latents before the bottleneck.
    """

    latents: torch.Tensor


@dataclass
class AutoencoderDLOutput(BaseOutput):
    """
    Output of [`AutoencoderDL.forward`].

    Args:
        sample (`torch.Tensor` of shape `(B, out_channels, H, W)`): Reconstruction.
        loss (`torch.Tensor`): Weighted bottleneck losses (LASERS, 2024, second and third term of eqs 3 and 13),
            0-dimensional.
        commitment_loss (`torch.Tensor`): Commitment loss, unweighted and without gradient.
        codebook_loss (`torch.Tensor`): Dictionary or codebook loss, unweighted and without gradient.
        latents (`torch.Tensor` of shape `(B, latent_channels, h, w)`): Latents before the bottleneck, z_e.
        quantized_latents (`torch.Tensor` of shape `(B, latent_channels, h, w)`): Latents after it, ẑ_e.
        code ([`SparseCode`] or [`IndexCode`], *optional*): The code, without gradient.
        rate (`torch.Tensor`, *optional*): Mean bits a pixel of the code under the bottleneck's running tables or
            density; 0-dimensional, without gradient. `None` for a bottleneck without.
    """

    sample: torch.Tensor
    loss: torch.Tensor | None = None
    commitment_loss: torch.Tensor | None = None
    codebook_loss: torch.Tensor | None = None
    latents: torch.Tensor | None = None
    quantized_latents: torch.Tensor | None = None
    code: Code | None = None
    rate: torch.Tensor | None = None


class AutoencoderDL(LasersModelMixin, BottleneckCoder, TiledNetworks, ModelMixin, AutoencoderMixin, ConfigMixin):
    r"""
    An autoencoder whose latents are coded by a learned dictionary (DL-VAE of LASERS, 2024) or by a baseline bottleneck.

    Images are `(B, in_channels, H, W)` in [−1, 1], of any size: they are padded to a multiple of the downsampling
    factor f by repeating their edge, and reconstructions are cropped back. With n widths, f is 2^(n − 1), and
    4 · 2^(n − 1) for the backbone `"residual"`.

    Args:
        in_channels (`int`, defaults to 3): Channels of the images.
        out_channels (`int`, defaults to 3): Channels of the reconstructions.
        backbone (`str`, defaults to `"light"`): Encoder and decoder: `"residual"` (a linear transform and a learned
            residual, after DC-AE), `"light"` (LASERS, section 5) or `"diffusers"` (the blocks of `AutoencoderKL`, with
            group norm and attention).
        block_out_channels (`tuple[int, ...]`, defaults to `(64, 128, 128)`): Widths from fine to coarse; each but the
            last is halved after. In `"residual"` the first is that of a quarter of the sides, and each is 1, 2 or 4
            times the one before.
        layers_per_block (`int`, defaults to 2): Residual blocks; of each resolution, but for `"light"`.
        residual_channels (`int`, defaults to 32): Channels inside a residual block of `"residual"` and `"light"`.
        latent_channels (`int`, defaults to 16): Channels L of the latents.
        bottleneck_type (`str`, defaults to `"dictionary"`): `"dictionary"`, `"vq"`, `"residual_vq"`, `"fsq"`,
            `"scalar"`, `"external"` or `"none"`.
        bottleneck_config (`dict`, *optional*): Arguments of the bottleneck's class, without `latent_channels`.
        act_fn (`str`, defaults to `"silu"`): Activation of `"diffusers"`.
        norm_num_groups (`int`, defaults to 32): Groups of its group norm.
        mid_block_add_attention (`bool`, defaults to `True`): Whether it has attention at the lowest resolution.
        sample_size (`int`, defaults to 32): Side of the training images, for pipelines that ask.
        scaling_factor (`float`, defaults to 1.0): Factor that pipelines multiply latents with before diffusion.
        shift_factor (`float`, *optional*): Shift that pipelines subtract before that.
        force_upcast (`bool`, defaults to `False`): Whether pipelines decode in float32.

    Raises:
        ValueError: On an unknown `backbone` or `bottleneck_type`, or arguments that the bottleneck refuses.
    """

    _supports_gradient_checkpointing = True
    _supports_group_offloading = False
    _no_split_modules = [
        "ResidualBlock",
        "ResidualUnit",
        "ResnetBlock2D",
        *(bottleneck.__name__ for bottleneck in BOTTLENECKS.values()),
    ]
    _keep_in_fp32_modules = ["bottleneck"]
    _skip_layerwise_casting_patterns = ["bottleneck"]
    _config_fields = {
        "in_channels": checks.CHANNELS,
        "out_channels": checks.CHANNELS,
        "backbone": checks.Word("diffusers", "light", "residual"),
        "block_out_channels": checks.Sequence(checks.CHANNELS, least=1, most=12),
        "layers_per_block": checks.Integer(0, 128),
        "residual_channels": checks.CHANNELS,
        "latent_channels": checks.CHANNELS,
        "bottleneck_type": checks.Word(*sorted(BOTTLENECKS)),
        "bottleneck_config": checks.Optional(checks.Arguments()),
        "act_fn": checks.Word(*sorted(ACT2CLS)),
        "norm_num_groups": checks.CHANNELS,
        "mid_block_add_attention": checks.Flag(),
        "sample_size": checks.Integer(1, 2**16),
        "scaling_factor": checks.Number(low=0.0, above=True),
        "shift_factor": checks.Optional(checks.Number()),
        "force_upcast": checks.Flag(),
    }

    @register_to_config
    def __init__(
        self,
        in_channels: int = 3,
        out_channels: int = 3,
        backbone: str = "light",
        block_out_channels: tuple[int, ...] = (64, 128, 128),
        layers_per_block: int = 2,
        residual_channels: int = 32,
        latent_channels: int = 16,
        bottleneck_type: str = "dictionary",
        bottleneck_config: dict | None = None,
        act_fn: str = "silu",
        norm_num_groups: int = 32,
        mid_block_add_attention: bool = True,
        sample_size: int = 32,
        scaling_factor: float = 1.0,
        shift_factor: float | None = None,
        force_upcast: bool = False,
    ):
        super().__init__()
        arguments = dict(bottleneck_config or {})
        _, _, *known = inspect.signature(
            BOTTLENECKS[bottleneck_type].__init__
        ).parameters  # less self, latent_channels
        if not set(arguments) <= set(known):
            raise ValueError(
                f"`bottleneck_config` must hold arguments of {BOTTLENECKS[bottleneck_type].__name__}, among {known}, "
                f"got {sorted(arguments)}."
            )
        self.encoder, self.decoder = build_networks(self.config)
        self.bottleneck = BOTTLENECKS[bottleneck_type](latent_channels=latent_channels, **arguments)

    @classmethod
    def from_preset(cls, name: str, **overrides) -> AutoencoderDL:
        """
        A new model with the bottleneck of LASERS, 512 atoms of which 5 code a site: `"paper"` with its light networks
        and float32 coefficients, `"corrected"` with residual networks and coefficients of 8 bits. They cost 198 and 85
        bits a site.

        Args:
            name (`str`): `"paper"` or `"corrected"`.
            **overrides: Arguments of the class that replace the preset's; those in `bottleneck_config` are merged into
            it.

        Returns:
            [`AutoencoderDL`]: A model with random weights.

        Raises:
            ValueError: On an unknown name.
        """
        if name not in PRESETS:
            raise ValueError(f"`name` must be one of {sorted(PRESETS)}, got {name!r}.")
        preset = dict(PRESETS[name])
        if overrides.get("backbone", preset.get("backbone")) != preset.get("backbone"):
            preset.pop("block_out_channels", None)  # widths are those of a backbone
        arguments = {**preset, **overrides}
        if overrides.get("bottleneck_type", "dictionary") == "dictionary":
            arguments["bottleneck_config"] = {
                **PRESETS[name]["bottleneck_config"],
                **(overrides.get("bottleneck_config") or {}),
            }
        else:
            arguments["bottleneck_config"] = overrides.get("bottleneck_config")
        return cls(**arguments)

    @torch.no_grad()
    def initialize(
        self, images: torch.Tensor | Iterable[torch.Tensor], generator: torch.Generator | None = None
    ) -> None:
        """
        Starts from images in closed form; call it once, before training, on all ranks. With the backbone `"residual"`
        the linear transform of the networks becomes the principal components of image patches, and the latents get mean
        0 and variance 1. Then the bottleneck starts from latents of the images, 16 sites a symbol.

        Args:
            images (`torch.Tensor` of shape `(B, in_channels, H, W)`, or an iterable of such tensors): Images in
                [−1, 1], this rank's share; an iterable is read twice.
            generator (`torch.Generator`, *optional*): Source of randomness of the bottleneck.

        Raises:
            ValueError: If there is no image, one is not finite, `images` can be read only once, or the images that go
                in have other channels than those that come out.
        """
        images = [images] if torch.is_tensor(images) else images
        if iter(images) is images:
            raise ValueError("`images` must be readable twice, got an iterator: give a list.")
        ends = (self.config.in_channels, self.config.out_channels)
        if self.config.backbone == "residual" and ends[0] != ends[1]:
            raise ValueError(f"`in_channels` and `out_channels` must be the same to start from images, got {ends}.")
        if self.config.backbone == "residual":
            factor, device = self.downsampling_factor, self.device
            patches = (F.pixel_unshuffle(self._padded(batch.to(device)), factor) for batch in images)
            mean, covariance = mean_and_covariance(batch.permute(0, 2, 3, 1).flatten(0, 2) for batch in patches)
            axes = principal_axes(covariance)
            set_transform(self.encoder, self.decoder, mean, *axes, self.bottleneck.latent_evenness)
        latents, sites = [], 0
        for batch in images:
            latents.append(self.encode(batch.to(self.device, self.dtype)).latents)
            sites += latents[-1][:, 0].numel()
            if sites >= 16 * max(self.bottleneck.num_symbols, 1) * self.bottleneck.patch_size**2:
                break
        if not latents:
            raise ValueError("`images` must hold at least one batch, got none.")
        self.bottleneck.initialize(torch.cat(latents), generator=generator)

    @property
    def downsampling_factor(self) -> int:
        """Image pixels a latent position, along each side."""
        stem = STEM if self.config.backbone == "residual" else 1
        return stem * 2 ** (len(self.config.block_out_channels) - 1)

    @property
    def last_layer(self) -> torch.nn.Parameter:
        """
        Weight of the decoder's last layer, at which the adaptive weight of LASERS (2024), eq 16, compares gradients.
        """
        return (self.decoder.up[-1] if self.config.backbone == "light" else self.decoder.conv_out).weight

    @apply_forward_hook
    def encode(self, x: torch.Tensor, return_dict: bool = True) -> AutoencoderDLEncoderOutput | tuple[torch.Tensor]:
        """
        Latents of images, before the bottleneck.

        Args:
            x (`torch.Tensor` of shape `(B, in_channels, H, W)`): Images in [−1, 1].
            return_dict (`bool`, defaults to `True`): Whether to return an output class instead of a tuple.

        Returns:
            [`AutoencoderDLEncoderOutput`] or `tuple`: Latents `(B, latent_channels, ⌈H/f⌉, ⌈W/f⌉)`.
        """
        latents = self._sliced(self._encode, x)
        return AutoencoderDLEncoderOutput(latents=latents) if return_dict else (latents,)

    @apply_forward_hook
    def decode(
        self,
        z: torch.Tensor,
        force_not_quantize: bool = False,
        return_dict: bool = True,
        generator: torch.Generator | None = None,
    ) -> DecoderOutput | tuple[torch.Tensor]:
        """
        Images of latents, which pass the bottleneck first.

        Args:
            z (`torch.Tensor` of shape `(B, latent_channels, h, w)`): Latents, as `encode` gives them.
            force_not_quantize (`bool`, defaults to `False`): Whether to skip the bottleneck.
            return_dict (`bool`, defaults to `True`): Whether to return an output class instead of a tuple.
            generator (`torch.Generator`, *optional*): Taken for compatibility with pipelines; decoding is
                deterministic.

        Returns:
            `DecoderOutput` or `tuple`: Images `(B, out_channels, f·h, f·w)`.
        """
        quantized = z if force_not_quantize else self._sliced(lambda part: self.bottleneck(part).latents, z)
        sample = self._sliced(self._decode, quantized)
        return DecoderOutput(sample=sample) if return_dict else (sample,)

    @apply_forward_hook
    @torch.no_grad()
    def encode_to_code(self, x: torch.Tensor, rate_weight: float | None = None, prior: Any = None) -> Code:
        """
        The code of images.

        Args:
            x (`torch.Tensor` of shape `(B, in_channels, H, W)`): Images in [−1, 1].
            rate_weight (`float`, *optional*): λ of this call: the code is that of the least error plus λ · bits. See
                [`Bottleneck.encode_to_code`]. Defaults to `None`: as the model was trained.
            prior ([`FactorizedPrior`], *optional*): The model's prior, whose bits count.

        Returns:
            [`SparseCode`] or [`IndexCode`]: The code, with the images' size.

        Raises:
            ValueError: If the model has no bottleneck, or λ and prior do not fit.
        """
        code = self.bottleneck.encode(self._sliced(self._encode, x), rate_weight, prior)
        return replace(code, image_size=tuple(x.shape[-2:]))

    @apply_forward_hook
    def decode_from_code(self, code: Code, return_dict: bool = True) -> DecoderOutput | tuple[torch.Tensor]:
        """
        Images of a code.

        Args:
            code ([`SparseCode`] or [`IndexCode`]): A code of this model.
            return_dict (`bool`, defaults to `True`): Whether to return an output class instead of a tuple.

        Returns:
            `DecoderOutput` or `tuple`: Images, cropped to the code's `image_size` where it has one.

        Raises:
            ValueError: If it is no code of this model, or its latents are not those of an image of its `image_size`.
        """
        latents, size = self.bottleneck.decode(code), code.image_size
        fitting = None if size is None else patch_grid(*size, self.downsampling_factor)
        if fitting not in (None, code.latent_size):
            raise ValueError(f"`code` must have the latents of an image of {size}, {fitting}, got {code.latent_size}.")
        sample = self._sliced(self._decode, latents.to(self.dtype))
        if size is not None:
            sample = sample[..., : size[0], : size[1]]
        return DecoderOutput(sample=sample) if return_dict else (sample,)

    def forward(self, sample: torch.Tensor, return_dict: bool = True) -> AutoencoderDLOutput | tuple:
        """
        Reconstructs images, with the losses of the bottleneck.

        Args:
            sample (`torch.Tensor` of shape `(B, in_channels, H, W)`): Images in [−1, 1].
            return_dict (`bool`, defaults to `True`): Whether to return an output class instead of a tuple.

        Returns:
            [`AutoencoderDLOutput`] or `tuple`: The reconstruction and, in training, the loss to add to its own.
        """
        height, width = sample.shape[-2:]
        latents = self._sliced(self._encode, sample)
        bottleneck = self.bottleneck(latents)
        code, rate = bottleneck.code, bottleneck.rate
        if code is not None:
            code = replace(code, image_size=(height, width))
        if rate is not None:  # a site codes p²·L values, those of padding included
            values = code.num_sites * self.bottleneck.patch_size**2 * self.config.latent_channels
            rate = rate * (values / (len(code) * height * width))
        output = AutoencoderDLOutput(
            sample=self._sliced(self._decode, bottleneck.latents)[..., :height, :width],
            loss=bottleneck.loss,
            commitment_loss=bottleneck.commitment_loss,
            codebook_loss=bottleneck.codebook_loss,
            latents=latents,
            quantized_latents=bottleneck.latents,
            code=code,
            rate=rate,
        )
        return output if return_dict else output.to_tuple()

    def save_config(self, save_directory: str, push_to_hub: bool = False, **kwargs) -> None:
        """Saves the configuration, with that of the bottleneck as it is now. See `ConfigMixin.save_config`."""
        now = self.bottleneck.config.items()
        now = {name: value for name, value in now if name != "latent_channels" and not name.startswith("_")}
        self.register_to_config(bottleneck_config=now)
        super().save_config(save_directory, push_to_hub=push_to_hub, **kwargs)

    def summary(self) -> dict[str, Any]:
        """Geometry and rate, at `sample_size`, and the summary of the bottleneck; see [`Coder.summary`]."""
        size, side = self.config.sample_size, self.pixels_per_site
        rate = {
            "downsampling_factor": self.downsampling_factor,
            "pixels_per_site": f"{side} × {side}",
            "sample_size": size,
            "bits_per_pixel": self.bits_per_pixel(size, size),
            "compression_ratio": 24 / self.bits_per_pixel(size, size),
        }
        bottleneck = {"type": self.config.bottleneck_type} | self.bottleneck.summary()["bottleneck"]
        return {"rate": rate, "bottleneck": bottleneck}

    def _check_has_indices(self) -> None:
        if self.config.bottleneck_type not in ("vq", "residual_vq"):
            raise ValueError(
                "An autoencoder's `bottleneck_type` must be 'vq' or 'residual_vq' to have indices, got "
                f"{self.config.bottleneck_type!r}."
            )
