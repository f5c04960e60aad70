r"""Codes in modular pipelines of diffusers: three blocks, to be put among those of any library.

    image ─ EncodeToCode → code ─ DecodeFromCode → images
    latents ─ CodeRoundTrip → latents, code

The first two have a [`CodedAutoencoder`] as component `vae`. `CodeRoundTrip` stands between the blocks of denoiser and
decoder and has a [`Bottleneck`] as component `bottleneck`.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers.image_processor import VaeImageProcessor
from diffusers.modular_pipelines import ComponentSpec, InputParam, ModularPipelineBlocks, OutputParam, PipelineState

from ..coding import IndexCode, SparseCode
from ..models.autoencoders import CodedAutoencoder
from ..models.bottlenecks import Bottleneck
from ..utils.image_inputs import preprocess_images


__all__ = ["CodeRoundTrip", "DecodeFromCode", "EncodeToCode"]

_OUTPUT_TYPES = ("pil", "np", "pt")
_CODE = "The code, with `indices` and, of a dictionary, `coefficients`."


class _CodeBlock(ModularPipelineBlocks):
    """A block that changes the values of its state in `run`."""

    @torch.no_grad()
    def __call__(self, components: Any, state: PipelineState) -> tuple[Any, PipelineState]:
        values = self.get_block_state(state)
        self.run(components, values)
        self.set_block_state(state, values)
        return components, state

    def run(self, components: Any, values: Any) -> None:
        raise NotImplementedError


class EncodeToCode(_CodeBlock):
    """
    Images to their code.

    Components: `vae` ([`CodedAutoencoder`]). Inputs: `image`, one or more images of one size as diffusers takes them.
    Outputs: `code`.
    """

    @property
    def description(self) -> str:
        return "Codes images by an autoencoder and a bottleneck"

    @property
    def expected_components(self) -> list[ComponentSpec]:
        return [ComponentSpec("vae", CodedAutoencoder)]

    @property
    def inputs(self) -> list[InputParam]:
        return [InputParam("image", required=True, description="Images of one size, as diffusers takes them.")]

    @property
    def intermediate_outputs(self) -> list[OutputParam]:
        return [OutputParam("code", type_hint=SparseCode | IndexCode, description=_CODE)]

    def run(self, components, values):
        vae = components.vae
        values.code = vae.encode_to_code(preprocess_images(values.image, 3).to(vae.device, vae.dtype))


class CodeRoundTrip(_CodeBlock):
    """
    Latents through a bottleneck.

    Components: `bottleneck` ([`Bottleneck`]). Inputs: `latents` `(B, L, h, w)`, or `(B, L, t, h, w)` of video, on the
    denoiser's scale. Outputs: `latents`, which the code stands for, and `code`.
    """

    @property
    def description(self) -> str:
        return "Puts the code of latents in their place"

    @property
    def expected_components(self) -> list[ComponentSpec]:
        return [ComponentSpec("bottleneck", Bottleneck)]

    @property
    def inputs(self) -> list[InputParam]:
        return [InputParam("latents", required=True, type_hint=torch.Tensor, description="On the denoiser's scale.")]

    @property
    def intermediate_outputs(self) -> list[OutputParam]:
        return [
            OutputParam("latents", type_hint=torch.Tensor, description="What the code stands for."),
            OutputParam("code", type_hint=SparseCode | IndexCode, description=_CODE),
        ]

    def run(self, components, values):
        latents, bottleneck = values.latents, components.bottleneck
        if latents.ndim not in (4, 5):
            raise ValueError(
                f"`latents` must be of shape (B, L, h, w) or (B, L, t, h, w), got {tuple(latents.shape)}: put the "
                "block after the one that unpacks them."
            )
        frames = latents.transpose(1, 2).flatten(0, 1) if latents.ndim == 5 else latents
        values.code = bottleneck.encode(frames)
        coded = bottleneck.decode(values.code).to(latents.dtype)
        if latents.ndim == 5:
            coded = coded.unflatten(0, (latents.shape[0], latents.shape[2])).transpose(1, 2)
        values.latents = coded


class DecodeFromCode(_CodeBlock):
    """
    Images of a code.

    Components: `vae` ([`CodedAutoencoder`]). Inputs: `code`; `output_type`: `"pil"`, the default, `"np"` or
    `"pt"`. Outputs: `images`.
    """

    @property
    def description(self) -> str:
        return "Decodes images of a code"

    @property
    def expected_components(self) -> list[ComponentSpec]:
        return [ComponentSpec("vae", CodedAutoencoder)]

    @property
    def inputs(self) -> list[InputParam]:
        return [
            InputParam("code", required=True, type_hint=SparseCode | IndexCode, description=_CODE),
            InputParam("output_type", default="pil", type_hint=str, description="pil, np or pt."),
        ]

    @property
    def intermediate_outputs(self) -> list[OutputParam]:
        return [OutputParam("images", description="Images, as `output_type` says.")]

    def run(self, components, values):
        if values.output_type not in _OUTPUT_TYPES:
            raise ValueError(f"`output_type` must be one of {_OUTPUT_TYPES}, got {values.output_type!r}.")
        vae, code = components.vae, values.code
        sample = vae.decode_from_code(code.to(vae.device)).sample
        values.images = VaeImageProcessor().postprocess(sample.clamp(-1, 1), output_type=values.output_type)
