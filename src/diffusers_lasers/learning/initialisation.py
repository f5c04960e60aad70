r"""First atoms from signals that may share most of their energy.

One direction v carries most of the energy Σ ‖y‖² of image patches (their brightness) and of many latents. Signals taken as
atoms are then nearly equal to v and to each other. So where vᵀ (Σ y yᵀ) v > ½ Σ ‖y‖², v is the first atom, a tenth of the atoms
are signals as they are, which alone can code a signal with one atom, and the others are signals less their part along v; all
normalised. A larger or no share of whole signals was worse, and so was the whole procedure where v carries a quarter of the energy or
less. The row `omp, own start` of `benchmarks/benchmark_dictionary_learning.py --keep_mean` has it beside whole signals.
"""

from __future__ import annotations

import torch

from ..functional.dictionary import dictionary_from_signals, random_dictionary


_COMMON_SHARE = 0.5
_UNCHANGED_SHARE = 0.1
_ITERATIONS = 50  # of the power method: where v carries more than half, its error falls by λ₂/λ₁ < 1 in each
_RELATIVE_REST = 1e-4  # below this share of a signal's length, what is left of it is rounding


@torch.no_grad()
def first_dictionary(signals: torch.Tensor, atoms: int, generator: torch.Generator) -> torch.Tensor:
    """
    Takes atoms from signals; runs once and synchronises with the host.

    Args:
        signals (`torch.Tensor` of shape `(N, features)`): Signals, float32 or float64, `N >= 1`. Signals that are not finite are not used.
        atoms (`int`): Number K of atoms, at least 1.
        generator (`torch.Generator`): Source of randomness, on any device.

    Returns:
        `torch.Tensor` of shape `(features, atoms)`: Unit-norm atoms as columns.
    """
    with torch.autocast(signals.device.type, enabled=False):
        return _first_dictionary(signals, atoms, generator)


def _first_dictionary(signals: torch.Tensor, atoms: int, generator: torch.Generator) -> torch.Tensor:
    usable = torch.where(signals.isfinite().all(dim=1, keepdim=True), signals, 0.0)
    peak = usable.abs().max()
    if not peak > 0:
        return dictionary_from_signals(usable, atoms, generator=generator)
    usable = usable / peak  # squares neither overflow nor vanish
    direction = random_dictionary(usable.shape[1], 1, generator, usable.device, usable.dtype)
    for _ in range(_ITERATIONS):
        direction = usable.t() @ (usable @ direction)
        direction = direction / direction.norm()
    along = usable @ direction  # (N, 1)
    if not along.square().sum() > _COMMON_SHARE * usable.square().sum():
        return dictionary_from_signals(usable, atoms, generator=generator)
    rest = usable - along * direction.t()
    long = rest.norm(dim=1, keepdim=True) > _RELATIVE_REST * usable.norm(dim=1, keepdim=True)
    parts, unchanged = [direction], int(_UNCHANGED_SHARE * atoms)
    if unchanged:
        parts.append(dictionary_from_signals(usable, unchanged, generator=generator))
    if atoms > unchanged + 1:
        parts.append(dictionary_from_signals(torch.where(long, rest, 0.0), atoms - unchanged - 1, generator=generator))
    return torch.cat(parts, dim=1)
