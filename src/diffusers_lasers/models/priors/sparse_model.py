r"""The model of a sparse code: which atoms a site has, and a mixture of Gaussians for their coefficients.

LASERS (2024), eqs 8 and 9, after Olshausen and Millman (1999): each atom k is active with a probability of its own, and
an active atom's coefficient has the density \(Σ_j w_j N(μ_j, σ_j^2)\), each slot's mixture by EM on the cells of the
quantiser (`functional/quantisers/gaussian_mixtures.py`). An inactive atom's coefficient is 0 here: its Gaussian has
variance 0, which is where a hard-sparse code leaves eq 8. The coefficients of a site are alike in size: with contexts
the mixture depends on the magnitude of the coefficient before it, or of a set on the largest of those before.

**Sequences** (coefficients with a scale for each depth): slot s has a table of the K atoms and the end of the support.

**Sets** cost no bits for their order. The number n of atoms comes first. Then the atoms are halved again and again: at
each node of this binary tree, of n > 1 atoms the number that lie in the left half has a table for n and the node. An
atom that is alone in its node is named at once, by a table of the node's atoms. Were atoms active independently, these
tables would follow from their probabilities alone. As counts they also hold what neighbouring atoms have to do with
each other. What was not counted is smoothed by binomials of the atoms' shares.
"""

from __future__ import annotations

import math

import numpy as np
import torch

from ...coding.frequencies import PRECISION, smoothed
from ...coding.symbol_streams import SymbolStream, Tables
from ...functional.quantisers.gaussian_mixtures import fit_gaussian_mixture, gaussian_cell_log_probabilities
from .sparse_shares import set_atoms, slot_cells


_RANGES = 16  # of the largest earlier coefficient
_BORROWED = 16.0  # values of its slot that the mixture of a context is fitted to, beside its own
_FITTED_CELLS = 2**8  # most that EM tells apart
DENSITY_BITS = 8  # of the cells by which float coefficients are counted and drawn


class SparseModel:
    """
    Tables of a sparse code, and the walk over its symbols.

    Args:
        atoms (`int`): Number K of atoms.
        sparsity (`int`): Most atoms S of a site.
        ordered (`bool`): Whether the order of a site's atoms is part of the code.
        bits (`int`, *optional*): Bits of a coefficient; `None` for float32.
        components (`int`): Gaussians of a mixture.
        contexts (`bool`): Whether each range of the largest earlier coefficient of a site has a mixture of its own.
    """

    def __init__(self, atoms: int, sparsity: int, ordered: bool, bits: int | None, components: int, contexts: bool):
        self.atoms, self.sparsity, self.ordered, self.bits = atoms, sparsity, ordered, bits
        self.components = components
        self.cells = 2 ** (bits or DENSITY_BITS)
        self.contexts = min(_RANGES, self.cells // 2) if contexts else 1
        self.depth = (atoms - 1).bit_length()  # of the tree of sets

    @property
    def mixtures(self) -> int:
        """Mixtures of Gaussians: for each slot of a sequence, or once for sets, one a context."""
        return self.contexts * (self.sparsity if self.ordered else 1)

    def shapes(self) -> dict[str, tuple[int, int]]:
        """Tables and symbols of each bank."""
        shapes = {"cells": (self.mixtures, self.cells)}
        if self.ordered:
            return shapes | {"atoms": (self.sparsity, self.atoms + 1)}
        shapes["sizes"] = (self.sparsity, self.sparsity + 1)
        for level in range(self.depth + 1):
            shapes[f"single_{level}"] = (2**level, 2 ** (self.depth - level))
        for number in range(2, self.sparsity + 1):
            shapes[f"split_{number}"] = (2**self.depth - 1, number + 1)
        return shapes

    def coded(self) -> set[str]:
        """Banks by which symbols are coded."""
        return set(self.shapes()) - ({"cells"} if self.bits is None else set())

    def walk(
        self,
        stream: SymbolStream,
        shape: tuple[int, int, int],
        slots: int,
        indices: np.ndarray | None = None,
        cells: np.ndarray | None = None,
        values: np.ndarray | None = None,
    ) -> tuple[np.ndarray, np.ndarray | None, np.ndarray | None]:
        """
        All symbols of a code, in order.

        Args:
            stream ([`SymbolStream`]): What becomes of them.
            shape (`tuple[int, int, int]`): Images, and sites down and across.
            slots (`int`): Slots a site.
            indices (`numpy.ndarray` of shape `(N, slots)`, *optional*): Atoms, where the code is known, −1 in unused
                slots, which are the last; of sets ascending.
            cells (`numpy.ndarray` of shape `(N, slots)`, *optional*): Cells of the coefficients, int64.
            values (`numpy.ndarray` of shape `(N, slots)`, *optional*): Float coefficients, as the uint32 of their bits.

        Returns:
            `tuple[numpy.ndarray, numpy.ndarray or None, numpy.ndarray or None]`: Atoms, cells and values; the last
            only where coefficients are floats that the stream keeps, the other only where it does not.
        """
        rows = shape[0] * shape[1] * shape[2]
        walk = self._walk_sequences if self.ordered else self._walk_sets
        found = walk(stream, rows, slots, indices)
        used = found >= 0
        if self.bits is None and stream.exact:
            kept = np.zeros((rows, slots), dtype=np.uint32)
            kept[used] = stream.code_raw(np.nonzero(used)[0], None if values is None else values[used])
            return found, None, kept
        chosen, largest = np.zeros((rows, slots), dtype=np.int64), np.zeros(rows, dtype=np.int64)
        for slot in range(slots):
            here = np.nonzero(used[:, slot])[0]
            known = None if cells is None else cells[here, slot]
            table = largest[here] * self.contexts // self.cells + self.contexts * (slot if self.ordered else 0)
            found_cells = stream.code("cells", table, here, known)
            chosen[here, slot] = found_cells
            magnitude = np.abs(2 * found_cells + 1 - self.cells)  # odd, below the number of cells
            largest[here] = magnitude if self.ordered else np.maximum(largest[here], magnitude)
        return found, chosen, None

    def _walk_sequences(self, stream: SymbolStream, rows: int, slots: int, indices: np.ndarray | None) -> np.ndarray:
        found = np.full((rows, slots), -1, dtype=np.int64)
        going = np.arange(rows)
        for slot in range(slots):
            known = None if indices is None else indices[going, slot] + 1
            atoms = stream.code("atoms", slot, going, known) - 1
            if stream.redraws:
                atoms = self._drawn_anew(stream, slot, found[going], going, atoms)
            found[going, slot] = atoms
            going = going[atoms >= 0]
        _check_different(found)
        return found

    @staticmethod
    def _drawn_anew(
        stream: SymbolStream, slot: int, earlier: np.ndarray, rows: np.ndarray, atoms: np.ndarray
    ) -> np.ndarray:
        """Drawn atoms, of which those that a site has already are drawn again; at last its support ends."""
        for _ in range(stream.redraws):
            twice = np.nonzero((earlier == atoms[:, None]).any(axis=1) & (atoms >= 0))[0]
            atoms[twice] = stream.code("atoms", slot, rows[twice]) - 1
        return np.where((earlier == atoms[:, None]).any(axis=1), -1, atoms)

    def _walk_sets(self, stream: SymbolStream, rows: int, slots: int, indices: np.ndarray | None) -> np.ndarray:
        known = None if indices is None else (indices >= 0).sum(axis=1)
        sizes = stream.code("sizes", slots - 1, np.arange(rows), known)
        if (sizes > min(slots, self.atoms)).any():
            raise ValueError(f"`data` must have at most {slots} atoms a site, it has more.")
        found = np.full((rows, slots), -1, dtype=np.int64)
        row = np.nonzero(sizes)[0]
        first, number, node = np.zeros(len(row), dtype=np.int64), sizes[row], np.zeros(len(row), dtype=np.int64)
        for level in range(self.depth + 1):
            span = 2 ** (self.depth - level)
            alone = number == 1
            at = (row[alone], first[alone])
            known = None if indices is None else indices[at] - node[alone] * span
            found[at] = node[alone] * span + stream.code(f"single_{level}", node[alone], row[alone], known)
            row, first, number, node = (part[~alone] for part in (row, first, number, node))
            left = np.zeros(len(row), dtype=np.int64)
            for many in range(2, slots + 1):
                here = np.nonzero(number == many)[0]
                if len(here) == 0:
                    continue
                if many > span:
                    raise ValueError("`data` must name each atom of a support once, an atom stands twice.")
                known = None
                if indices is not None:
                    places = first[here][:, None] + np.arange(many)
                    middle = node[here] * span + span // 2
                    known = (indices[row[here][:, None], places] < middle[:, None]).sum(axis=1)
                left[here] = stream.code(f"split_{many}", 2**level - 1 + node[here], row[here], known)
            row, first = np.tile(row, 2), np.concatenate([first, first + left])
            number, node = np.concatenate([left, number - left]), np.concatenate([2 * node, 2 * node + 1])
            row, first, number, node = (part[number > 0] for part in (row, first, number, node))
        if (found >= self.atoms).any():
            raise ValueError(f"`data` must name atoms below {self.atoms}, it has others.")
        return found

    def probabilities(self, counts: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Probabilities of the supports' symbols from counts; those of cells follow from [`fit_mixtures`]."""
        if self.ordered:
            return {"atoms": smoothed(counts["atoms"], smoothed(counts["atoms"].sum(dim=0)))}
        found = {"sizes": self._size_probabilities(counts["sizes"])}
        uses = sum(counts[f"single_{level}"].flatten() for level in range(self.depth + 1))
        real = (torch.arange(len(uses)) < self.atoms).double()
        shares = smoothed(uses, real / self.atoms)
        for level in range(self.depth + 1):
            inside = shares.view(2**level, -1)
            total = inside.sum(dim=1, keepdim=True)
            base = torch.where(total > 0, inside / total.clamp_min(1e-300), 1 / inside.shape[1])
            found[f"single_{level}"] = smoothed(counts[f"single_{level}"], base)
        for number in range(2, self.sparsity + 1):
            bases = [
                self._split_base(shares.view(2**level, 2, -1), real.view(2**level, 2, -1).sum(dim=2), number)
                for level in range(self.depth)
            ]
            if bases:
                found[f"split_{number}"] = smoothed(counts[f"split_{number}"], torch.cat(bases))
        return found

    def _size_probabilities(self, counts: torch.Tensor) -> torch.Tensor:
        """Numbers of atoms, of codes with 1 … S slots: a code that is cut to s has min(n, s) of its n atoms."""
        counts, slots = counts.clone(), torch.arange(self.sparsity + 1)
        for row in reversed(range(1, self.sparsity)):
            cut = torch.zeros_like(counts[row]).index_add_(0, slots.clamp_max(row), counts[row])
            counts[row - 1] += cut
        allowed = (slots <= torch.arange(1, self.sparsity + 1)[:, None]).double()
        return smoothed(counts, allowed / allowed.sum(dim=1, keepdim=True))

    @staticmethod
    def _split_base(shares: torch.Tensor, capacity: torch.Tensor, number: int) -> torch.Tensor:
        """Binomial probabilities `(nodes, number + 1)` that so many of `number` atoms lie on the left."""
        halves = shares.sum(dim=2)
        total = halves.sum(dim=1)
        left = torch.where(total > 0, halves[:, 0] / total.clamp_min(1e-300), 0.5)[:, None]
        counts = torch.arange(number + 1, dtype=torch.float64)
        ways = torch.tensor([math.comb(number, k) for k in range(number + 1)], dtype=torch.float64)
        chance = ways * left**counts * (1 - left) ** (number - counts)
        fits = (counts <= capacity[:, :1]) & (number - counts <= capacity[:, 1:])
        chance = chance * fits
        total = chance.sum(dim=1, keepdim=True)
        return torch.where(total > 0, chance / total.clamp_min(1e-300), 1 / (number + 1))

    def fit_mixtures(self, counts: torch.Tensor) -> torch.Tensor:
        """
        Weights, means and deviations `(3, mixtures, components)`, float64, from counts of cells. The mixture of a
        context counts a few values more, spread as those of its slot, and these a few spread as all.
        """
        fine = min(self.cells, _FITTED_CELLS)
        counts = counts.double().view(self.mixtures, fine, -1).sum(dim=2)
        slots = counts.view(-1, self.contexts, fine).sum(dim=1)
        if not counts.any():
            slots = slots + 1.0
        slots = slots + slots.sum(dim=0) / slots.sum()
        if self.contexts > 1:
            shares = slots / slots.sum(dim=1, keepdim=True)
            slots = counts + _BORROWED * shares.repeat_interleave(self.contexts, dim=0)
        found = [fit_gaussian_mixture(row, *_ends(fine), self.components)[:3] for row in slots]
        return torch.stack([torch.stack(parts) for parts in zip(*found)])

    def cell_probabilities(self, mixtures: torch.Tensor) -> torch.Tensor:
        """Probabilities `(mixtures, cells)` of all cells."""
        ends = _ends(self.cells)
        rows = [gaussian_cell_log_probabilities(*ends, *pair).exp() for pair in zip(*mixtures[1:].double())]
        return torch.stack([(row * weight[:, None]).sum(dim=0) for row, weight in zip(rows, mixtures[0].double())])

    def shares(self, tables: Tables) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """
        Probabilities of each slot's atoms `(S, K)`, of its cells `(S, 2ⁿ)` without contexts, and of the number of atoms
        `(S + 1,)`. All slots of a set have those of their mean.
        """
        banks = {name: torch.from_numpy(part) / 2.0**PRECISION for name, part in tables.banks.items()}
        banks = {name: part.double() for name, part in banks.items()}
        cells = slot_cells(banks["cells"].view(-1, self.contexts, self.cells), self.sparsity)
        if self.ordered:
            ends = torch.cat([banks["atoms"][:, 0], torch.ones(1)])
            going = torch.cat([torch.ones(1), (1 - ends[:-1]).cumprod(dim=0)])
            return banks["atoms"][:, 1:] / (1 - ends[:-1, None]), cells, going * ends
        sizes = banks["sizes"][-1]
        used = 1 - sizes.cumsum(dim=0)[:-1, None]
        mean = (used * cells).sum(dim=0) / used.sum()
        atoms = set_atoms(banks, sizes, self.depth)[: self.atoms]
        return atoms.expand(self.sparsity, -1), mean.expand(self.sparsity, -1), sizes

    def least_bits(self, tables: Tables, slots: int) -> float:
        """Bits below which no site costs."""
        cells = np.full(self.mixtures, 32.0) if self.bits is None else tables.costs("cells").min(axis=1)
        if self.ordered:
            costs, least, atoms = tables.costs("atoms")[:slots], [], 0.0
            for slot, row in enumerate(costs):
                least.append(atoms + row[0])
                atoms += row[1:].min() + cells[slot]
            return float(min(*least, atoms))
        sizes = tables.costs("sizes")[slots - 1]
        least = [sizes[0]]
        for number in range(1, min(slots, self.atoms) + 1):
            first = "single_0" if number == 1 else f"split_{number}"
            least.append(sizes[number] + tables.costs(first)[0].min() + number * cells[0])
        return float(min(least))


def _ends(cells: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Lower and upper ends of the cells, in units of their slot's scale; the outermost reach to infinity."""
    inner = 2 * torch.arange(1, cells, dtype=torch.float64) / cells - 1
    infinity = torch.full((1,), math.inf, dtype=torch.float64)
    return torch.cat([-infinity, inner]), torch.cat([inner, infinity])


def _check_different(indices: np.ndarray) -> None:
    ascending = np.sort(indices, axis=1)
    if ((ascending[:, 1:] == ascending[:, :-1]) & (ascending[:, 1:] >= 0)).any():
        raise ValueError("`data` must name each atom of a support once, an atom stands twice.")
