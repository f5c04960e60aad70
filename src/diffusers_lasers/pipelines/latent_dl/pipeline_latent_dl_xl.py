r"""Stable Diffusion XL whose latents pass a bottleneck on their way to the decoder; see `pipeline_latent_dl`."""

from __future__ import annotations

import torch

from ...models.priors import FactorizedPrior
from ...utils.hub import LasersHubMixin
from ...utils.import_utils import requires
from .latent_coding import AnyAutoencoder, AnyBottleneck, LatentCodingMixin, check_channels, with_signature_of
from .pipeline_output import LatentDLPipelineOutput


requires("transformers", extra="stable-diffusion")

from diffusers import StableDiffusionXLPipeline, UNet2DConditionModel  # noqa: E402
from diffusers.schedulers import KarrasDiffusionSchedulers  # noqa: E402
from transformers import (  # noqa: E402
    CLIPImageProcessor,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    CLIPVisionModelWithProjection,
)


__all__ = ["LatentDLXLPipeline"]


class LatentDLXLPipeline(LasersHubMixin, LatentCodingMixin, StableDiffusionXLPipeline):
    r"""
    Creates a text-to-image pipeline of Stable Diffusion XL with an optional bottleneck between denoiser and decoder;
    everything else is its parent's.

    Args:
        vae (`AutoencoderKL`, `AutoencoderTiny` or [`AutoencoderDL`]): The autoencoder.
        text_encoder (`CLIPTextModel`): The first text encoder.
        text_encoder_2 (`CLIPTextModelWithProjection`): The second.
        tokenizer (`CLIPTokenizer`): The first tokenizer.
        tokenizer_2 (`CLIPTokenizer`): The second.
        unet (`UNet2DConditionModel`): The denoiser.
        scheduler (`SchedulerMixin`): Any scheduler that the parent takes.
        bottleneck ([`Bottleneck`], *optional*): Codes latents on the denoiser's scale. Without it the pipeline is its
            parent.
        image_encoder (`CLIPVisionModelWithProjection`, *optional*): For IP-Adapters.
        feature_extractor (`CLIPImageProcessor`, *optional*): For it.
        force_zeros_for_empty_prompt (`bool`, defaults to `True`): Whether an empty negative prompt is embedded as
            zeros.
        add_watermarker (`bool`, *optional*): Whether to mark images. Defaults to `None`: where `invisible-watermark` is
            installed.
        prior ([`FactorizedPrior`], *optional*): The prior of the bottleneck's codes, for `compress`.

    Raises:
        ValueError: If the bottleneck is made for another number of channels than the autoencoder's latents have.
    """

    model_cpu_offload_seq = "text_encoder->text_encoder_2->image_encoder->unet->vae"
    # a bottleneck is small, and some have no parameters, which accelerate's hook asks for
    _exclude_from_cpu_offload = [*StableDiffusionXLPipeline._exclude_from_cpu_offload, "bottleneck", "prior"]
    _optional_components = [*StableDiffusionXLPipeline._optional_components, "bottleneck", "prior"]

    def __init__(
        self,
        vae: AnyAutoencoder,
        text_encoder: CLIPTextModel,
        text_encoder_2: CLIPTextModelWithProjection,
        tokenizer: CLIPTokenizer,
        tokenizer_2: CLIPTokenizer,
        unet: UNet2DConditionModel,
        scheduler: KarrasDiffusionSchedulers,
        bottleneck: AnyBottleneck,
        image_encoder: CLIPVisionModelWithProjection = None,
        feature_extractor: CLIPImageProcessor = None,
        force_zeros_for_empty_prompt: bool = True,
        add_watermarker: bool | None = None,
        prior: FactorizedPrior = None,
    ):
        check_channels(vae, bottleneck)
        super().__init__(
            vae=vae,
            text_encoder=text_encoder,
            text_encoder_2=text_encoder_2,
            tokenizer=tokenizer,
            tokenizer_2=tokenizer_2,
            unet=unet,
            scheduler=scheduler,
            image_encoder=image_encoder,
            feature_extractor=feature_extractor,
            force_zeros_for_empty_prompt=force_zeros_for_empty_prompt,
            add_watermarker=add_watermarker,
        )
        self.register_modules(bottleneck=bottleneck, prior=prior)

    @torch.no_grad()
    @with_signature_of(StableDiffusionXLPipeline.__call__)
    def __call__(self, *args, **kwargs) -> LatentDLPipelineOutput | tuple:
        """
        Generates images. The arguments are those of `StableDiffusionXLPipeline`, with one more choice.

        Args:
            output_type (`str`, defaults to `"pil"`): `"pil"`, `"np"`, `"pt"`; `"latent"`: the denoiser's latents,
                before the bottleneck; or `"code"`: the code, to be stored or sent, and decoded by `decode`.
            *args: As in `StableDiffusionXLPipeline`: `prompt`, `prompt_2`, `height`, `width`, …
            **kwargs: As in `StableDiffusionXLPipeline`.

        Returns:
            [`LatentDLPipelineOutput`] or `tuple`: Images, `None`, and the code.

        Raises:
            ValueError: If an argument does not fit, or a code is asked for without a bottleneck.
        """
        return self._generate(StableDiffusionXLPipeline.__call__, args, kwargs)
