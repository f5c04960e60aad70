r"""Least-squares coefficients of the first atoms of a code, for all numbers of atoms at once.

Gram–Schmidt turns the atoms \(d_s\) of a code into orthonormal directions \(q_t = \sum_{s \le t} u_{st} d_s\), and
keeps the numbers u. The projection of a signal on the first atoms is \(\sum_t (q_t^⊤ y)\, q_t\), so that each further
atom adds \((q_t^⊤ y)\, u_{st}\) to the coefficients. All steps are elementwise operations along the signals, which no
device has to wait for.
"""

from __future__ import annotations

import torch


__all__ = ["prefix_coefficients"]


@torch.no_grad()
def prefix_coefficients(indices: torch.Tensor, coefficients: torch.Tensor, dictionary: torch.Tensor) -> torch.Tensor:
    r"""
    Coefficients of the first 1, 2, … S atoms of least-squares codes.

    The signal itself is not needed: its projection on fewer atoms is the projection of its projection on all.

    Args:
        indices (`torch.Tensor` of shape `(N, S)`): Independent atoms of each signal, int64; −1 in unused slots.
        coefficients (`torch.Tensor` of shape `(N, S)`): Their least-squares coefficients; 0 in unused slots.
        dictionary (`torch.Tensor` of shape `(features, atoms)`): Atoms as columns.

    Returns:
        `torch.Tensor` of shape `(S, N, S)`: Coefficients, with those of the first s atoms at s − 1; 0 in all later
        slots and in unused ones.
    """
    used = (indices >= 0).unsqueeze(-1)  # (N, S, 1)
    atoms = dictionary.detach().t()[indices.clamp_min(0)] * used  # (N, S, L)
    signals = (atoms * coefficients.unsqueeze(-1)).sum(dim=1)
    directions, numbers = torch.zeros_like(atoms), atoms.new_zeros(*indices.shape, indices.shape[1])  # q and u by t
    found, total = [], torch.zeros_like(coefficients)
    for slot in range(indices.shape[1]):
        rest, number = atoms[:, slot], torch.zeros_like(total)
        number[:, slot] = 1.0
        for _ in range(2 if slot else 0):  # twice is enough for any two atoms that are independent
            overlaps = (directions[:, :slot] * rest.unsqueeze(1)).sum(dim=2, keepdim=True)
            rest = rest - (overlaps * directions[:, :slot]).sum(dim=1)
            number = number - (overlaps * numbers[:, :slot]).sum(dim=1)
        scale = used[:, slot] / rest.norm(dim=1, keepdim=True).clamp_min(torch.finfo(rest.dtype).tiny)
        directions[:, slot], numbers[:, slot] = rest * scale, number * scale
        total = total + (directions[:, slot] * signals).sum(dim=1, keepdim=True) * numbers[:, slot]
        found.append(total)
    return torch.stack(found)
