r"""The dictionary learned without a learning rate, inside the training of an autoencoder (LASERS, 2024, supplement 8,
eqs 23–28).

After each optimiser step the statistics of the codes move, A ← β A + γγᵀ / ξ, B ← β B + zγᵀ / ξ, and one pass of
block-coordinate descent moves the atoms. The sums are reduced over ranks. The mathematics is
`functional.dictionary.online_learning`.

What we add: β of eqs 25 and 26 is about 1 − 1/t, so that after t steps the statistics remember about t/2 of them. The
encoder does not stand still for so long; `memory` bounds t in β. The paper's rule is `memory=None`.
"""

from __future__ import annotations

from typing import Any

import torch

from ...coding.codes import SparseCode
from ...functional.dictionary.online_learning import block_coordinate_update
from ...learning.statistics import ScaledStatistics
from ...utils.distributed import broadcast, rank_and_world_size


__all__ = ["BlockCoordinateUpdate"]


class BlockCoordinateUpdate:
    """
    Creates the learning-rate-free update of a bottleneck's dictionary, for [`DictionaryUpkeep`].

    The dictionary must not be in the optimiser; its `requires_grad` is turned off here.

    Args:
        bottleneck ([`DictionaryBottleneck`]): The bottleneck, not wrapped for distribution.
        memory (`int`, *optional*, defaults to 500): Steps that the statistics remember, about; `None` is the paper's
            rule, whose memory grows.

    Raises:
        ValueError: If `memory` is below 1.
    """

    def __init__(self, bottleneck: torch.nn.Module, memory: int | None = 500):
        if memory is not None and memory < 1:
            raise ValueError(f"`memory` must be at least 1 step, or None, got {memory!r}.")
        self.bottleneck, self.memory = bottleneck, memory
        self.step = 0
        self._batches: list[tuple[torch.Tensor, ...]] = []
        bottleneck.dictionary.requires_grad_(False)
        self._statistics: ScaledStatistics | None = None

    @property
    def statistics(self) -> ScaledStatistics:
        """A and B, where the dictionary is."""
        dictionary = self.bottleneck.dictionary
        if self._statistics is None:
            self._statistics = ScaledStatistics(*dictionary.shape, dictionary.device, torch.float32, forgetting=1.0)
        return self._statistics

    @torch.no_grad()
    def observe(self, code: SparseCode, latents: torch.Tensor) -> None:
        """
        Notes a micro-batch for the next `update`.

        Args:
            code ([`SparseCode`]): Its code.
            latents (`torch.Tensor` of shape `(B, L, H, W)`): The latents that were coded.
        """
        signals = self.bottleneck.signals(latents.detach())
        self._batches.append((signals, code.indices.flatten(0, 2), code.coefficients.flatten(0, 2).float()))

    @torch.no_grad()
    def update(self) -> None:
        """Moves the statistics by what was noted, and the atoms by one pass; the same on all ranks."""
        signals, indices, coefficients = (torch.cat(parts) for parts in zip(*self._batches))
        self._batches.clear()
        self.step += 1
        step = self.step if self.memory is None else min(self.step, self.memory)
        size = signals.shape[0] * rank_and_world_size()[1]
        self.statistics.add(signals, indices, coefficients, step, size)
        dictionary = self.bottleneck.dictionary
        updated = block_coordinate_update(dictionary, self.statistics.A, self.statistics.B)
        dictionary.copy_(broadcast(updated.to(dictionary.dtype)))

    def forget(self, atoms: torch.Tensor) -> None:
        """
        Drops the statistics of revived atoms.

        Args:
            atoms (`torch.Tensor` of shape `(atoms,)`): Which; bool.
        """
        self.statistics.forget(atoms)

    def state_dict(self) -> dict[str, Any]:
        """The step and the statistics."""
        return {"step": self.step, "statistics": self.statistics.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """
        Goes on from a saved state.

        Args:
            state (`dict`): What `state_dict` gave.
        """
        self.step = int(state["step"])
        self.statistics.load_state_dict(state["statistics"])
