r"""The model of an index code: for each slot tables of frequencies, one for each context.

Without contexts the symbols are independent, P(code) = ∏_i ∏_s p_s(k_{i s}) over sites i and slots s.

With contexts the table of a symbol depends on symbols that come before it, all of earlier slots and those sites of its
own slot that were coded already. Slots follow one another; the sites of a slot come in passes over finer and finer
lattices, as in Adam7: after the sites of a lattice of width 2d come those in the middle of four of them, and then
those on the edges between, at distance d of up to four. Two numbers choose the table:

* **value**, the mean of these neighbours' indices, which of 16 ranges of equal probability it lies in, or none;
* **activity**, how improbable the symbols of earlier slots at the site and beside it were, and the neighbours of its
  own slot, in bits: which of 6 ranges around what is expected.

Where all neighbours have the same symbol (`repeats`), a table of two says first whether the site has it, too; it needs
no other table then. In flat areas that is nearly certain.

The value helps where indices have an order that means something (scalar and finite scalar quantisation, sorted
codebooks), the activity where signals are of different strength in different places, which images are everywhere. All
of it is integers. Bits are those of the slots' tables without contexts, in eighths.
"""

from __future__ import annotations

import numpy as np
import torch

from ...coding.frequencies import PRECISION, frequencies, smoothed
from ...coding.symbol_streams import SymbolStream, Tables


VALUES, ACTIVITIES = 16, 6  # ranges of each
_BOUNDS = (0.6, 0.8, 1.0, 1.25, 1.6)  # of activity, as shares of the expected one
_TRUST = 8.0  # in a wider table, see `smoothed`
_WIDEST = 8  # width of the first lattice
_MARGIN = _WIDEST // 2  # farthest neighbour
_AXES, _DIAGONALS = ((0, 1), (1, 0), (0, -1), (-1, 0)), ((1, 1), (1, -1), (-1, 1), (-1, -1))


class IndexModel:
    """
    Tables of an index code, and the walk over its symbols.

    Args:
        levels (`tuple[int, ...]`): Size of the alphabet of each slot.
        contexts (`bool`): Whether there are contexts.
        repeats (`bool`): Whether there are tables of repetition beside them.
    """

    def __init__(self, levels: tuple[int, ...], contexts: bool, repeats: bool):
        self.levels, self.repeats = levels, contexts and repeats
        self.contexts = (VALUES + 1) * ACTIVITIES if contexts else 0
        self.places = [levels[:slot].count(level) for slot, level in enumerate(levels)]  # of each slot in its bank

    def shapes(self) -> dict[str, tuple[int, int]]:
        """Tables and symbols of each bank."""
        shapes = {f"symbols_{level}": (self.levels.count(level), level) for level in dict.fromkeys(self.levels)}
        if self.contexts:
            shapes |= {f"contexts_{level}": (self.contexts * self.levels.count(level), level) for level in self.levels}
        if self.repeats:
            shapes["repeats"] = (ACTIVITIES * len(self.levels), 2)
        return shapes

    def coded(self) -> set[str]:
        """Banks by which symbols are coded."""
        return {name for name in self.shapes() if name.startswith("symbols") != (self.contexts > 0)}

    def walk(
        self,
        stream: SymbolStream,
        shape: tuple[int, int, int],
        slots: int,
        indices: np.ndarray | None = None,
    ) -> np.ndarray:
        """
        All symbols of a code, in order.

        Args:
            stream ([`SymbolStream`]): What becomes of them. Its tables without contexts tell contexts apart; a stream
                without tables gets no contexts.
            shape (`tuple[int, int, int]`): Images, and sites down and across.
            slots (`int`): Slots a site.
            indices (`numpy.ndarray` of shape `(N, slots)`, *optional*): The code, where it is known.

        Returns:
            `numpy.ndarray` of shape `(N, slots)`: The code.
        """
        tables = stream.tables if self.contexts else None
        rows = np.arange(shape[0] * shape[1] * shape[2])
        found = np.empty((len(rows), slots), dtype=np.int64)
        activity, expected = np.zeros(shape, dtype=np.int32), 0
        numbers, passes = rows.reshape(shape), _passes(shape[1:])
        for slot in range(slots):
            known = None if indices is None else indices[:, slot]
            level, place = self.levels[slot], self.places[slot]
            if tables is None:
                found[:, slot] = stream.code(f"symbols_{level}", place, rows, known)
                continue
            contexts = _SlotContexts(tables.banks[f"symbols_{level}"][place], activity, expected)
            for sites, neighbours in passes:
                here = numbers[:, sites[0], sites[1]]
                table, activity_level = contexts.tables(sites, neighbours)
                symbols = np.empty(here.size, dtype=np.int64) if known is None else known[here.ravel()]
                rest = slice(None)
                if self.repeats and level > 1 and len(neighbours) > 1:
                    rest = self._walk_repeats(
                        stream,
                        slot * ACTIVITIES + activity_level.ravel(),
                        here.ravel(),
                        symbols,
                        contexts.common(sites, neighbours).ravel(),
                        known is not None,
                    )
                symbols[rest] = stream.code(
                    f"contexts_{level}",
                    table.ravel()[rest] + place * self.contexts,
                    here.ravel()[rest],
                    None if known is None else symbols[rest],
                )
                contexts.learn(sites, symbols.reshape(here.shape))
            found[:, slot] = contexts.seen(contexts.symbols).ravel()
            costs = contexts.seen(contexts.bits)
            activity = activity + 4 * costs + _beside(costs)
            expected = expected + 8 * contexts.expected
        return found

    @staticmethod
    def _walk_repeats(
        stream: SymbolStream,
        tables: np.ndarray,
        rows: np.ndarray,
        symbols: np.ndarray,
        common: np.ndarray,
        known: bool,
    ) -> np.ndarray:
        """Places of the symbols that are not those of all neighbours, whose `common` symbol is −1 where they differ."""
        agreed = np.flatnonzero(common >= 0)
        given = (symbols[agreed] == common[agreed]).astype(np.int64) if known else None
        repeated = agreed[stream.code("repeats", tables[agreed], rows[agreed], given) > 0]
        symbols[repeated] = common[repeated]
        rest = np.ones(len(symbols), dtype=bool)
        rest[repeated] = False
        return np.flatnonzero(rest)

    def probabilities(self, counts: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Probabilities of each bank's symbols from their counts."""
        found = {name: smoothed(part) for name, part in counts.items() if name.startswith("symbols")}
        for name in list(found):
            inside = counts.get(name.replace("symbols", "contexts"))
            if inside is not None:
                inside = inside.view(len(found[name]), VALUES + 1, ACTIVITIES, -1)
                wider = smoothed(inside.sum(dim=2), found[name][:, None], _TRUST)
                found[name.replace("symbols", "contexts")] = smoothed(inside, wider[:, :, None], _TRUST).flatten(0, 2)
        if "repeats" in counts:
            inside = counts["repeats"].view(len(self.levels), ACTIVITIES, 2)
            found["repeats"] = smoothed(inside, smoothed(inside.sum(dim=1))[:, None], _TRUST).flatten(0, 1)
        return found

    def marginal_tables(self, counts: dict[str, torch.Tensor]) -> Tables:
        """Tables of the slots without contexts, from their counts."""
        names = [name for name in counts if name.startswith("symbols")]
        return Tables({name: frequencies(smoothed(counts[name])).numpy() for name in names})

    def shares(self, tables: Tables) -> list[torch.Tensor]:
        """Probabilities `(S, K)` of each slot's symbols without contexts; 0 beyond its levels."""
        found = torch.zeros(len(self.levels), max(self.levels), dtype=torch.float64)
        for slot, (level, place) in enumerate(zip(self.levels, self.places)):
            found[slot, :level] = torch.from_numpy(tables.banks[f"symbols_{level}"][place]) / 2**PRECISION
        return [found]

    def least_bits(self, tables: Tables, slots: int) -> float:
        """Bits below which no site costs."""
        if self.contexts:
            costs = [
                tables.least(f"contexts_{level}")[place * self.contexts : (place + 1) * self.contexts].min()
                for level, place in zip(self.levels[:slots], self.places)
            ]
            if self.repeats:
                repeated = tables.costs("repeats")[:, 1].reshape(len(self.levels), ACTIVITIES).min(axis=1)
                costs = np.minimum(costs, repeated[:slots])
            return float(sum(costs))
        levels = zip(self.levels[:slots], self.places)
        return float(sum(tables.least(f"symbols_{level}")[place] for level, place in levels))


class _SlotContexts:
    """
    The contexts of one slot.

    Args:
        frequency (`numpy.ndarray` of shape `(A,)`): Its table without contexts.
        activity (`numpy.ndarray` of shape `(B, h, w)`): Bits of earlier slots, weighted, in eighths.
        expected (`int`): Their mean.
    """

    def __init__(self, frequency: np.ndarray, activity: np.ndarray, expected: int):
        self.costs = _eighths(frequency)
        self.expected = int((frequency.astype(object) * self.costs.astype(object)).sum()) >> PRECISION
        sums = frequency.astype(np.int64).cumsum()
        ends = np.searchsorted(sums, np.arange(1, VALUES) * (2**PRECISION // VALUES))
        self.ranges = np.searchsorted(ends, np.arange(len(sums)))  # of each symbol as a mean
        self.activity, self.beside = activity, 8 * self.expected
        total = expected + self.beside
        self.bounds = [int(64 * bound) * total >> 6 for bound in _BOUNDS]
        margin = ((0, 0), (_MARGIN, _MARGIN), (_MARGIN, _MARGIN))
        self.inside = np.pad(np.ones((1, *activity.shape[1:]), dtype=np.int32), margin)
        # of the sites that are known by now, and 0 around them
        self.symbols, self.bits = (np.pad(np.zeros(activity.shape, dtype=np.int32), margin) for _ in range(2))

    def tables(
        self, sites: tuple[slice, slice], neighbours: tuple[tuple[int, int], ...]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Table of each of some sites of all images, and its range of activity, `(B, …, …)`."""
        shape = self.activity.shape
        activity = self.activity[:, sites[0], sites[1]]
        if not neighbours:
            level = self._level(activity + self.beside)
            return VALUES * ACTIVITIES + level, level
        count, total, bits = (
            sum(_moved(plane, shape, sites, offset) for offset in neighbours)
            for plane in (self.inside, self.symbols, self.bits)
        )
        some = np.maximum(count, 1)
        value = self.ranges[(2 * total + count) // (2 * some)]
        near = 8 * bits // some
        if count.min() == 0:
            value, near = np.where(count > 0, value, VALUES), np.where(count > 0, near, self.beside)
        level = self._level(activity + near)
        return value * ACTIVITIES + level, level

    def common(self, sites: tuple[slice, slice], neighbours: tuple[tuple[int, int], ...]) -> np.ndarray:
        """The symbol that all neighbours of some sites have, `(B, …, …)`; −1 where they differ, or one is missing."""
        shape = self.activity.shape
        first, *others = (_moved(self.symbols, shape, sites, offset) for offset in neighbours)
        same = sum(_moved(self.inside, shape, sites, offset) for offset in neighbours) == len(neighbours)
        for other in others:
            same = same & (other == first)
        return np.where(same, first, -1)

    def learn(self, sites: tuple[slice, slice], symbols: np.ndarray) -> None:
        """Takes the symbols `(B, …, …)` of some sites for those of later ones."""
        shape = self.activity.shape
        _moved(self.symbols, shape, sites, (0, 0))[...] = symbols
        _moved(self.bits, shape, sites, (0, 0))[...] = self.costs[symbols]

    def seen(self, plane: np.ndarray) -> np.ndarray:
        """A plane without its margin."""
        return _moved(plane, self.activity.shape, (slice(0, None), slice(0, None)), (0, 0))

    def _level(self, activity: np.ndarray) -> np.ndarray:
        return sum((activity > bound).astype(np.int64) for bound in self.bounds)


def _moved(
    plane: np.ndarray, shape: tuple[int, ...], sites: tuple[slice, slice], offset: tuple[int, int]
) -> np.ndarray:
    """View of what lies at an offset from some sites, in a plane with a margin around images of a shape."""
    down, across = (
        slice(part.start + _MARGIN + move, side + _MARGIN + move, part.step)
        for part, side, move in zip(sites, shape[1:], offset)
    )
    return plane[:, down, across]


def _eighths(frequency: np.ndarray) -> np.ndarray:
    """24 − log₂ f in eighths of a bit, from the highest four bits of f, in integers."""
    frequency = frequency.astype(np.int64)
    exponent = np.frexp(frequency.astype(np.float64))[1] - 1  # exact
    mantissa = (frequency << 3 >> exponent) & 7
    return (8 * (PRECISION - exponent) - mantissa).astype(np.int32)


def _beside(costs: np.ndarray) -> np.ndarray:
    """Sum over the four neighbours of each site `(B, h, w)`; at an edge the site stands for what is missing."""
    padded = np.pad(costs, ((0, 0), (1, 1), (1, 1)), mode="edge")
    return padded[:, 1:-1, :-2] + padded[:, 1:-1, 2:] + padded[:, :-2, 1:-1] + padded[:, 2:, 1:-1]


def _passes(grid: tuple[int, int]) -> list[tuple[tuple[slice, slice], tuple[tuple[int, int], ...]]]:
    """Sites of each pass, as slices down and across, and where their neighbours are; only passes that have sites."""
    passes = [((slice(0, None, _WIDEST), slice(0, None, _WIDEST)), ())]
    width = _WIDEST
    while width > 1:
        half = width // 2
        along = tuple((half * down, half * across) for down, across in _AXES)
        middle = tuple((half * down, half * across) for down, across in _DIAGONALS)
        odd, even = slice(half, None, width), slice(0, None, width)
        passes += [((odd, odd), middle), ((even, odd), along), ((odd, even), along)]
        width = half
    return [(sites, near) for sites, near in passes if all(range(side)[part] for side, part in zip(grid, sites))]
