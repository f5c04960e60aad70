r"""Unconditional images from diffusion on codebook indices (Scribano et al., 2023, section 4.2).

The denoiser's `parameterization` says which loop runs, and the scheduler must fit:

* categorical: [`CategoricalDDPMScheduler`] draws clean indices at each step (Alg. 2, with the loop over slots and z_t
  that it omits);
* continuous: a Gaussian scheduler of diffusers (`DDPMScheduler`, `DDIMScheduler`, …) denoises numbers, which are
  rounded to indices at the end;
* discrete: [`UniformD3PMScheduler`] (or diffusers' `DiscreteDDIMScheduler`) or [`AbsorbingD3PMScheduler`] changes
  indices themselves.

Codec decoding is exact and cheap; the optional refiner repairs what it shows.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from diffusers import DiffusionPipeline, DiscreteDDIMScheduler, SchedulerMixin
from diffusers.image_processor import VaeImageProcessor
from diffusers.utils.torch_utils import randn_tensor

from ...functional.diffusion.categorical import expected_number, number_to_index, uniform_noise
from ...models.autoencoders.autoencoder_dl import AutoencoderDL
from ...models.categorical_unet import CategoricalUNet2DModel
from ...models.codecs import ModelBasedVQCodec
from ...models.latent_refiner import LatentRefiner
from ...schedulers import AbsorbingD3PMScheduler, CategoricalDDPMScheduler
from ...utils.hub import LasersHubMixin
from .pipeline_output import ModelBasedLatentDiffusionOutput


__all__ = ["ModelBasedLatentDiffusionPipeline"]

OUTPUT_TYPES = ("pil", "np", "pt", "latent", "code")


class ModelBasedLatentDiffusionPipeline(LasersHubMixin, DiffusionPipeline):
    r"""
    Creates a pipeline that samples images by diffusion on a codec's indices. Generators live on the CPU, and then draw
    the same wherever the denoiser is, or where it is.

    Args:
        codec ([`ModelBasedVQCodec`] or [`AutoencoderDL`]): What the indices mean; an autoencoder needs VQ or residual
            VQ.
        unet ([`CategoricalUNet2DModel`]): The denoiser.
        scheduler ([`CategoricalDDPMScheduler`], [`AbsorbingD3PMScheduler`] or a scheduler of diffusers): As the
            denoiser's `parameterization` needs.
        refiner ([`LatentRefiner`], *optional*): Repairs decoded images.

    Raises:
        ValueError: If the parts do not fit each other.
    """

    model_cpu_offload_seq = "unet->refiner"
    _exclude_from_cpu_offload = ["codec"]  # a patch codec has no parameters, which accelerate's hook asks for
    _optional_components = ["refiner"]
    _callback_tensor_inputs = ["latents"]

    def __init__(
        self,
        codec: ModelBasedVQCodec | AutoencoderDL,
        unet: CategoricalUNet2DModel,
        scheduler: SchedulerMixin,
        refiner: LatentRefiner | None = None,
    ):
        super().__init__()
        kind = None if unet is None else unet.config.parameterization
        if kind == "categorical" and not isinstance(scheduler, CategoricalDDPMScheduler):
            raise ValueError(
                "`scheduler` must be a CategoricalDDPMScheduler for a categorical denoiser, got "
                f"{type(scheduler).__name__}."
            )
        if kind == "discrete" and not isinstance(scheduler, (AbsorbingD3PMScheduler, DiscreteDDIMScheduler)):
            raise ValueError(
                "`scheduler` must be an AbsorbingD3PMScheduler, a UniformD3PMScheduler or a DiscreteDDIMScheduler "
                f"for a discrete denoiser, got {type(scheduler).__name__}."
            )
        ours = isinstance(scheduler, (AbsorbingD3PMScheduler, CategoricalDDPMScheduler))
        if kind == "continuous" and (ours or not hasattr(scheduler, "init_noise_sigma")):
            raise ValueError(
                "`scheduler` must be a Gaussian one of diffusers for a continuous denoiser, got "
                f"{type(scheduler).__name__}."
            )
        if codec is not None and not hasattr(codec, "index_layout"):
            raise ValueError(
                "`codec` must be a ModelBasedVQCodec or an AutoencoderDL, which have indices, got "
                f"{type(codec).__name__}."
            )
        if codec is not None and unet is not None:
            layout = codec.index_layout[:2]
            expected = (unet.config.num_slots, unet.config.num_codewords)
            if layout != expected:
                raise ValueError(
                    f"`unet` must be made for {layout[0]} slots of {layout[1]} codewords, as `codec` has them, got "
                    f"{expected[0]} of {expected[1]}."
                )
        self.register_modules(codec=codec, unet=unet, scheduler=scheduler, refiner=refiner)
        self.codec_scale_factor = codec.index_layout[2] if getattr(self, "codec", None) is not None else 8
        self.image_processor = VaeImageProcessor(vae_scale_factor=self.codec_scale_factor)

    @property
    def num_timesteps(self) -> int:
        """Steps of the last call."""
        return self._num_timesteps

    @property
    def interrupt(self) -> bool:
        """Whether a callback asked the loop to stop: set `pipeline._interrupt = True`."""
        return self._interrupt

    def check_inputs(self, batch_size, height, width, generator, latents, output_type, callback_tensors) -> None:
        """Refuses arguments of the call that do not fit, each with a sentence."""
        if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
            raise ValueError(f"`batch_size` must be a positive integer, got {batch_size!r}.")
        side = self.codec_scale_factor
        for name, value in (("height", height), ("width", width)):
            if isinstance(value, bool) or not isinstance(value, int) or value < side or value % side:
                raise ValueError(f"`{name}` must be a positive multiple of {side}, got {value!r}.")
        if isinstance(generator, list) and len(generator) != batch_size:
            raise ValueError(f"`generator` must hold {batch_size} generators, one an image, got {len(generator)}.")
        shape = (batch_size, self.unet.config.num_slots, height // side, width // side)
        if latents is not None and (not torch.is_tensor(latents) or tuple(latents.shape) != shape):
            found = tuple(latents.shape) if torch.is_tensor(latents) else type(latents).__name__
            raise ValueError(f"`latents` must be a tensor of shape {shape}, got {found}.")
        if output_type not in OUTPUT_TYPES:
            raise ValueError(f"`output_type` must be one of {OUTPUT_TYPES}, got {output_type!r}.")
        unknown = [name for name in callback_tensors if name not in self._callback_tensor_inputs]
        if unknown:
            raise ValueError(
                f"`callback_on_step_end_tensor_inputs` must be among {self._callback_tensor_inputs}, got {unknown}."
            )

    def prepare_latents(self, shape, generator, device, latents=None) -> torch.Tensor:
        """
        The start of the loop: noise, random indices or masks.

        Args:
            shape (`tuple[int, ...]`): `(B, c̄, h, w)`.
            generator (`torch.Generator` or a list of them): Source of randomness.
            device (`torch.device`): Where the loop runs.
            latents (`torch.Tensor`, *optional*): A start of one's own.

        Returns:
            `torch.Tensor`: z_T.
        """
        codewords = self.unet.config.num_codewords
        if latents is not None:
            return latents.to(device)
        if isinstance(self.scheduler, AbsorbingD3PMScheduler):
            return torch.full(shape, codewords, dtype=torch.int64, device=device)
        if self.unet.config.parameterization == "discrete":
            return (uniform_noise(shape, generator, device) * codewords).long().clamp_max(codewords - 1)
        noise = randn_tensor(shape, generator=generator, device=device, dtype=self.unet.dtype)
        return noise * self.scheduler.init_noise_sigma

    @torch.no_grad()
    def __call__(
        self,
        batch_size: int = 1,
        num_inference_steps: int = 50,
        height: int | None = None,
        width: int | None = None,
        temperature: float | None = None,
        eta: float | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: torch.Tensor | None = None,
        use_refiner: bool = True,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callable[[Any, int, int, dict], dict] | None = None,
        callback_on_step_end_tensor_inputs: list[str] = ["latents"],  # noqa: B006 (diffusers' signature)
    ) -> ModelBasedLatentDiffusionOutput | tuple:
        """
        Samples images.

        Args:
            batch_size (`int`, defaults to 1): Images.
            num_inference_steps (`int`, defaults to 50): Steps of the loop.
            height (`int`, *optional*): Pixels down, a multiple of the codec's patch. Defaults to what the denoiser was
                trained for.
            width (`int`, *optional*): Pixels across.
            temperature (`float`, *optional*): γ of eq 25, for logits; 0 takes the most likely codeword. Defaults to the
                scheduler's, or 1.
            eta (`float`, *optional*): η of [`CategoricalDDPMScheduler`]. Defaults to the scheduler's.
            generator (`torch.Generator` or a list of them, *optional*): One, or one an image, on the CPU or where the
                denoiser is.
            latents (`torch.Tensor` of shape `(B, c̄, h, w)`, *optional*): A start of one's own, z_T.
            use_refiner (`bool`, defaults to `True`): Whether the refiner, where there is one, repairs the images.
            output_type (`str`, defaults to `"pil"`): `"pil"`, `"np"`, `"pt"`; `"latent"`: the loop's last latents,
                which are numbers, or indices for a discrete denoiser; or `"code"`: the codes.
            return_dict (`bool`, defaults to `True`): Whether to return an output class instead of a tuple.
            callback_on_step_end (`Callable`, *optional*): Is called with the pipeline, the step, the timestep and a
                dictionary of tensors, after each step; may return changed ones.
            callback_on_step_end_tensor_inputs (`list[str]`, defaults to `["latents"]`): Names of these tensors.

        Returns:
            [`ModelBasedLatentDiffusionOutput`] or `tuple`: Images and codes.

        Raises:
            ValueError: If an argument does not fit.
        """
        side, config = self.codec_scale_factor, self.unet.config
        default = side * (config.sample_size or 0)
        if (height is None or width is None) and not default:
            raise ValueError("`height` and `width` must be given where the denoiser has no `sample_size`.")
        height, width = default if height is None else height, default if width is None else width
        self.check_inputs(
            batch_size, height, width, generator, latents, output_type, callback_on_step_end_tensor_inputs
        )
        self._interrupt = False
        device = self._execution_device
        self.scheduler.set_timesteps(num_inference_steps, device=device)
        shape = (batch_size, config.num_slots, height // side, width // side)
        latents = self.prepare_latents(shape, generator, device, latents)
        timesteps = self.scheduler.timesteps
        self._num_timesteps = len(timesteps)
        estimate = None
        with self.progress_bar(total=len(timesteps)) as progress_bar:
            for index, timestep in enumerate(timesteps):
                if self.interrupt:
                    continue
                latents, estimate = self._denoise(latents, timestep, estimate, temperature, eta, generator)
                if callback_on_step_end is not None:
                    tensors = {}
                    for name in callback_on_step_end_tensor_inputs:
                        tensors[name] = locals()[name]
                    latents = callback_on_step_end(self, index, timestep, tensors).pop("latents", latents)
                progress_bar.update()
        codes = latents if config.parameterization == "discrete" else number_to_index(latents, config.num_codewords)
        if config.parameterization == "discrete":
            codes = codes.clamp(0, config.num_codewords - 1)  # masks that an interrupted loop left
        images = latents if output_type == "latent" else codes
        if output_type not in ("latent", "code"):
            images = self.codec.decode_indices(codes)
            if self.refiner is not None and use_refiner:
                images = self.refiner(images.to(self.refiner.dtype)).sample
            images = self.image_processor.postprocess(images.float().clamp(-1, 1), output_type=output_type)
        self.maybe_free_model_hooks()
        return ModelBasedLatentDiffusionOutput(images=images, codes=codes) if return_dict else (images, codes)

    def _denoise(self, latents, timestep, estimate, temperature, eta, generator):
        """One step: z_s, and the estimate of z_0 that conditions the next one."""
        config, scheduler = self.unet.config, self.scheduler
        condition = {"self_condition": estimate} if config.self_conditioning else {}
        if config.parameterization == "continuous":
            scaled = scheduler.scale_model_input(latents, timestep)
            noise = self.unet(scaled, timestep, **condition).sample
            output = scheduler.step(noise, timestep, latents, generator=generator)
            return output.prev_sample, getattr(output, "pred_original_sample", None)
        if isinstance(scheduler, DiscreteDDIMScheduler):
            return self._uniform_step(latents, timestep, condition, temperature, generator)
        logits = self.unet(latents, timestep, **condition).sample
        estimate = expected_number(logits.float().softmax(dim=2)) if config.self_conditioning else None
        arguments = {"generator": generator, "temperature": temperature}
        if config.parameterization == "categorical":
            arguments["eta"] = eta
        return scheduler.step(logits, timestep, latents, **arguments).prev_sample, estimate

    def _uniform_step(self, latents, timestep, condition, temperature, generator):
        """
        A step of diffusers' scheduler, whose step index counts up, on sites and slots in one row. It takes one
        generator only.
        """
        total = self.scheduler.num_inference_steps
        trained = self.scheduler.config.get("num_train_timesteps", 1000)  # diffusers' own class does not say
        time = trained * (1 - int(timestep) / total) - 1  # the timestep of training at its ᾱ = index / total
        logits = self.unet(latents, time, **condition).sample
        estimate = expected_number(logits.float().softmax(dim=2)) if self.unet.config.self_conditioning else None
        rows = logits.movedim(2, -1).flatten(1, 3)  # (B, c̄ h w, |C|)
        flat = latents.flatten(1)
        temperature = 1.0 if temperature is None else temperature

        def step(row, site, own):  # where the generator is: the scheduler takes no other
            place = row.device if own is None else own.device
            arguments = {"temperature": temperature, "generator": own}
            return self.scheduler.step(row.to(place), timestep, site.to(place), **arguments).prev_sample.to(row.device)

        if isinstance(generator, list):
            steps = [step(row[None], site[None], own) for row, site, own in zip(rows, flat, generator)]
            return torch.cat(steps).view_as(latents), estimate
        return step(rows, flat, generator).view_as(latents), estimate
