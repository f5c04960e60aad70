r"""Gaussian diffusion of indices with a categorical reverse process (Scribano et al., 2023, sections 3.2.2 and 4.2.3).

The forward process adds Gaussian noise to indices that are scaled to [-1, 1]. The network returns logits over the
codewords of each slot and site. A step draws z̃_0 ~ softmax(ẑ / γ) (eq 25), scales it, and draws z_s from the Gaussian
q(z_s | z_t, z̃_0) (`functional/diffusion/gaussian.py`). This holds for any s < t, and so for fewer steps than in
training. The sample after the last step is exactly an index.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from diffusers import ConfigMixin, SchedulerMixin
from diffusers.configuration_utils import register_to_config
from diffusers.utils import BaseOutput
from diffusers.utils.torch_utils import randn_tensor

from ..functional.diffusion import BETA_SCHEDULES, add_gaussian_noise, make_betas, posterior_mean_variance
from ..functional.diffusion.categorical import index_to_number, sample_categorical
from ..utils import config_checks as checks
from ..utils.hub import LasersHubMixin
from .timesteps import check_step_numbers, check_timesteps, count_of_steps, timestep_of


__all__ = ["CategoricalDDPMScheduler", "CategoricalDDPMSchedulerOutput"]

_SPACINGS = ("linspace", "leading", "trailing")


@dataclass
class CategoricalDDPMSchedulerOutput(BaseOutput):
    """
    Output of [`CategoricalDDPMScheduler.step`].

    Args:
        prev_sample (`torch.Tensor` of shape `(B, c̄, h, w)`): z_s, the sample at the next timestep of the loop.
        pred_original_sample (`torch.Tensor` of shape `(B, c̄, h, w)`): The drawn z̃_0 as numbers in [-1, 1].
        pred_original_codes (`torch.Tensor` of shape `(B, c̄, h, w)`): The drawn z̃_0 as indices, int64.
    """

    prev_sample: torch.Tensor
    pred_original_sample: torch.Tensor | None = None
    pred_original_codes: torch.Tensor | None = None


class CategoricalDDPMScheduler(LasersHubMixin, SchedulerMixin, ConfigMixin):
    r"""
    Denoises indices by drawing clean ones from the network's categorical distributions.

    Args:
        num_train_timesteps (`int`, defaults to 1000): Number T of steps of the forward process, from 1 to 2²⁰.
        beta_start (`float`, defaults to 1e-4): β_1, in (0, 1).
        beta_end (`float`, defaults to 2e-2): β_T, in (0, 1) and not below `beta_start`.
        beta_schedule (`str`, defaults to `"linear"`): `"linear"`, `"scaled_linear"` or `"squaredcos_cap_v2"`.
        trained_betas (`list[float]`, *optional*): All β. They replace the three arguments above, and T is their number.
        num_codewords (`int`, defaults to 256): Number |C| of codewords of each slot, from 2 to 2²⁴.
        temperature (`float`, defaults to 1.0): γ of eq 25, at least 0. 0 takes the most likely codeword.
        eta (`float`, defaults to 1.0): η in [0, 1]. 1 draws from the posterior, 0 is deterministic given z̃_0 (DDIM).
        timestep_spacing (`str`, defaults to `"leading"`): `"linspace"`, `"leading"` or `"trailing"`, as in diffusers.
        steps_offset (`int`, defaults to 0): Number that is added to `"leading"` timesteps, from 0 to 2²⁰.

    Raises:
        ValueError: If an argument is out of range. The error tells what is allowed.
    """

    order = 1
    _compatibles: list[str] = []
    _config_fields = {
        "num_train_timesteps": checks.Integer(1, 2**20),
        "beta_start": checks.Number(0.0, 1.0, above=True, below=True),
        "beta_end": checks.Number(0.0, 1.0, above=True, below=True),
        "beta_schedule": checks.Word(*BETA_SCHEDULES),
        "trained_betas": checks.Optional(checks.Sequence(checks.Number(0.0, 1.0, above=True, below=True), most=2**20)),
        "num_codewords": checks.Integer(2, 2**24),
        "temperature": checks.WEIGHT,
        "eta": checks.Number(0.0, 1.0),
        "timestep_spacing": checks.Word(*_SPACINGS),
        "steps_offset": checks.Integer(0, 2**20),
    }

    @register_to_config
    def __init__(
        self,
        num_train_timesteps: int = 1000,
        beta_start: float = 1e-4,
        beta_end: float = 2e-2,
        beta_schedule: str = "linear",
        trained_betas: list[float] | None = None,
        num_codewords: int = 256,
        temperature: float = 1.0,
        eta: float = 1.0,
        timestep_spacing: str = "leading",
        steps_offset: int = 0,
    ):
        if trained_betas is None:
            betas = make_betas(beta_schedule, num_train_timesteps, beta_start, beta_end)
        else:
            betas = torch.tensor(trained_betas, dtype=torch.float64)
            num_train_timesteps = len(betas)
            self.register_to_config(num_train_timesteps=num_train_timesteps)
        self.betas = betas.float()
        self.alphas = (1 - betas).float()
        self.alphas_cumprod = (1 - betas).cumprod(dim=0).float()
        self.init_noise_sigma = 1.0
        self.custom_timesteps = False
        self.num_inference_steps = None
        self.timesteps = torch.arange(num_train_timesteps - 1, -1, -1)
        self._following: dict[int, int] = {}

    @classmethod
    def _get_compatibles(cls) -> list[type]:
        return [cls]

    def __len__(self) -> int:
        return self.config.num_train_timesteps

    def scale_model_input(self, sample: torch.Tensor, timestep: int | torch.Tensor | None = None) -> torch.Tensor:
        """
        Returns the sample unchanged, since this scheduler does not scale it.

        Args:
            sample (`torch.Tensor`): A sample.
            timestep (`int`, *optional*): Not used.

        Returns:
            `torch.Tensor`: The sample.
        """
        return sample

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: str | torch.device | None = None,
        timesteps: list[int] | None = None,
    ) -> None:
        """
        Chooses the timesteps of the sampling loop.

        Args:
            num_inference_steps (`int`, *optional*): Number of timesteps, from 1 to T, spaced by `timestep_spacing`.
            device (`torch.device`, *optional*): Device of `timesteps`. Defaults to the CPU.
            timesteps (`list[int]`, *optional*): The timesteps themselves, from 0 to T − 1 in descending order, instead
                of `num_inference_steps`.

        Raises:
            ValueError: If both or neither of the two are given, or one is out of range.
        """
        total = self.config.num_train_timesteps
        if (num_inference_steps is None) == (timesteps is None):
            raise ValueError(
                f"Exactly one of `num_inference_steps` and `timesteps` must be given, got {num_inference_steps!r} and "
                f"{timesteps!r}."
            )
        if timesteps is not None:
            if not isinstance(timesteps, (list, tuple, np.ndarray, torch.Tensor)):
                raise ValueError(f"`timesteps` must be a list of integers, got {checks.shown(timesteps)}.")
            timesteps = [timestep_of(timestep, total, "timesteps") for timestep in timesteps]
            if not timesteps or any(after >= before for before, after in zip(timesteps, timesteps[1:])):
                raise ValueError(f"`timesteps` must be in descending order, got {timesteps}.")
            chosen = np.array(timesteps, dtype=np.int64)
        else:
            num_inference_steps = count_of_steps(num_inference_steps, total)
            spacing = self.config.timestep_spacing
            if spacing == "linspace":
                chosen = np.linspace(0, total - 1, num_inference_steps).round()[::-1]
            elif spacing == "leading":
                chosen = (np.arange(num_inference_steps) * (total // num_inference_steps))[::-1]
                chosen = np.minimum(chosen + self.config.steps_offset, total - 1)
            else:
                chosen = np.round(np.arange(total, 0, -total / num_inference_steps))[:num_inference_steps] - 1
            chosen = chosen.astype(np.int64)
        self.custom_timesteps = timesteps is not None
        self.num_inference_steps = len(chosen)
        self.timesteps = torch.from_numpy(chosen.copy()).to(device)
        self._following = dict(zip(chosen.tolist(), [*chosen[1:].tolist(), -1]))

    def previous_timestep(self, timestep: int | torch.Tensor) -> int:
        """
        The timestep to which a step leads.

        Args:
            timestep (`int` or 0-dim `torch.Tensor`): Timestep t.

        Returns:
            `int`: The next timestep of the loop after t, or -1 for a clean sample. Before `set_timesteps` it is t − 1.
            If t is not a timestep of the loop, it is t less the distance of the loop's timesteps (1 for given
            `timesteps`), at least -1.
        """
        timestep = int(timestep)
        if self.num_inference_steps is None:
            return timestep - 1
        if timestep in self._following:
            return self._following[timestep]
        stride = 1 if self.custom_timesteps else self.config.num_train_timesteps // self.num_inference_steps
        return max(timestep - stride, -1)

    def step(
        self,
        model_output: torch.Tensor,
        timestep: int | torch.Tensor,
        sample: torch.Tensor,
        generator: torch.Generator | list[torch.Generator] | None = None,
        temperature: float | None = None,
        eta: float | None = None,
        return_dict: bool = True,
    ) -> CategoricalDDPMSchedulerOutput | tuple[torch.Tensor, ...]:
        """
        Draws z̃_0 from the logits and z_s from the Gaussian between z_t and z̃_0.

        Args:
            model_output (`torch.Tensor` of shape `(B, c̄, |C|, h, w)`): Logits.
            timestep (`int` or 0-dim `torch.Tensor`): Timestep t, from 0 to T − 1.
            sample (`torch.Tensor` of shape `(B, c̄, h, w)`): z_t.
            generator (`torch.Generator` or a list of them, *optional*): One, or one for each item of the batch, on the
                CPU or the device of the sample.
            temperature (`float`, *optional*): γ, at least 0. Defaults to that of the configuration.
            eta (`float`, *optional*): η in [0, 1]. Defaults to that of the configuration.
            return_dict (`bool`, defaults to `True`): Whether to return an output class instead of a tuple.

        Returns:
            [`CategoricalDDPMSchedulerOutput`] or `tuple`: z_s and z̃_0 in the dtype of `sample`, and the indices of z̃_0.
            They are computed in float32 or better.

        Raises:
            ValueError: If shapes, timestep, γ or η do not fit.
        """
        codewords = self.config.num_codewords
        shape = (*sample.shape[:2], codewords, *sample.shape[2:])
        if model_output.shape != shape:
            raise ValueError(
                f"`model_output` must have shape {shape}, logits of {codewords} codewords, got "
                f"{tuple(model_output.shape)}."
            )
        check_step_numbers(temperature=temperature, eta=eta)
        timestep = timestep_of(timestep, self.config.num_train_timesteps)
        eta = self.config.eta if eta is None else eta
        codes = sample_categorical(
            model_output, self.config.temperature if temperature is None else temperature, generator
        )
        precise = torch.promote_types(sample.dtype, torch.float32)
        original = index_to_number(codes, codewords).to(precise)
        following = self.previous_timestep(timestep)
        now = self.alphas_cumprod[timestep].item()
        then = self.alphas_cumprod[following].item() if following >= 0 else 1.0
        mean, variance = posterior_mean_variance(sample.to(precise), original, now, then, eta)
        if following >= 0 and eta > 0:
            noise = randn_tensor(sample.shape, generator=generator, device=sample.device, dtype=precise)
            mean = mean + variance.sqrt() * noise
        output = (mean.to(sample.dtype), original.to(sample.dtype), codes)
        return CategoricalDDPMSchedulerOutput(*output) if return_dict else output

    def add_noise(self, original_samples: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        """
        The forward process: adds Gaussian noise.

        Args:
            original_samples (`torch.Tensor` of shape `(B, c̄, h, w)`): Indices as numbers in [-1, 1].
            noise (`torch.Tensor` of the same shape): Standard normal numbers.
            timesteps (`torch.Tensor` of shape `(B,)`): Timestep t of each item, from 0 to T − 1; int64.

        Returns:
            `torch.Tensor` of the same shape: z_t.

        Raises:
            ValueError: If the timesteps are not integers of this shape or, on the CPU, out of range.
        """
        check_timesteps(timesteps, len(original_samples), self.config.num_train_timesteps)
        alphas = self.alphas_cumprod.to(original_samples.device)[timesteps.to(original_samples.device)]
        return add_gaussian_noise(original_samples, noise, alphas)
