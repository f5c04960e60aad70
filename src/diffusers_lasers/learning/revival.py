"""Revival of unused atoms: each becomes a signal that the dictionary codes badly, drawn in proportion to its residual
energy."""

from __future__ import annotations

import torch

from ..functional.dictionary import draw_signals, draw_subset, revive_atoms
from ..functional.pursuit.synthesis import synthesize
from ..utils.distributed import broadcast


@torch.no_grad()
def revive_unused(
    dictionary: torch.Tensor,
    counts: torch.Tensor,
    signals: torch.Tensor,
    indices: torch.Tensor,
    coefficients: torch.Tensor,
    limit: int,
    jitter: float,
    generator: torch.Generator,
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Replaces atoms that no code used. Rank 0 draws the new atoms for all ranks. Nothing is decided on the host.

    Args:
        dictionary (`torch.Tensor` of shape `(features, atoms)`): Unit-norm atoms as columns.
        counts (`torch.Tensor` of shape `(atoms,)`): Support slots that each atom filled; 0 marks an unused one.
        signals (`torch.Tensor` of shape `(N, features)`): Signals to draw from.
        indices (`torch.Tensor` of shape `(N, S)`): Atoms of their codes, −1 in unused slots.
        coefficients (`torch.Tensor` of shape `(N, S)`): Coefficients of their codes.
        limit (`int`): Largest number of atoms to replace.
        jitter (`float`): Expected norm of the noise on a new atom, relative to a unit signal.
        generator (`torch.Generator`): Source of randomness, on any device.

    Returns:
        `tuple[torch.Tensor, torch.Tensor]`: The dictionary with its new atoms, and a mask `(atoms,)` of the atoms that
        were chosen for replacement; bool.
    """
    drawn = draw_subset(counts == 0, limit, generator)
    energy = (signals - synthesize(indices, coefficients, dictionary.to(signals.dtype))).square().sum(dim=1)
    candidates = draw_signals(signals, energy, limit, generator)
    return broadcast(revive_atoms(dictionary, drawn, candidates, jitter, generator).contiguous()), drawn
