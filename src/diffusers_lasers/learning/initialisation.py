r"""First atoms from signals that may share most of their energy.

Image patches and latents mostly have one direction v (of image patches: the mean brightness) that carries nearly all of
Σ ‖y‖². Signals taken as atoms then are nearly equal to v and to each other. So where vᵀ (Σ y yᵀ) v > ½ Σ ‖y‖², v is the first atom and the
others are normalised signals less their part along v. After two passes over patches of photographs (8 × 8, K = 256, S = 5) the
objective is 20 % lower for it, on latents of an untrained encoder 17 %; where v carries a quarter or less, it made no difference or a loss.
"""

from __future__ import annotations

import torch

from ..functional.dictionary import dictionary_from_signals, random_dictionary


__all__ = ["first_dictionary"]

_COMMON_SHARE = 0.5
_ITERATIONS = (
    50  # of the power method; where one direction carries more than half, the error falls by λ₂/λ₁ < 1 in each
)
_RELATIVE_REST = 1e-4  # below this share of a signal's length, what is left of it is rounding


@torch.no_grad()
def first_dictionary(signals: torch.Tensor, atoms: int, generator: torch.Generator) -> torch.Tensor:
    """
    Takes atoms from signals; runs once and synchronises with the host.

    Args:
        signals (`torch.Tensor` of shape `(N, features)`): Finite signals, float32 or float64, `N >= 1`.
        atoms (`int`): Number K of atoms.
        generator (`torch.Generator`): Source of randomness, on any device.

    Returns:
        `torch.Tensor` of shape `(features, atoms)`: Unit-norm atoms as columns.
    """
    peak = signals.abs().max()
    if not peak > 0:
        return dictionary_from_signals(signals, atoms, generator=generator)
    signals = signals / peak  # squares neither overflow nor vanish
    direction = random_dictionary(signals.shape[1], 1, generator, signals.device, signals.dtype)
    for _ in range(_ITERATIONS):
        direction = signals.t() @ (signals @ direction)
        direction = direction / direction.norm()
    along = signals @ direction  # (N, 1)
    if atoms == 1:
        return direction
    if along.square().sum() <= _COMMON_SHARE * signals.square().sum():
        return dictionary_from_signals(signals, atoms, generator=generator)
    rest = signals - along * direction.t()
    long = rest.norm(dim=1, keepdim=True) > _RELATIVE_REST * signals.norm(dim=1, keepdim=True)
    others = dictionary_from_signals(torch.where(long, rest, 0.0), atoms - 1, generator=generator)
    return torch.cat([direction, others], dim=1)
