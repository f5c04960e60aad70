r"""Stable Diffusion whose latents pass a bottleneck on their way to the decoder (LASERS, 2024, section 12.3).

Autoencoder, denoiser and text encoder are those of a plain checkpoint and stay as they are; only the bottleneck is
learned ([`fit_bottleneck`]). The rate belongs to the result: the code behind the paper's 58 dB is larger than the
latents that it stands for.
"""

from __future__ import annotations

import torch

from ...models.priors import FactorizedPrior
from ...utils.hub import LasersHubMixin
from ...utils.import_utils import requires
from .latent_coding import AnyAutoencoder, AnyBottleneck, LatentCodingMixin, check_channels, with_signature_of
from .pipeline_output import LatentDLPipelineOutput


requires("transformers", extra="stable-diffusion")

from diffusers import StableDiffusionPipeline, UNet2DConditionModel  # noqa: E402
from diffusers.pipelines.stable_diffusion import StableDiffusionSafetyChecker  # noqa: E402
from diffusers.schedulers import KarrasDiffusionSchedulers  # noqa: E402
from transformers import CLIPImageProcessor, CLIPTextModel, CLIPTokenizer, CLIPVisionModelWithProjection  # noqa: E402


__all__ = ["LatentDLPipeline"]


class LatentDLPipeline(LasersHubMixin, LatentCodingMixin, StableDiffusionPipeline):
    r"""
    Creates a text-to-image pipeline of Stable Diffusion 1.x or 2.x with an optional bottleneck between denoiser and
    decoder; everything else is its parent's.

    `LatentDLPipeline.from_pretrained(stable_diffusion, bottleneck=bottleneck)` loads a plain checkpoint;
    `from_pipe(pipeline, bottleneck=bottleneck)` takes a loaded one. Saved, it loads with its bottleneck.

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
    # a bottleneck is small, and some have no parameters, which accelerate's hook asks for
    _exclude_from_cpu_offload = [*StableDiffusionPipeline._exclude_from_cpu_offload, "bottleneck", "prior"]
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
    @with_signature_of(StableDiffusionPipeline.__call__)
    def __call__(self, *args, **kwargs) -> LatentDLPipelineOutput | tuple:
        """
        Generates images. The arguments are those of `StableDiffusionPipeline`, with one more choice.

        Args:
            output_type (`str`, defaults to `"pil"`): `"pil"`, `"np"`, `"pt"`; `"latent"`: the denoiser's latents,
                before the bottleneck; or `"code"`: the code, to be stored or sent, and decoded by `decode`.
            *args: As in `StableDiffusionPipeline`: `prompt`, `height`, `width`, …
            **kwargs: As in `StableDiffusionPipeline`.

        Returns:
            [`LatentDLPipelineOutput`] or `tuple`: Images, what the safety checker found, and the code.

        Raises:
            ValueError: If an argument does not fit, or a code is asked for without a bottleneck.
        """
        return self._generate(StableDiffusionPipeline.__call__, args, kwargs)
