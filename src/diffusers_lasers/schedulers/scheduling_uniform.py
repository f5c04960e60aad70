r"""Uniform diffusion of indices: the D3PM whose forward process replaces indices by uniformly drawn ones (Austin et
al., 2021, appendix A.2).

At time t of T, an index is unchanged with probability ᾱ_t = 1 − t / T. Otherwise it is drawn uniformly from all
indices. The reverse process is that of diffusers' `DiscreteDDIMScheduler`. That class has no forward process, which is
added here.
"""

from __future__ import annotations

import torch
from diffusers import DiscreteDDIMScheduler
from diffusers.configuration_utils import register_to_config

from ..functional.diffusion.categorical import scramble
from ..utils import config_checks as checks
from ..utils.hub import LasersHubMixin
from .timesteps import check_timesteps, linear_survival


__all__ = ["UniformD3PMScheduler"]

_SELECTIONS = ("lowest_log_margin", "lowest_maxprob", "lowest_current_prob", "random")


class UniformD3PMScheduler(LasersHubMixin, DiscreteDDIMScheduler):
    """
    Adds the forward process for training to diffusers' `DiscreteDDIMScheduler`.

    Args:
        num_train_timesteps (`int`, defaults to 1000): T, from 1 to 2²⁰. Timestep t, from 0 to T − 1, is time t + 1.
        num_codewords (`int`, defaults to 256): Number |C| of codewords, from 2 to 2²⁴.
        num_inference_steps (`int`, defaults to 32): As in `DiscreteDDIMScheduler`, whose `timesteps` are ascending.
        corrector_steps (`int`, defaults to 0): As in `DiscreteDDIMScheduler`.
        corrector_k (`int`, defaults to 1): As in `DiscreteDDIMScheduler`.
        corrector_selection (`str`, defaults to `"lowest_log_margin"`): As in `DiscreteDDIMScheduler`.
        corrector_selection_tau (`float`, defaults to 1.0): As in `DiscreteDDIMScheduler`.

    Raises:
        ValueError: If an argument is out of range.
    """

    _compatibles: list[str] = []
    _config_fields = {
        "num_train_timesteps": checks.Integer(1, 2**20),
        "num_codewords": checks.Integer(2, 2**24),
        "num_inference_steps": checks.Integer(1, 2**20),
        "corrector_steps": checks.Integer(0, 2**20),
        "corrector_k": checks.Integer(1, 2**24),
        "corrector_selection": checks.Word(*_SELECTIONS),
        "corrector_selection_tau": checks.Number(0.0, above=True),
    }

    @register_to_config
    def __init__(
        self,
        num_train_timesteps: int = 1000,
        num_codewords: int = 256,
        num_inference_steps: int = 32,
        corrector_steps: int = 0,
        corrector_k: int = 1,
        corrector_selection: str = "lowest_log_margin",
        corrector_selection_tau: float = 1.0,
    ):
        super().__init__(
            num_inference_steps, corrector_steps, corrector_k, corrector_selection, corrector_selection_tau
        )

    @classmethod
    def _get_compatibles(cls) -> list[type]:
        return [cls]

    def __len__(self) -> int:
        return self.config.num_train_timesteps

    def survival(self, timesteps: torch.Tensor) -> torch.Tensor:
        """
        Probability that an index has not been drawn anew.

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
        The forward process: replaces indices at random by uniformly drawn ones.

        Args:
            original_samples (`torch.Tensor` of shape `(B, c̄, h, w)`): Indices, int64.
            timesteps (`torch.Tensor` of shape `(B,)`): Timestep of each item, from 0 to T − 1; integers.
            generator (`torch.Generator` or a list of them, *optional*): One, or one for each item of the batch.

        Returns:
            `torch.Tensor` of the same shape: Indices, int64.

        Raises:
            ValueError: If the timesteps are not integers of this shape or, on the CPU, out of range.
        """
        check_timesteps(timesteps, len(original_samples), self.config.num_train_timesteps)
        return scramble(original_samples, self.survival(timesteps), self.config.num_codewords, generator)
