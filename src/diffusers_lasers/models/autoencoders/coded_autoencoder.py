r"""Any autoencoder of diffusers with a bottleneck between its denoiser and its decoder (LASERS, 2024, section 12.3).

    prompt ─ denoiser → z ─ bottleneck → ẑ ─ decoder → image

[`CodedAutoencoder`] stands as `vae` in any pipeline. It passes everything on to the autoencoder inside, but codes the
latents that `decode` gets, on the scale that denoisers see (`diffusers_latents.py`).
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.models.autoencoders.vae import DecoderOutput
from diffusers.utils.accelerate_utils import apply_forward_hook
from torch.nn import functional as F

from ...coding import Code
from ...utils.config_checks import described
from ...utils.files import write_text
from ...utils.hub import LasersHubMixin
from ..bottlenecks import Bottleneck
from ..image_coder import BottleneckCoder
from ..priors import FactorizedPrior
from .diffusers_latents import (
    decode_latents,
    encode_latents,
    for_bottleneck,
    from_denoiser,
    is_of_video,
    latent_channels,
    spatial_factor,
    to_denoiser,
    without_own_bottleneck,
)


__all__ = ["CodedAutoencoder"]

_KINDS = {"autoencoder": ModelMixin, "bottleneck": Bottleneck, "prior": FactorizedPrior}
_HUB_ARGUMENTS = ("repo_id", "commit_message", "private", "create_pr", "token")
_LIBRARIES = ("diffusers", "diffusers_lasers")


class _SavedInParts:
    """Saves and loads a model whose parts are models, each in a folder of its name."""

    def save_pretrained(self, save_directory: str | os.PathLike, *args: Any, push_to_hub: bool = False, **kwargs: Any):
        """Saves each part in a folder of its name, and config.json, which names their classes."""
        import diffusers

        hub = {name: kwargs.pop(name) for name in _HUB_ARGUMENTS if name in kwargs}
        folder, classes = Path(save_directory), {"_class_name": type(self).__name__}
        for name in _KINDS:
            part = getattr(self, name)
            if part is not None:
                library = type(part).__module__.split(".")[0]
                classes[name] = [library, type(part).__name__]
                part.save_pretrained(folder / name, *args, **kwargs)
        classes["_diffusers_version"] = diffusers.__version__
        if kwargs.get("is_main_process", True):
            write_text(folder / self.config_name, json.dumps(classes, indent=2, sort_keys=True) + "\n")
        if push_to_hub and kwargs.get("is_main_process", True):
            self.push_to_hub(hub.pop("repo_id", folder.name), **hub)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike, *args: Any, **kwargs: Any):
        """
        Loads what `save_pretrained` wrote.

        Args:
            pretrained_model_name_or_path (`str` or `os.PathLike`): A folder, or a repository on the Hub.
            *args: Further arguments of `ModelMixin.from_pretrained`, for each part.
            **kwargs: The same, such as `torch_dtype`, `subfolder`, `variant`, `revision`.

        Raises:
            ValueError: If config.json names other parts or classes of other libraries.
        """
        import diffusers

        places = ("subfolder", "cache_dir", "force_download", "proxies", "local_files_only", "token", "revision")
        where = {name: kwargs[name] for name in places if name in kwargs}
        classes = cls.load_config(pretrained_model_name_or_path, **where)
        subfolder, parts = kwargs.pop("subfolder", None), {}
        for name in _KINDS:
            named = classes.get(name)
            if named is None and name == "prior":
                continue
            known = isinstance(named, list) and len(named) == 2 and named[0] in _LIBRARIES
            model = getattr(diffusers, str(named[1]), None) if known else None
            if not isinstance(model, type) or not issubclass(model, _KINDS[name]) or not hasattr(model, "config"):
                raise ValueError(
                    f"`{name}` in {cls.config_name} must name a class of that kind in {' or '.join(_LIBRARIES)}, got "
                    f"{named!r}."
                )
            place = "/".join(part for part in (subfolder, name) if part)
            parts[name] = model.from_pretrained(pretrained_model_name_or_path, *args, subfolder=place, **kwargs)
        return cls(**parts)


class CodedAutoencoder(LasersHubMixin, _SavedInParts, BottleneckCoder, ModelMixin, ConfigMixin):
    r"""
    An autoencoder of diffusers with a bottleneck. As `vae` of a pipeline it decodes the code of the latents in place of
    the latents. All else is the autoencoder's: `config`, attributes, `encode`, tiling, slicing. A cast to another type
    casts the autoencoder and leaves the bottleneck in float32.

    Args:
        autoencoder (`ModelMixin`): An autoencoder of images, such as `AutoencoderKL`, `AutoencoderTiny`,
            `AutoencoderDC`, `AutoencoderKLFlux2`, `AutoencoderKLQwenImage`, or of video, such as `AutoencoderKLWan`,
            whose latents `(B, L, t, h, w)` are coded frame by frame.
        bottleneck ([`Bottleneck`]): Codes latents on the denoiser's scale; see `fit_bottleneck`. It stays in evaluation
            mode. Where denoisers see patches of 2 × 2 (Flux.2), it may have L channels or 4 L.
        prior ([`FactorizedPrior`], *optional*): For [`compress`].

    Raises:
        ValueError: If the bottleneck has another number of channels than the latents, or the prior is of another
            bottleneck.

    Example:

    ```py
    >>> import torch
    >>> from diffusers import AutoencoderTiny
    >>> from diffusers_lasers import CodedAutoencoder, ScalarQuantizerBottleneck

    >>> vae = CodedAutoencoder(AutoencoderTiny(), ScalarQuantizerBottleneck(latent_channels=4, bits=8))
    >>> code = vae.encode_to_code(torch.rand(1, 3, 64, 64) * 2 - 1)
    >>> len(vae.pack(code)), vae.decode_from_code(code).sample.shape
    (286, torch.Size([1, 3, 64, 64]))
    ```
    """

    config_name = "config.json"
    _supports_gradient_checkpointing = False
    _supports_group_offloading = False

    def __init__(self, autoencoder: ModelMixin, bottleneck: Bottleneck, prior: FactorizedPrior | None = None):
        super().__init__()
        given = {"autoencoder": autoencoder, "bottleneck": bottleneck, "prior": prior}
        for name, kind in _KINDS.items():
            if not isinstance(given[name], kind) and (name, given[name]) != ("prior", None):
                raise ValueError(f"`{name}` must be a {kind.__name__}, got {type(given[name]).__name__}.")
        channels, expected = bottleneck.config.latent_channels, latent_channels(autoencoder)
        if expected is not None and channels not in expected:
            raise ValueError(
                f"`bottleneck` must be made for {' or '.join(map(str, expected))} latent channels as the autoencoder "
                f"has them, got {channels}."
            )
        if prior is not None and int(prior.coder_fingerprint) != bottleneck.fingerprint:
            raise ValueError("`prior` must be that of the codes of `bottleneck`, got that of other weights.")
        self.autoencoder = autoencoder
        self.bottleneck = bottleneck.eval()
        self.prior = prior

    def __getattr__(self, name: str) -> Any:
        modules = self.__dict__.get("_modules", {})
        if name in modules:
            return modules[name]
        if "autoencoder" not in modules or name.startswith("__"):
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        return getattr(modules["autoencoder"], name)

    def __setattr__(self, name: str, value: Any) -> None:
        """Settings of the autoencoder, such as `use_slicing`, are set in it."""
        inside = self.__dict__.get("_modules", {}).get("autoencoder")
        own = name.startswith("_") or name in self.__dict__ or hasattr(type(self), name) or name in _KINDS
        if own or inside is None or not hasattr(inside, name):
            super().__setattr__(name, value)
        else:
            setattr(inside, name, value)

    def _apply(self, fn: Callable, recurse: bool = True) -> CodedAutoencoder:
        """
        A cast of the model, as pipelines make around their decoder, casts the autoencoder. Bottleneck and prior only
        change devices: in half precision they would make other codes, also after a cast back.
        """

        def moved(tensor: torch.Tensor) -> torch.Tensor:
            changed = fn(tensor)
            return changed if changed.dtype == tensor.dtype else tensor.to(changed.device)

        for name, part in self.named_children():
            part._apply(fn if name == "autoencoder" else moved, recurse)
        return self

    def train(self, mode: bool = True) -> CodedAutoencoder:
        """Training mode of the autoencoder; the bottleneck stays as it was fitted."""
        super().train(mode)
        self.bottleneck.eval()
        return self

    def register_to_config(self, **kwargs: Any) -> None:
        """Changes the autoencoder's configuration, as some pipelines do."""
        self.autoencoder.register_to_config(**kwargs)

    @property
    def config(self) -> Any:
        """The autoencoder's configuration, which pipelines read."""
        return self.autoencoder.config

    @property
    def downsampling_factor(self) -> int:
        """Image pixels a position of the coded latents, along each side."""
        return spatial_factor(self.autoencoder) * (2 if self._is_patched else 1)

    @property
    def _is_patched(self) -> bool:
        """Whether the bottleneck codes patches of 2 × 2 latents."""
        expected = latent_channels(self.autoencoder)
        return expected is not None and len(expected) > 1 and self.bottleneck.config.latent_channels == expected[1]

    def compress(self, code: Code) -> bytes:
        """A code as bytes by the prior; see [`FactorizedPrior.compress`]. A `ValueError` without one."""
        return self._needed_prior().compress(code)

    def decompress(self, data: bytes, **kwargs: Any) -> Code:
        """The code of compressed bytes; see [`FactorizedPrior.decompress`]. A `ValueError` without a prior."""
        return self._needed_prior().decompress(data, **kwargs)

    def _needed_prior(self) -> FactorizedPrior:
        if self.prior is None:
            raise ValueError(
                "`prior` must be that of the codes of `bottleneck`, got None: give `prior=...`, or use `pack`."
            )
        return self.prior

    @torch.no_grad()
    def latents_to_code(self, latents: torch.Tensor) -> Code:
        """
        The code of latents, which `decode` puts in their place.

        Args:
            latents (`torch.Tensor` of shape `(B, L, h, w)` or `(B, L, t, h, w)`): Latents as `decode` takes them.

        Returns:
            [`SparseCode`] or [`IndexCode`]: Their code; of video with B · t images.

        Raises:
            ValueError: If the bottleneck makes no codes.
        """
        return self.bottleneck.encode(self._to_bottleneck(latents))

    def code_to_latents(self, code: Code, frames: int | None = None) -> torch.Tensor:
        """
        Latents that a code stands for.

        Args:
            code ([`SparseCode`] or [`IndexCode`]): A code of this model.
            frames (`int`, *optional*): Latent frames t of a video. Defaults to `None`: the code is of images.

        Returns:
            `torch.Tensor` of shape `(B, L, h, w)` or `(B, L, t, h, w)`: Latents as `decode` of the autoencoder inside
            takes them; t is 1 for images of an autoencoder of video.

        Raises:
            ValueError: If the code's images are no multiple of `frames`, or the autoencoder is of images.
        """
        latents = from_denoiser(self.autoencoder, self._denoiser_latents(code, frames))
        return latents[:, :, None] if latents.ndim == 4 and is_of_video(self.autoencoder) else latents

    def _denoiser_latents(self, code: Code, frames: int | None) -> torch.Tensor:
        coded = self.bottleneck.decode(code).to(self.autoencoder.dtype)
        if frames is None:
            return self._patched(coded)
        if not isinstance(frames, int) or frames < 1 or len(code) % frames or not is_of_video(self.autoencoder):
            raise ValueError(
                f"`frames` must divide the {len(code)} images of a code of video, got {frames} with "
                f"{type(self.autoencoder).__name__}."
            )
        return coded.unflatten(0, (-1, frames)).transpose(1, 2)

    @apply_forward_hook
    def encode(self, *args: Any, **kwargs: Any) -> Any:
        """What the autoencoder's `encode` gives; the bottleneck has no part in it."""
        return self.autoencoder.encode(*args, **kwargs)

    @apply_forward_hook
    def decode(self, z: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        """
        What the autoencoder's `decode` gives of the code of latents.

        Args:
            z (`torch.Tensor` of shape `(B, L, h, w)` or `(B, L, t, h, w)`): Latents as the autoencoder's `encode` gives
                them.
            *args: Further arguments of the autoencoder's `decode`.
            **kwargs: The same.

        Returns:
            What `decode` of the autoencoder gives.
        """
        if self.levels:
            coded = self.bottleneck(self._to_bottleneck(z)).latents.to(z.dtype)
            if z.ndim == 5:
                coded = coded.unflatten(0, (z.shape[0], z.shape[2])).transpose(1, 2)
            z = from_denoiser(self.autoencoder, self._patched(coded))
            kwargs = kwargs | without_own_bottleneck(self.autoencoder)
        return self.autoencoder.decode(z, *args, **kwargs)

    def _to_bottleneck(self, latents: torch.Tensor) -> torch.Tensor:
        return self._as_coded(to_denoiser(self.autoencoder, latents))

    def _as_coded(self, scaled: torch.Tensor) -> torch.Tensor:
        return for_bottleneck(self.autoencoder, scaled, self.bottleneck.config.latent_channels)

    def _patched(self, coded: torch.Tensor) -> torch.Tensor:
        """Decoded latents on the denoiser's scale: in patches where it sees these and the bottleneck does not."""
        channels = latent_channels(self.autoencoder)
        split = channels is not None and len(channels) > 1 and coded.shape[1] == channels[0]
        return F.pixel_unshuffle(coded, 2) if split else coded

    def _padded(self, x: torch.Tensor) -> torch.Tensor:
        """Images whose sides the autoencoder divides, of its type."""
        factor = spatial_factor(self.autoencoder) * len(latent_channels(self.autoencoder) or (1,))
        height, width = x.shape[-2:]
        margin = (0, -width % factor, 0, -height % factor)
        if any(margin):
            frames = F.pad(x.transpose(1, 2).flatten(0, 1) if x.ndim == 5 else x, margin, mode="replicate")
            x = frames.unflatten(0, (x.shape[0], x.shape[2])).transpose(1, 2) if x.ndim == 5 else frames
        return x.to(self.autoencoder.dtype)

    @apply_forward_hook
    @torch.no_grad()
    def encode_to_code(
        self, x: torch.Tensor, rate_weight: float | None = None, prior: FactorizedPrior | None = None
    ) -> Code:
        """
        The code of images or videos.

        Args:
            x (`torch.Tensor` of shape `(B, 3, H, W)` or `(B, 3, T, H, W)`): Images in [−1, 1]. Sides that the
                autoencoder does not divide are padded by repeating the edge.
            rate_weight (`float`, *optional*): λ of a choice by error and bits, see [`Bottleneck.encode`].
            prior ([`FactorizedPrior`], *optional*): Whose bits count then. Defaults to the model's own.

        Returns:
            [`SparseCode`] or [`IndexCode`]: The code, with the images' size; of a video its latent frames in turn.

        Raises:
            ValueError: If the bottleneck makes no codes, or `x` has another shape.
        """
        if not torch.is_tensor(x) or x.ndim != 4 and not (x.ndim == 5 and is_of_video(self.autoencoder)):
            raise ValueError(
                "`x` must be images (B, 3, H, W), or videos (B, 3, T, H, W) for an autoencoder of video, got "
                f"{described(x)}."
            )
        latents = self._as_coded(encode_latents(self.autoencoder, self._padded(x)))
        code = self.bottleneck.encode(latents, rate_weight, self.prior if prior is None else prior)
        return replace(code, image_size=tuple(x.shape[-2:]))

    @apply_forward_hook
    def decode_from_code(
        self,
        code: Code,
        frames: int | None = None,
        return_dict: bool = True,
        generator: torch.Generator | None = None,
    ) -> DecoderOutput | tuple[torch.Tensor]:
        """
        Images or videos of a code.

        Args:
            code ([`SparseCode`] or [`IndexCode`]): A code of this model.
            frames (`int`, *optional*): Latent frames of a video; see [`code_to_latents`].
            return_dict (`bool`, defaults to `True`): Whether to return an output class instead of a tuple.
            generator (`torch.Generator`, *optional*): For decoders that draw.

        Returns:
            `DecoderOutput` or `tuple`: Images `(B, 3, H, W)` or videos `(B, 3, T, H, W)`, cropped to the code's
            `image_size` where it has one.
        """
        sample = decode_latents(self.autoencoder, self._denoiser_latents(code, frames), generator)
        if code.image_size is not None:
            sample = sample[..., : code.image_size[0], : code.image_size[1]]
        return DecoderOutput(sample=sample) if return_dict else (sample,)

    def forward(self, sample: torch.Tensor, return_dict: bool = True) -> DecoderOutput | tuple[torch.Tensor]:
        """
        Reconstructs images from their codes; without codes, as the autoencoder does.

        Args:
            sample (`torch.Tensor` of shape `(B, 3, H, W)` or `(B, 3, T, H, W)`): Images in [−1, 1].
            return_dict (`bool`, defaults to `True`): Whether to return an output class instead of a tuple.

        Returns:
            `DecoderOutput` or `tuple`: The reconstruction.
        """
        height, width = sample.shape[-2:]
        scaled = encode_latents(self.autoencoder, self._padded(sample))
        if self.levels:
            coded = self.bottleneck(self._as_coded(scaled)).latents.to(scaled.dtype)
            scaled = (
                coded.unflatten(0, (scaled.shape[0], -1)).transpose(1, 2) if scaled.ndim == 5 else self._patched(coded)
            )
        decoded = decode_latents(self.autoencoder, scaled, force_not_quantize=bool(self.levels))[..., :height, :width]
        return DecoderOutput(sample=decoded) if return_dict else (decoded,)

    def summary(self) -> dict[str, Any]:
        """The summary of the bottleneck, and what it stands in; see [`Coder.summary`]."""
        return {"autoencoder": {"type": type(self.autoencoder).__name__}} | self.bottleneck.summary()
