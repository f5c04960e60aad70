r"""What [`LatentDLPipeline`], [`LatentDLXLPipeline`] and their image-to-image variants share: codes between a denoiser
and a decoder.

    prompt ─ denoiser → z ─ bottleneck.encode → code ─ bottleneck.decode → ẑ ─ decoder → image

The loop is that of the parent pipeline in diffusers, which returns latents; coding and decoding follow here. So each
pipeline takes its parent's arguments.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, AutoencoderTiny
from diffusers.image_processor import PipelineImageInput

from ...coding import IndexCode, SparseCode
from ...coding.streams import is_stream
from ...models.autoencoders import AutoencoderDL, CodedAutoencoder, decode_latents
from ...models.bottlenecks import (
    DictionaryBottleneck,
    EntropyScalarBottleneck,
    ExternalQuantizerBottleneck,
    FSQBottleneck,
    IdentityBottleneck,
    ResidualVQBottleneck,
    ScalarQuantizerBottleneck,
    VectorQuantizerBottleneck,
)
from ...models.priors import FactorizedPrior
from ...utils.image_inputs import preprocess_images
from .pipeline_output import LatentDLPipelineOutput


# `from_pipe` hands a component over only where its very class stands in the annotation.
AnyAutoencoder = AutoencoderKL | AutoencoderTiny | AutoencoderDL
AnyBottleneck = (
    DictionaryBottleneck
    | VectorQuantizerBottleneck
    | ResidualVQBottleneck
    | FSQBottleneck
    | EntropyScalarBottleneck
    | ExternalQuantizerBottleneck
    | ScalarQuantizerBottleneck
    | IdentityBottleneck
)

OUTPUT_TYPES = ("pil", "np", "pt", "latent", "code")


def with_signature_of(other: Callable) -> Callable[[Callable], Callable]:
    """Shows `other`'s signature as that of the decorated function, which takes `*args, **kwargs`."""

    def decorate(function: Callable) -> Callable:
        function.__signature__ = inspect.signature(other)
        return function

    return decorate


def check_channels(vae, bottleneck) -> None:
    """Refuses a bottleneck that does not fit the autoencoder's latents."""
    if vae is not None and bottleneck is not None:
        CodedAutoencoder(vae, bottleneck)


def _with_prior(components: dict[str, Any]) -> dict[str, Any]:
    """Components that are handed over; a bottleneck without a prior brings that in `prior/` of its own folder."""
    if "bottleneck" not in components or "prior" in components:
        return components
    place = getattr(components["bottleneck"], "config", {}).get("_name_or_path")  # where it was loaded from
    found = place and (Path(place) / "prior" / "config.json").is_file()
    prior = FactorizedPrior.from_pretrained(place, subfolder="prior") if found else None
    return {**components, "prior": prior}


class LatentCodingMixin:
    """
    Codes of latents: `encode`, `decode`, `reconstruct` and `compress`, and the end of a generating call. A bottleneck
    that is handed to `from_pretrained` or `from_pipe` brings the prior in the folder it was loaded from.
    """

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, **kwargs):
        return super().from_pretrained(pretrained_model_name_or_path, **_with_prior(kwargs))

    @classmethod
    def from_pipe(cls, pipeline, **kwargs):
        return super().from_pipe(pipeline, **_with_prior(kwargs))

    @torch.no_grad()
    def compress(self, code: SparseCode | IndexCode) -> bytes:
        """
        A code as bytes at the rate of the pipeline's prior. Needs constriction (extra `entropy`). Without a prior
        `bottleneck.pack` writes a code with its nominal bits.

        Args:
            code ([`SparseCode`] or [`IndexCode`]): A code of this bottleneck.

        Returns:
            `bytes`: What `decode` reads.

        Raises:
            ValueError: If the pipeline has no prior of this bottleneck, or the code does not fit.
            ImportError: If constriction is not installed.
        """
        return self._coded(with_prior=True).compress(code)

    @torch.no_grad()
    def encode(self, image: PipelineImageInput) -> SparseCode | IndexCode:
        """
        The code of images, without a prompt. Sides that the autoencoder does not divide are padded by repeating the
        edge.

        Args:
            image (`PIL.Image.Image`, `numpy.ndarray`, `torch.Tensor` or a list of them): Images of one size, as
                diffusers takes them: pictures of any mode; arrays `(B, H, W, 3)` and tensors `(B, 3, H, W)` of uint8
                or in [0, 1], or in [-1, 1] where a value is negative.

        Returns:
            [`SparseCode`] or [`IndexCode`]: The code, with the images' size.

        Raises:
            ValueError: If the pipeline has no bottleneck, or the images have another form.
        """
        self._check_bottleneck()
        code = self._encode(image)
        self.maybe_free_model_hooks()
        return code

    @torch.no_grad()
    def decode(self, code: SparseCode | IndexCode | bytes, output_type: str = "pil") -> Any:
        """
        Images of a code.

        Args:
            code ([`SparseCode`], [`IndexCode`] or `bytes`): A code of this bottleneck, from `encode` or from a call
                with `output_type="code"`; or what `compress`, or the bottleneck's `pack`, made of one.
            output_type (`str`, defaults to `"pil"`): `"pil"`, `"np"`, `"pt"`, or `"latent"`: latents on the denoiser's
                scale.

        Returns:
            `list[PIL.Image.Image]`, `numpy.ndarray` of shape `(B, H, W, 3)` or `torch.Tensor` of shape `(B, 3, H, W)`:
            Images.

        Raises:
            ValueError: If the pipeline has no bottleneck, or the code or the output type does not fit, or bytes are cut
                off, changed, something else, or of another bottleneck or prior.
            ImportError: If bytes of `compress` are given and constriction is not installed.
        """
        self._check_bottleneck()
        if output_type not in OUTPUT_TYPES[:4]:
            raise ValueError(f"`output_type` must be one of {OUTPUT_TYPES[:4]}, got {output_type!r}.")
        if isinstance(code, (bytes, bytearray, memoryview)):
            code = self._coded(with_prior=True).decompress(code) if is_stream(code) else self.bottleneck.unpack(code)
        code = code.to(self._execution_device)
        if output_type == "latent":
            found = self.bottleneck.decode(code)
        else:
            found = self.image_processor.postprocess(self._decode(code), output_type=output_type)
        self.maybe_free_model_hooks()
        return found

    @torch.no_grad()
    def reconstruct(
        self, image: PipelineImageInput, output_type: str = "pil", return_dict: bool = True
    ) -> LatentDLPipelineOutput | tuple:
        """
        Images after autoencoder and bottleneck, without a prompt; without a bottleneck, after the autoencoder alone.

        Args:
            image (`PIL.Image.Image`, `numpy.ndarray`, `torch.Tensor` or a list of them): Images, see `encode`.
            output_type (`str`, defaults to `"pil"`): `"pil"`, `"np"` or `"pt"`.
            return_dict (`bool`, defaults to `True`): Whether to return an output class instead of a tuple.

        Returns:
            [`LatentDLPipelineOutput`] or `tuple`: Images and their code.

        Raises:
            ValueError: If the output type does not fit.
        """
        if output_type not in OUTPUT_TYPES[:3]:
            raise ValueError(f"`output_type` must be one of {OUTPUT_TYPES[:3]}, got {output_type!r}.")
        code = self._encode(image) if self._has_codes else None
        if code is None:
            with self._upcast():
                images = self._coded()(self._pixels(image)).sample
        else:
            images = self._decode(code)
        images = self.image_processor.postprocess(images, output_type=output_type)
        self.maybe_free_model_hooks()
        output = LatentDLPipelineOutput(images=images, code=code)
        return output if return_dict else (images, None, code)

    @property
    def _has_codes(self) -> bool:
        """Whether there is a bottleneck, and not one that passes latents as they are."""
        return self.bottleneck is not None and self.bottleneck.num_symbols > 0

    def _check_bottleneck(self) -> None:
        if not self._has_codes:
            raise ValueError(
                "`bottleneck` must be one that makes codes: `from_pretrained(..., bottleneck=...)`, got "
                f"{None if self.bottleneck is None else type(self.bottleneck).__name__}."
            )

    def _coded(self, with_prior: bool = False) -> CodedAutoencoder:
        """The autoencoder with its bottleneck, and with the prior of its codes where that is needed."""
        if with_prior:
            self._check_bottleneck()
        bottleneck = self.bottleneck or IdentityBottleneck(self.vae.config.latent_channels)
        return CodedAutoencoder(self.vae, bottleneck, self.prior if with_prior else None)

    @contextmanager
    def _upcast(self):
        """
        The autoencoder in float32 for a while, where SDXL's overflows in float16; SD's pipeline ignores that flag of
        the config.
        """
        half = self.vae.dtype == torch.float16 and hasattr(self, "upcast_vae")
        upcast = half and self.vae.config.get("force_upcast", False)
        if upcast:
            self.vae.to(dtype=torch.float32)
        try:
            yield
        finally:
            if upcast:
                self.vae.to(dtype=torch.float16)

    def _pixels(self, image: PipelineImageInput) -> torch.Tensor:
        return preprocess_images(image, self.vae.config.get("in_channels", 3)).to(self._execution_device)

    def _start(self, image: PipelineImageInput) -> torch.Tensor:
        """What an image-to-image loop of diffusers starts from: images in [0, 1], or latents as they are."""
        if torch.is_tensor(image) and image.ndim == 4 and image.shape[1] == self.vae.config.latent_channels:
            return image
        return self._pixels(image) / 2 + 0.5

    def _encode(self, image: PipelineImageInput) -> SparseCode | IndexCode:
        with self._upcast():
            return self._coded().encode_to_code(self._pixels(image))

    def _decode(self, code: SparseCode | IndexCode, generator: torch.Generator | None = None) -> torch.Tensor:
        """Images `(B, 3, H, W)` of a code."""
        with self._upcast():
            return self._coded().decode_from_code(code, generator=generator).sample

    def _generate(self, call: Callable, args: tuple, kwargs: dict) -> LatentDLPipelineOutput | tuple:
        """Runs the parent's `call` for latents, then bottleneck, decoder, safety checker and watermark."""
        bound = inspect.signature(call).bind(self, *args, **kwargs).arguments
        given = {name: value for name, value in bound.items() if name not in ("self", "kwargs")} | bound.get(
            "kwargs", {}
        )
        output_type, return_dict = given.pop("output_type", "pil"), given.pop("return_dict", True)
        if output_type not in OUTPUT_TYPES:
            raise ValueError(f"`output_type` must be one of {OUTPUT_TYPES}, got {output_type!r}.")
        if output_type == "code":
            self._check_bottleneck()
        if "image" in given:
            given["image"] = self._start(given["image"])
        latents = call(self, **given, output_type="latent", return_dict=False)[0]
        code, unsafe, images = None, None, latents
        if output_type != "latent" and self._has_codes:
            size = tuple(side * self.vae_scale_factor for side in latents.shape[-2:])
            images = code = replace(self.bottleneck.encode(latents), image_size=size)
        if output_type in ("pil", "np", "pt"):
            if code is None:
                with self._upcast():  # without a bottleneck of ours, an autoencoder keeps its own
                    scaled, keeps = latents.to(self.vae.dtype), self.bottleneck is None
                    images = decode_latents(self.vae, scaled, given.get("generator"), not keeps)
            else:
                images = self._decode(code, given.get("generator"))
            images, unsafe = self._check_and_mark(images)
            keep = None if unsafe is None else [not found for found in unsafe]
            code = None if unsafe is not None and any(unsafe) else code  # it would still decode to what was blocked
            images = self.image_processor.postprocess(images, output_type=output_type, do_denormalize=keep)
        self.maybe_free_model_hooks()
        if not return_dict:
            return images, unsafe, code
        return LatentDLPipelineOutput(images=images, nsfw_content_detected=unsafe, code=code)

    def _check_and_mark(self, images: torch.Tensor) -> tuple[torch.Tensor, list[bool] | None]:
        """What the parent pipeline does with images before it hands them out."""
        unsafe = None
        if getattr(self, "safety_checker", None) is not None:
            images, unsafe = self.run_safety_checker(images, self._execution_device, self.unet.dtype)
        if getattr(self, "watermark", None) is not None:
            images = self.watermark.apply_watermark(images)
        return images, unsafe
