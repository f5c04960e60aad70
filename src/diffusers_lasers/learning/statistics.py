r"""The statistics of online dictionary learning, with a scalar factor for the forgetting (LASERS, 2024, eqs 23–26).

Stored are A' and B' with A = σ A' and B = σ B'. A step A ← β A + γγᵀ / ξ becomes

    σ ← βᵖ σ,    A' ← A' + γγᵀ / (ξ σ) .

It writes only the entries of the atoms of a code: S² of the K² numbers for each signal. The update of the atoms (eq 27)
does not depend on σ. If σ falls below 1e-4, A' and B' are multiplied by it and σ is set to 1. The exponent p is 1 in
the paper. After t minibatches, minibatch s has about the weight (s / t)ᵖ.

Sums are divided by the nominal batch size ξ, not by the number of signals, so that a short minibatch has a smaller
weight. With several ranks, the sums are reduced before they are added.
"""

from __future__ import annotations

from typing import Any

import torch

from ..functional.dictionary.online_learning import accumulate_statistics, forgetting_factor
from ..utils.distributed import all_reduce_sum, rank_and_world_size


_SMALLEST_SCALE = 1e-4


class ScaledStatistics:
    """
    Creates empty statistics.

    Args:
        features (`int`): Length of an atom.
        atoms (`int`): Number of atoms.
        device (`torch.device`): Device of the statistics.
        dtype (`torch.dtype`): `torch.float32` or `torch.float64`.
        forgetting (`float`): The exponent p, at least 0.

    Attributes:
        A (`torch.Tensor` of shape `(atoms, atoms)`): A', contiguous.
        B (`torch.Tensor` of shape `(features, atoms)`): B', the transpose of a contiguous matrix.
        scale (`float`): σ.
        counts (`torch.Tensor` of shape `(atoms,)`): Number of codes that used each atom since the last reset; int64.
    """

    def __init__(self, features: int, atoms: int, device: torch.device, dtype: torch.dtype, forgetting: float):
        self.forgetting = forgetting
        self.A = torch.zeros(atoms, atoms, device=device, dtype=dtype)
        self.B = torch.zeros(atoms, features, device=device, dtype=dtype).t()
        self.scale = 1.0
        self.counts = torch.zeros(atoms, device=device, dtype=torch.int64)

    @torch.no_grad()
    def add(
        self, signals: torch.Tensor, indices: torch.Tensor, coefficients: torch.Tensor, step: int, batch_size: int
    ) -> None:
        """
        Adds the codes of a minibatch, over all ranks.

        Args:
            signals (`torch.Tensor` of shape `(n, features)`): This rank's signals; n may be 0.
            indices (`torch.Tensor` of shape `(n, sparsity)`): Their atoms, −1 in unused slots.
            coefficients (`torch.Tensor` of shape `(n, sparsity)`): Their coefficients.
            step (`int`): Number of the minibatch, from 1.
            batch_size (`int`): Nominal number ξ of signals, of all ranks together.
        """
        if step > 1:
            self.scale *= forgetting_factor(step, batch_size) ** self.forgetting
        if self.scale < _SMALLEST_SCALE:
            self.A.mul_(self.scale)
            self.B.mul_(self.scale)
            self.scale = 1.0
        weight = 1 / (batch_size * self.scale)
        used = (indices >= 0).flatten()
        slots = indices.clamp(min=0).flatten()
        if rank_and_world_size()[1] == 1:
            accumulate_statistics(self.A, self.B, signals, indices, coefficients, weight=weight, in_place=True)
            self.counts.index_add_(0, slots, used.to(torch.int64))
            return
        atoms, features = self.B.t().shape
        flat = self.A.new_zeros(atoms * (atoms + features + 1))  # one reduction for all three
        A, B, counts = flat.split([atoms * atoms, atoms * features, atoms])
        A, B = A.view(atoms, atoms), B.view(atoms, features).t()
        accumulate_statistics(A, B, signals, indices, coefficients, weight=weight, in_place=True)
        counts.index_add_(0, slots, used.to(flat.dtype))  # exact below 2²⁴ signals
        all_reduce_sum(flat)
        self.A.add_(A)
        self.B.add_(B)
        self.counts.add_(counts.to(torch.int64))

    @torch.no_grad()
    def forget(self, atoms: torch.Tensor) -> None:
        """
        Sets the statistics of some atoms to zero.

        Args:
            atoms (`torch.Tensor` of shape `(atoms,)`): The atoms; bool.
        """
        self.A.masked_fill_(atoms, 0.0).masked_fill_(atoms.unsqueeze(1), 0.0)
        self.B.masked_fill_(atoms, 0.0)

    def state_dict(self) -> dict[str, Any]:
        """
        The state of the statistics.

        Returns:
            `dict`: Copies of A', B' and the counts, and σ.
        """
        tensors = {"code_statistics": self.A, "signal_statistics": self.B.t(), "counts": self.counts}
        return {**{name: tensor.clone() for name, tensor in tensors.items()}, "scale": self.scale}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """
        Loads a state.

        Args:
            state (`dict`): A result of `state_dict` for the same numbers of features and atoms. Other entries are
                ignored.
        """
        self.A.copy_(state["code_statistics"])
        self.B.copy_(state["signal_statistics"].t())
        self.counts.copy_(state["counts"])
        self.scale = state["scale"]
