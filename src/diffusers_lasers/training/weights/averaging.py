r"""An exponential moving average of everything that `save_pretrained` stores: parameters *and* buffers.

    ē ← d_t ē + (1 − d_t) θ,        d_t = min(d, (1 + t) / (10 + t))

with t the updates so far, so that the random weights of the start are forgotten at once. Buffers count because a
codebook of running means is one. Numbers that are no floats (counters) are copied. The mean of unit vectors is shorter
than one: columns that live on the sphere, the atoms, are brought back to it, so that an averaged model is one that
training could have reached.

The average of a sharded model ([`FullySharded`]) is sharded like it; its state is whole.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from ...functional.dictionary import normalize_atoms
from .sharding import full_tensor, local_part, write_full


__all__ = ["ModelAverage"]


class ModelAverage:
    """
    Creates the average of a model, at first a copy of it; a part of what [`RunFolder`] saves. Nothing here waits for
    the device.

    Args:
        model (`torch.nn.Module`): The model, not wrapped for distribution. It is not kept.
        decay (`float`, defaults to 0.999): d, in [0, 1).
        unit_columns (`Sequence[str]`, defaults to `("bottleneck.dictionary",)`): Names of tensors whose columns have
            unit norm; those that the model lacks do not matter.

    Attributes:
        tensors (`dict[str, torch.Tensor]`): The averaged state dict.
        updates (`int`): Updates so far.

    Raises:
        ValueError: If `decay` is out of range.
    """

    def __init__(
        self, model: nn.Module, decay: float = 0.999, unit_columns: Sequence[str] = ("bottleneck.dictionary",)
    ):
        if not 0.0 <= decay < 1.0:
            raise ValueError(f"`decay` must lie in [0, 1), got {decay!r}.")
        self.decay = decay
        self.updates = 0
        self.tensors = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
        self.unit_columns = [name for name in unit_columns if name in self.tensors]

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """
        Moves the average towards the model; call it once after each optimiser step.

        Args:
            model (`torch.nn.Module`): The model, not wrapped.
        """
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        self.updates += 1
        now = model.state_dict()
        floats = [name for name, tensor in self.tensors.items() if tensor.is_floating_point()]
        pairs = ([local_part(tensors[name]) for name in floats] for tensors in (self.tensors, now))
        torch._foreach_lerp_(*pairs, 1.0 - decay)
        for name, tensor in self.tensors.items():
            if not tensor.is_floating_point():
                tensor.copy_(now[name])
        for name in self.unit_columns:
            self.tensors[name].copy_(normalize_atoms(self.tensors[name]))

    @torch.no_grad()
    def reset_columns(self, name: str, columns: torch.Tensor, model: nn.Module) -> None:
        """
        Takes columns from the model as they are: revived atoms have no past to be averaged with.

        Args:
            name (`str`): Name of the tensor, `(features, atoms)`.
            columns (`torch.Tensor` of shape `(atoms,)`): Which; bool.
            model (`torch.nn.Module`): The model, not wrapped.
        """
        tensor = self.tensors[name]
        tensor.copy_(torch.where(columns, model.state_dict()[name], tensor))

    @contextmanager
    def applied(self, model: nn.Module) -> Iterator[None]:
        """
        In this context the model has the averaged weights; afterwards its own again.

        Args:
            model (`torch.nn.Module`): The model, not wrapped.
        """
        own = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
        model.load_state_dict(self.tensors)
        try:
            yield
        finally:
            model.load_state_dict(own)

    def state_dict(self) -> dict[str, Any]:
        """The averaged tensors and the number of updates. With a sharded model all ranks have to call it."""
        tensors = {name: full_tensor(tensor).cpu() for name, tensor in self.tensors.items()}
        return {"updates": self.updates, "tensors": tensors}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """
        Goes on from a saved state.

        Args:
            state (`dict`): What `state_dict` gave.

        Raises:
            ValueError: If the state belongs to another model.
        """
        if {n: t.shape for n, t in state["tensors"].items()} != {n: t.shape for n, t in self.tensors.items()}:
            raise ValueError("`state` must hold the tensors of this model, it holds others or of other shapes.")
        self.updates = int(state["updates"])
        for name, tensor in self.tensors.items():
            write_full(tensor, state["tensors"][name])
