r"""The image-to-image variants of [`LatentDLPipeline`] and [`LatentDLXLPipeline`]: the loop starts at a noisy image,
and its latents pass a bottleneck before they are decoded.

`AutoPipelineForImage2Image` makes them of the text-to-image pipelines, or of their files, with the same components.
"""

from __future__ import annotations

import torch

from ...models.priors import FactorizedPrior
from ...utils.hub import LasersHubMixin
from ...utils.import_utils import requires
from .latent_coding import AnyAutoencoder, AnyBottleneck, LatentCodingMixin, check_channels, with_signature_of
from .pipeline_output import LatentDLPipelineOutput


requires("transformers", extra="stable-diffusion")

from diffusers import (  # noqa: E402
    StableDiffusionImg2ImgPipeline,
    StableDiffusionXLImg2ImgPipeline,
    UNet2DConditionModel,
)
from diffusers.pipelines.stable_diffusion import StableDiffusionSafetyChecker  # noqa: E402
from diffusers.schedulers import KarrasDiffusionSchedulers  # noqa: E402
from transformers import (  # noqa: E402
    CLIPImageProcessor,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    CLIPVisionModelWithProjection,
)


__all__ = ["LatentDLImg2ImgPipeline", "LatentDLXLImg2ImgPipeline"]


class LatentDLImg2ImgPipeline(LasersHubMixin, LatentCodingMixin, StableDiffusionImg2ImgPipeline):
    r"""
    Creates an image-to-image pipeline of Stable Diffusion 1.x or 2.x with an optional bottleneck between denoiser and
    decoder. Arguments are those of [`LatentDLPipeline`].

    Args:
        vae (`AutoencoderKL`, `AutoencoderTiny` or [`AutoencoderDL`]): The autoencoder.
        text_encoder (`CLIPTextModel`): The text encoder.
        tokenizer (`CLIPTokenizer`): Its tokenizer.
        unet (`UNet2DConditionModel`): The denoiser.
        scheduler (`SchedulerMixin`): Any scheduler that the parent takes.
        safety_checker (`StableDiffusionSafetyChecker`, *optional*): Judges images.
        feature_extractor (`CLIPImageProcessor`, *optional*): Prepares them for it.
        bottleneck ([`Bottleneck`], *optional*): Codes latents on the denoiser's scale. Without it the pipeline is its
            parent.
        image_encoder (`CLIPVisionModelWithProjection`, *optional*): For IP-Adapters.
        requires_safety_checker (`bool`, defaults to `True`): Whether to warn where there is no safety checker.
        prior ([`FactorizedPrior`], *optional*): The prior of the bottleneck's codes, for `compress`.

    Raises:
        ValueError: If the bottleneck is made for another number of channels than the autoencoder's latents have.
    """

    model_cpu_offload_seq = "text_encoder->image_encoder->unet->vae"
    _exclude_from_cpu_offload = [*StableDiffusionImg2ImgPipeline._exclude_from_cpu_offload, "bottleneck", "prior"]
    _optional_components = ["safety_checker", "feature_extractor", "bottleneck", "image_encoder", "prior"]

    def __init__(
        self,
        vae: AnyAutoencoder,
        text_encoder: CLIPTextModel,
        tokenizer: CLIPTokenizer,
        unet: UNet2DConditionModel,
        scheduler: KarrasDiffusionSchedulers,
        safety_checker: StableDiffusionSafetyChecker,
        feature_extractor: CLIPImageProcessor,
        bottleneck: AnyBottleneck,
        image_encoder: CLIPVisionModelWithProjection = None,
        requires_safety_checker: bool = True,
        prior: FactorizedPrior = None,
    ):
        check_channels(vae, bottleneck)
        super().__init__(
            vae=vae,
            text_encoder=text_encoder,
            tokenizer=tokenizer,
            unet=unet,
            scheduler=scheduler,
            safety_checker=safety_checker,
            feature_extractor=feature_extractor,
            image_encoder=image_encoder,
            requires_safety_checker=requires_safety_checker,
        )
        self.register_modules(bottleneck=bottleneck, prior=prior)

    @torch.no_grad()
    @with_signature_of(StableDiffusionImg2ImgPipeline.__call__)
    def __call__(self, *args, **kwargs) -> LatentDLPipelineOutput | tuple:
        """
        Generates images from images. The arguments are those of `StableDiffusionImg2ImgPipeline`; `image` may be what
        [`LatentDLPipeline.encode`] takes, or latents.

        Args:
            output_type (`str`, defaults to `"pil"`): As in [`LatentDLPipeline`].
            *args: As in `StableDiffusionImg2ImgPipeline`: `prompt`, `image`, `strength`, …
            **kwargs: As in `StableDiffusionImg2ImgPipeline`.

        Returns:
            [`LatentDLPipelineOutput`] or `tuple`: Images, what the safety checker found, and the code.

        Raises:
            ValueError: If an argument does not fit, or a code is asked for without a bottleneck.
        """
        return self._generate(StableDiffusionImg2ImgPipeline.__call__, args, kwargs)


class LatentDLXLImg2ImgPipeline(LasersHubMixin, LatentCodingMixin, StableDiffusionXLImg2ImgPipeline):
    r"""
    Creates an image-to-image pipeline of Stable Diffusion XL with an optional bottleneck between denoiser and decoder.
    Arguments are those of [`LatentDLXLPipeline`].

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
        requires_aesthetics_score (`bool`, defaults to `False`): Whether the denoiser is conditioned on a score, as the
            refiner is.
        force_zeros_for_empty_prompt (`bool`, defaults to `True`): Whether an empty negative prompt is embedded as
            zeros.
        add_watermarker (`bool`, *optional*): Whether to mark images. Defaults to `None`: where `invisible-watermark`
            is installed.
        prior ([`FactorizedPrior`], *optional*): The prior of the bottleneck's codes, for `compress`.

    Raises:
        ValueError: If the bottleneck is made for another number of channels than the autoencoder's latents have.
    """

    model_cpu_offload_seq = "text_encoder->text_encoder_2->image_encoder->unet->vae"
    _exclude_from_cpu_offload = [*StableDiffusionXLImg2ImgPipeline._exclude_from_cpu_offload, "bottleneck", "prior"]
    _optional_components = [*StableDiffusionXLImg2ImgPipeline._optional_components, "bottleneck", "prior"]

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
        requires_aesthetics_score: bool = False,
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
            requires_aesthetics_score=requires_aesthetics_score,
            force_zeros_for_empty_prompt=force_zeros_for_empty_prompt,
            add_watermarker=add_watermarker,
        )
        self.register_modules(bottleneck=bottleneck, prior=prior)

    @torch.no_grad()
    @with_signature_of(StableDiffusionXLImg2ImgPipeline.__call__)
    def __call__(self, *args, **kwargs) -> LatentDLPipelineOutput | tuple:
        """
        Generates images from images. The arguments are those of `StableDiffusionXLImg2ImgPipeline`; `image` may be
        what [`LatentDLXLPipeline.encode`] takes, or latents.

        Args:
            output_type (`str`, defaults to `"pil"`): As in [`LatentDLXLPipeline`].
            *args: As in `StableDiffusionXLImg2ImgPipeline`: `prompt`, `prompt_2`, `image`, `strength`, …
            **kwargs: As in `StableDiffusionXLImg2ImgPipeline`.

        Returns:
            [`LatentDLPipelineOutput`] or `tuple`: Images, `None`, and the code.

        Raises:
            ValueError: If an argument does not fit, or a code is asked for without a bottleneck.
        """
        return self._generate(StableDiffusionXLImg2ImgPipeline.__call__, args, kwargs)
