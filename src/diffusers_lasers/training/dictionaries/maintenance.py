r"""What a dictionary needs around an optimiser step.

The atoms live on the unit sphere, ‖d_j‖ = 1. A step of Riemannian gradient descent projects the gradient on the tangent
space before the optimiser and retracts the atoms after it:

    g_j ← g_j − d_j (d_j · g_j),        d_j ← d_j / ‖d_j‖ .

Adam scales each coordinate on its own and so leaves the tangent space again; the retraction makes up for that.

What we add to the paper: *revival*. An atom that no site chose during a window of steps gets no gradient and stays
dead; every `revive_every` steps at most `revive_fraction` of the atoms, all of them dead, are replaced by normalised
signals of the current batch, drawn with probability proportional to the energy ‖y − Dγ‖² that the dictionary leaves
unexplained. Their Adam moments are zeroed, for those belong to the atom that is gone (the authors' later code,
helloimlixin/laser, does the same).

Nothing here waits for the device: counts stay tensors, masks replace branches, and whether an event is due is counted
on the host. Counts are summed over ranks, rank 0's new atoms are sent to all, and the noise of an event
follows from `seed` and the step, so that a run that resumes from a checkpoint repeats the run that was never stopped.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from ...coding.codes import SparseCode
from ...functional.dictionary import normalize_atoms, project_to_tangent
from ...learning.revival import revive_unused
from ...utils.distributed import all_reduce_sum
from ...utils.seeding import seeded_generator
from .block_coordinate import BlockCoordinateUpdate


__all__ = ["DictionaryUpkeep"]

_MAX_CANDIDATES = 65536


class DictionaryUpkeep:
    r"""
    Creates the upkeep of a bottleneck's dictionary: tangent projection, retraction to unit norm, revival of dead
    atoms.

    For a bottleneck without a trainable parameter `dictionary` (VQ, FSQ, none, a frozen dictionary) every method does
    nothing, so that a training loop needs no branch.

    Args:
        bottleneck (`torch.nn.Module`):
            The bottleneck, not wrapped for distribution. Its parameter `dictionary` has shape `(features, atoms)`;
            `signals(latents)` gives the `(N, features)` fp32 signals that it codes.
        optimizer (`torch.optim.Optimizer`):
            The optimiser that holds the dictionary; the moments of revived atoms are zeroed.
        revive_every (`int`, defaults to 100): Steps of a window of usage; 0 turns revival off.
        revive_fraction (`float`, defaults to 0.05):
            Largest share of the atoms, in [0, 1], that one event may replace; above 0 it is at least one atom.
        jitter (`float`, defaults to 0.05): Noise on a revived atom, relative to its norm.
        tangent_projection (`bool`, defaults to `True`): Whether `before_step` projects the gradient.
        block_coordinate ([`BlockCoordinateUpdate`], *optional*): Moves the atoms instead of the optimiser, in
            `after_step`.
        on_revival (`Callable[[torch.Tensor], Any]`, *optional*): Receives the mask of the atoms of each event after it,
            e.g. to reset an average.
        seed (`int`, defaults to 0): Seed of the events' randomness, not negative.

    Attributes:
        counts (`torch.Tensor` of shape `(atoms,)`): Support slots that each atom filled in the window, over all ranks;
            int64.
        revived (`torch.Tensor`): Atoms replaced so far, 0-dim; int64.

    Raises:
        ValueError: If `revive_every` or `seed` is negative or `revive_fraction` is outside [0, 1]; in an event, if the
            dictionary's moments are no floats.

    Example:
        ```py
        upkeep = DictionaryUpkeep(model.bottleneck, optimizer)
        for images in loader:
            output = model(images)
            (loss_function(output.sample, images).loss + output.loss).backward()
            upkeep.before_step()
            optimizer.step()
            upkeep.after_step(output.code, output.latents)
            optimizer.zero_grad()
        ```
    """

    def __init__(
        self,
        bottleneck: nn.Module,
        optimizer: torch.optim.Optimizer,
        revive_every: int = 100,
        revive_fraction: float = 0.05,
        jitter: float = 0.05,
        tangent_projection: bool = True,
        seed: int = 0,
        block_coordinate: BlockCoordinateUpdate | None = None,
        on_revival: Callable[[torch.Tensor], Any] | None = None,
    ):
        if revive_every < 0:
            raise ValueError(f"`revive_every` must be 0 (never) or a number of steps, got {revive_every!r}.")
        if not 0.0 <= revive_fraction <= 1.0:
            raise ValueError(f"`revive_fraction` must lie in [0, 1], got {revive_fraction!r}.")
        if seed < 0:
            raise ValueError(f"`seed` must not be negative, got {seed!r}.")
        self.bottleneck = bottleneck
        self.optimizer = optimizer
        self.tangent_projection = tangent_projection
        self.revive_every = revive_every
        self.revive_fraction = revive_fraction
        self.jitter = jitter
        self.seed = seed
        self.block_coordinate = block_coordinate
        self.on_revival = on_revival
        self.step = 0
        dictionary = getattr(bottleneck, "dictionary", None)
        trained = block_coordinate is not None or getattr(dictionary, "requires_grad", False)
        self.active = isinstance(dictionary, nn.Parameter) and trained
        atoms = dictionary.shape[1] if self.active else 0
        self.counts = torch.zeros(atoms, dtype=torch.int64)
        self.revived = torch.zeros((), dtype=torch.int64)
        self._limit = max(int(revive_fraction * atoms), 1) if self.active and revive_fraction > 0 else 0

    @property
    def dictionary(self) -> nn.Parameter:
        """The parameter under care, `(features, atoms)`."""
        return self.bottleneck.dictionary

    @torch.no_grad()
    def before_step(self) -> None:
        """Projects the dictionary's gradient on the sphere's tangent space; call between backward and step."""
        if self.active and self.tangent_projection and self.dictionary.grad is not None:
            self.dictionary.grad.copy_(project_to_tangent(self.dictionary.grad, self.dictionary))

    @torch.no_grad()
    def observe(self, code: SparseCode, latents: torch.Tensor) -> None:
        """
        Notes a code: its atoms are counted in the current window. `after_step` does so itself; call this for the other
        micro-batches of an accumulated step.

        Args:
            code ([`SparseCode`]): The code of the batch.
            latents (`torch.Tensor` of shape `(B, L, H, W)`): The latents that were coded; read by `block_coordinate`
                alone.
        """
        if not self.active:
            return
        if self.block_coordinate is not None:
            self.block_coordinate.observe(code, latents)
        if not self.revive_every:
            return
        counts = code.usage_counts()[0]  # of the one dictionary
        self.counts = self.counts.to(counts.device) + all_reduce_sum(counts)

    @torch.no_grad()
    def after_step(self, code: SparseCode, latents: torch.Tensor) -> None:
        """
        Retracts the atoms to unit norm, or moves them by `block_coordinate`, counts their usage and, where an event is
        due, revives dead ones.

        Args:
            code ([`SparseCode`]): The code of the batch that the step was taken on.
            latents (`torch.Tensor` of shape `(B, L, H, W)`):
                The latents that were coded; read only when an event is due.
        """
        if not self.active:
            return
        self.observe(code, latents)
        if self.block_coordinate is None:
            self.dictionary.copy_(normalize_atoms(self.dictionary))
        else:
            self.block_coordinate.update()
        self.step += 1
        if self.revive_every and self.step % self.revive_every == 0:
            self._revive(code, latents)

    def _revive(self, code: SparseCode, latents: torch.Tensor) -> None:
        """Replaces dead atoms on rank 0, sends the dictionary to all ranks and zeroes the replaced columns' moments."""
        dictionary = self.dictionary
        generator = seeded_generator(self.seed, self.step, device=dictionary.device)
        signals = self.bottleneck.signals(latents.detach()).float()  # (N, features)
        stride = -(-signals.shape[0] // _MAX_CANDIDATES)
        indices, coefficients = code.indices.flatten(0, 2), code.coefficients.flatten(0, 2).float()  # (N, S)
        batch = (part[::stride] for part in (signals, indices, coefficients))
        revived, dead = revive_unused(dictionary.detach(), self.counts, *batch, self._limit, self.jitter, generator)
        dictionary.copy_(revived)
        for moment in self.optimizer.state.get(dictionary, {}).values():
            if torch.is_tensor(moment) and moment.shape == dictionary.shape:
                if not moment.is_floating_point():  # numbers of a code book, of which 0 is the lowest and not zero
                    raise ValueError(f"`optimizer` must keep the dictionary's moments as floats, got {moment.dtype}.")
                moment.masked_fill_(dead, 0.0)
        if self.block_coordinate is not None:
            self.block_coordinate.forget(dead)
        if self.on_revival is not None:
            self.on_revival(dead)
        self.revived = self.revived.to(dead.device) + dead.sum()
        self.counts.zero_()

    def state_dict(self) -> dict[str, Any]:
        """The step, the window's counts and the state of `block_coordinate`; the rest follows from the arguments."""
        state = {"step": self.step, "counts": self.counts.cpu(), "revived": self.revived.cpu()}
        if self.block_coordinate is not None:
            state["block_coordinate"] = self.block_coordinate.state_dict()
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """
        Goes on from a saved state.

        Args:
            state (`dict`): What `state_dict` gave.

        Raises:
            ValueError: If the state belongs to a dictionary with another number of atoms, or that is updated otherwise.
        """
        if ("block_coordinate" in state) != (self.block_coordinate is not None):
            raise ValueError("`state` must come from the same kind of update, by gradient or by `block_coordinate`.")
        counts = state["counts"]
        if counts.shape != self.counts.shape:
            raise ValueError(f"`state` must count {self.counts.numel()} atoms, it counts {counts.numel()}.")
        self.step = int(state["step"])
        self.counts = counts.clone().to(self.counts.device)
        self.revived = state["revived"].clone()
        if self.block_coordinate is not None:
            self.block_coordinate.load_state_dict(state["block_coordinate"])
