"""How often a sparse code has each atom and each cell: the probabilities of a prior, with its contexts summed out."""

from __future__ import annotations

from collections.abc import Mapping

import torch


def slot_cells(rows: torch.Tensor, slots: int) -> torch.Tensor:
    """
    Probabilities of the cells of each slot. The context of a slot is the range of a magnitude that it knows. So the
    probabilities of magnitudes go from slot to slot.

    Args:
        rows (`torch.Tensor` of shape `(S or 1, contexts, 2ⁿ)`): Probabilities of cells, float64: for each slot, whose
            context is the coefficient before; or once for all of a set, whose context is the largest before.
        slots (`int`): Slots S.

    Returns:
        `torch.Tensor` of shape `(S, 2ⁿ)`: Probabilities.
    """
    _, contexts, cells = rows.shape
    places = torch.arange(cells)
    magnitude, context = (2 * places + 1 - cells).abs(), places * contexts // cells
    known = (places == 0).double()  # of each magnitude
    found = []
    for slot in range(slots):
        row = rows[min(slot, len(rows) - 1)]
        chance = torch.zeros(contexts, dtype=rows.dtype).index_add_(0, context, known)
        found.append(chance @ row)
        if len(rows) > 1:
            known = torch.zeros(cells, dtype=rows.dtype).index_add_(0, magnitude, found[-1])
            continue
        largest = torch.zeros(cells, dtype=rows.dtype)  # at most so much
        for number in range(contexts):
            new = torch.zeros(cells, dtype=rows.dtype).index_add_(0, magnitude, row[number])
            largest += (known * (context == number)).cumsum(dim=0) * new.cumsum(dim=0)
        known = largest.diff(prepend=largest.new_zeros(1))
    return torch.stack(found)


def set_atoms(banks: Mapping[str, torch.Tensor], sizes: torch.Tensor, depth: int) -> torch.Tensor:
    """
    How often each atom is in a set, as shares of all atoms that are, by the tables of the tree that halves the atoms
    (`sparse_model.py`).

    Args:
        banks (`Mapping[str, torch.Tensor]`): Probabilities of `single_…` and `split_…`, float64.
        sizes (`torch.Tensor` of shape `(S + 1,)`): Probabilities of the number of atoms.
        depth (`int`): Levels of the tree below its root.

    Returns:
        `torch.Tensor` of shape `(2^depth,)`: Shares, which sum to 1.
    """
    uses, numbers = sizes.new_zeros(2**depth), sizes[None]  # of each node of a level
    for level in range(depth + 1):
        uses += (numbers[:, 1:2] * banks[f"single_{level}"]).flatten()
        if level == depth:
            break
        halves = sizes.new_zeros(len(numbers), 2, len(sizes))
        for many in range(2, len(sizes)):
            left = numbers[:, many : many + 1] * banks[f"split_{many}"][2**level - 1 : 2 ** (level + 1) - 1]
            halves[:, 0, : many + 1] += left
            halves[:, 1, : many + 1] += left.flip(1)
        numbers = halves.flatten(0, 1)
    return uses / uses.sum()
