r"""Absorbing (masked) diffusion of indices: the D3PM whose forward process masks indices one by one (Austin et al.,
2021, appendix A.2).

At time t of T, each index is masked with probability t / T, so that ᾱ_t = 1 − t / T (β_t = 1 / (T − t + 1)). The
posterior does not change visible indices. It replaces a masked index by one drawn from the network's distribution of
the clean index, with probability

    P(visible at s | masked at t) = (ᾱ_s − ᾱ_t) / (1 − ᾱ_t).

It is a baseline for [`CategoricalDDPMScheduler`], like the uniform [`UniformD3PMScheduler`].
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from diffusers import ConfigMixin, SchedulerMixin
from diffusers.configuration_utils import register_to_config
from diffusers.utils import BaseOutput

from ..functional.diffusion.categorical import absorb, sample_categorical, uniform_noise
from ..utils import config_checks as checks
from ..utils.hub import LasersHubMixin
from .timesteps import check_step_numbers, check_timesteps, count_of_steps, linear_survival, timestep_of


__all__ = ["AbsorbingD3PMScheduler", "AbsorbingD3PMSchedulerOutput"]


@dataclass
class AbsorbingD3PMSchedulerOutput(BaseOutput):
    """
    Output of [`AbsorbingD3PMScheduler.step`].

    Args:
        prev_sample (`torch.Tensor` of shape `(B, c̄, h, w)`): Indices at the next timestep, int64; |C| is the mask.
        pred_original_codes (`torch.Tensor` of shape `(B, c̄, h, w)`): The clean indices that were drawn, int64.
    """

    prev_sample: torch.Tensor
    pred_original_codes: torch.Tensor | None = None


class AbsorbingD3PMScheduler(LasersHubMixin, SchedulerMixin, ConfigMixin):
    """
    Replaces masked indices step by step.

    Args:
        num_train_timesteps (`int`, defaults to 1000): T, from 1 to 2²⁰. Timestep t, from 0 to T − 1, is time t + 1.
        num_codewords (`int`, defaults to 256): Number |C| of codewords, from 2 to 2²⁴. The mask is index |C|.
        temperature (`float`, defaults to 1.0): Temperature for drawing clean indices, at least 0. 0 takes the most
            likely index.

    Raises:
        ValueError: If an argument is out of range.
    """

    order = 1
    _compatibles: list[str] = []
    _config_fields = {
        "num_train_timesteps": checks.Integer(1, 2**20),
        "num_codewords": checks.Integer(2, 2**24),
        "temperature": checks.WEIGHT,
    }

    @register_to_config
    def __init__(self, num_train_timesteps: int = 1000, num_codewords: int = 256, temperature: float = 1.0):
        self.init_noise_sigma = 1.0  # pipelines read it; a sample of masks is not scaled
        self.num_inference_steps = None
        self.timesteps = torch.arange(num_train_timesteps - 1, -1, -1)
        self._following: dict[int, int] = {}

    @classmethod
    def _get_compatibles(cls) -> list[type]:
        return [cls]

    def __len__(self) -> int:
        return self.config.num_train_timesteps

    def set_timesteps(self, num_inference_steps: int, device: str | torch.device | None = None) -> None:
        """
        Chooses evenly spaced timesteps for the sampling loop, from T − 1 on.

        Args:
            num_inference_steps (`int`): Number of timesteps, from 1 to T.
            device (`torch.device`, *optional*): Device of `timesteps`. Defaults to the CPU.

        Raises:
            ValueError: If the number is out of range.
        """
        total = self.config.num_train_timesteps
        self.num_inference_steps = count_of_steps(num_inference_steps, total)
        times = torch.linspace(total, 0, num_inference_steps + 1, dtype=torch.float64).round().long() - 1
        self.timesteps = times[:-1].to(device)
        self._following = dict(zip(times[:-1].tolist(), times[1:].tolist()))

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

    def survival(self, timesteps: torch.Tensor) -> torch.Tensor:
        """
        Expected share of visible indices.

        Args:
            timesteps (`torch.Tensor`): Timesteps from -1 to T − 1; -1 is clean.

        Returns:
            `torch.Tensor` of the same shape: ᾱ = 1 − (t + 1) / T.
        """
        return linear_survival(timesteps, self.config.num_train_timesteps)

    def add_noise(
        self,
        original_samples: torch.Tensor,
        timesteps: torch.Tensor,
        generator: torch.Generator | list[torch.Generator] | None = None,
    ) -> torch.Tensor:
        """
        The forward process: masks indices at random.

        Args:
            original_samples (`torch.Tensor` of shape `(B, c̄, h, w)`): Indices, int64.
            timesteps (`torch.Tensor` of shape `(B,)`): Timestep of each item, from 0 to T − 1; integers.
            generator (`torch.Generator` or a list of them, *optional*): One, or one for each item of the batch.

        Returns:
            `torch.Tensor` of the same shape: Indices, int64. Masked ones are |C|.

        Raises:
            ValueError: If the timesteps are not integers of this shape or, on the CPU, out of range.
        """
        check_timesteps(timesteps, len(original_samples), self.config.num_train_timesteps)
        return absorb(original_samples, self.survival(timesteps), self.config.num_codewords, generator)

    def step(
        self,
        model_output: torch.Tensor,
        timestep: int | torch.Tensor,
        sample: torch.Tensor,
        generator: torch.Generator | list[torch.Generator] | None = None,
        temperature: float | None = None,
        return_dict: bool = True,
    ) -> AbsorbingD3PMSchedulerOutput | tuple[torch.Tensor, ...]:
        """
        Draws clean indices and replaces some of the masked ones by them.

        Args:
            model_output (`torch.Tensor` of shape `(B, c̄, |C|, h, w)`): Logits of the clean indices.
            timestep (`int` or 0-dim `torch.Tensor`): Timestep t, from 0 to T − 1.
            sample (`torch.Tensor` of shape `(B, c̄, h, w)`): Indices, int64, |C| where masked.
            generator (`torch.Generator` or a list of them, *optional*): One, or one for each item of the batch.
            temperature (`float`, *optional*): Temperature, at least 0. Defaults to that of the configuration.
            return_dict (`bool`, defaults to `True`): Whether to return an output class instead of a tuple.

        Returns:
            [`AbsorbingD3PMSchedulerOutput`] or `tuple`: Indices at the next timestep of the loop, and the clean indices
            that were drawn. If t is not a timestep of the loop, the next one is t − 1.

        Raises:
            ValueError: If shapes, timestep or temperature do not fit.
        """
        expected = (*sample.shape[:2], self.config.num_codewords, *sample.shape[2:])
        if model_output.shape != expected:
            raise ValueError(f"`model_output` must have shape {expected}, got {tuple(model_output.shape)}.")
        check_step_numbers(temperature=temperature)
        timestep = timestep_of(timestep, self.config.num_train_timesteps)
        following = self._following.get(timestep, timestep - 1)
        now, then = (linear_survival(t, self.config.num_train_timesteps) for t in (timestep, following))
        codes = sample_categorical(
            model_output, self.config.temperature if temperature is None else temperature, generator
        )
        mask = self.config.num_codewords
        shown = uniform_noise(sample.shape, generator, sample.device) < (then - now) / (1 - now)
        if following < 0:
            shown = torch.ones_like(shown)
        output = (torch.where((sample == mask) & shown, codes, sample), codes)
        return AbsorbingD3PMSchedulerOutput(*output) if return_dict else output
