r"""What can be done with the symbols of a code, one step of its model after another: count, measure, draw, write, read.

A prior describes a code as a walk: it names a table of probabilities for each symbol, in an order in which every table
follows from symbols that came before. A walk is written once. It asks a stream for the symbols of a step, and the
stream takes those that the walk knows (to count, measure or write them) or finds them (to draw or read them).

A bank holds tables over one alphabet as rows: integer frequencies that sum to 2²⁴ (`coding/frequencies.py`). Writing
and reading use constriction's range coder (Martin, 1979; Bamler, 2022) and integers only, so that bytes do not depend
on the machine. Its categorical model rounds cumulative sums: with s = (2²⁴ − A) / Σ p, symbol k of A has the frequency

    1 + ⌊s (p_0 + … + p_k)⌋ − ⌊s (p_0 + … + p_{k−1})⌋ .

Given p_k = f_k − 1 for frequencies f, s is 1 and every sum is an exact integer: it codes with f.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from ..utils.import_utils import requires
from .frequencies import PRECISION


__all__ = [
    "CountingStream",
    "DrawingStream",
    "MeasuringStream",
    "ReadingStream",
    "SymbolStream",
    "Tables",
    "WritingStream",
]

_RAW = 2**16  # alphabet of half a float32


class Tables:
    """
    Banks of tables, with what streams make of them, once.

    Args:
        banks (`dict[str, numpy.ndarray]`): Frequencies `(tables, A)` of each bank, int32, at least 1, each row with sum
            2²⁴.
    """

    def __init__(self, banks: Mapping[str, np.ndarray]):
        self.banks = banks
        self._costs: dict[str, np.ndarray] = {}
        self._sums: dict[str, np.ndarray] = {}
        self._models: dict[tuple[str, int], Any] = {}

    def costs(self, bank: str) -> np.ndarray:
        """Bits of each symbol, `(tables, A)`."""
        if bank not in self._costs:
            self._costs[bank] = PRECISION - np.log2(self.banks[bank])
        return self._costs[bank]

    def sums(self, bank: str) -> np.ndarray:
        """Sums of the frequencies less 1 up to each symbol, with it, `(tables, A)`."""
        if bank not in self._sums:
            self._sums[bank] = (self.banks[bank].astype(np.int64) - 1).cumsum(axis=1)
        return self._sums[bank]

    def model(self, bank: str, table: int) -> Any:
        """A table as constriction takes it."""
        key = (bank, table)
        if key not in self._models:
            constriction = requires("constriction", extra="entropy")
            # more tables than this are not kept: an entry of a few symbols takes some hundred bytes
            if len(self._models) > 2**16:
                self._models.clear()
            weights = self.banks[bank][table].astype(np.float64) - 1
            self._models[key] = constriction.stream.model.Categorical(weights, perfect=False)
        return self._models[key]

    def raw_model(self) -> Any:
        """Equally frequent symbols of 16 bits."""
        if "raw" not in self._models:
            constriction = requires("constriction", extra="entropy")
            weights = np.full(_RAW, 2**PRECISION / _RAW - 1)
            self._models["raw"] = constriction.stream.model.Categorical(weights, perfect=False)
        return self._models["raw"]


class SymbolStream:
    """
    Base of the streams.

    Attributes:
        exact (`bool`): Whether float coefficients pass as they are. Else they are counted and drawn by cells.
        tables ([`Tables`], *optional*): Its tables.
        redraws (`int`): How often a symbol that cannot stand beside earlier ones is drawn again; 0 where none is drawn.
    """

    exact = True
    redraws = 0
    tables: Tables | None = None

    def code(
        self, bank: str, tables: np.ndarray | int, rows: np.ndarray, symbols: np.ndarray | None = None
    ) -> np.ndarray:
        """
        The symbols of one step.

        Args:
            bank (`str`): Bank of the step's tables.
            tables (`numpy.ndarray` of shape `(n,)` or `int`): Row of the bank for each symbol, or one for all.
            rows (`numpy.ndarray` of shape `(n,)`): Site of each symbol, from 0.
            symbols (`numpy.ndarray` of shape `(n,)`, *optional*): The symbols, int64, where the walk has them.

        Returns:
            `numpy.ndarray` of shape `(n,)`: The symbols.
        """
        raise NotImplementedError

    def code_raw(self, rows: np.ndarray, values: np.ndarray | None = None) -> np.ndarray:
        """Numbers of 32 bits, `(n,)` uint32, each as probable as any other; see `code`."""
        raise NotImplementedError


class CountingStream(SymbolStream):
    """
    Counts symbols in each table.

    Args:
        shapes (`dict[str, tuple[int, int]]`): Tables and symbols of each bank.
        tables ([`Tables`], *optional*): Tables that a walk asks for.
    """

    exact = False

    def __init__(self, shapes: Mapping[str, tuple[int, int]], tables: Tables | None = None):
        self.tables = tables
        self.counts = {name: np.zeros(shape, dtype=np.int64) for name, shape in shapes.items()}

    def code(self, bank, tables, rows, symbols=None):
        counts = self.counts[bank]
        if np.ndim(tables) == 0:
            counts[tables] += np.bincount(symbols, minlength=counts.shape[1])
        else:
            np.add.at(counts.reshape(-1), tables * counts.shape[1] + symbols, 1)
        return symbols


class MeasuringStream(SymbolStream):
    """
    Adds up the bits of each image.

    Args:
        tables ([`Tables`]): Tables.
        images (`int`): Images.
        sites (`int`): Sites an image.
    """

    def __init__(self, tables: Tables, images: int, sites: int):
        self.tables, self.sites = tables, sites
        self.bits = np.zeros(images)

    def code(self, bank, tables, rows, symbols=None):
        self._add(rows, self.tables.costs(bank)[tables, symbols])
        return symbols

    def code_raw(self, rows, values=None):
        self._add(rows, np.full(len(rows), 32.0))
        return values

    def _add(self, rows: np.ndarray, bits: np.ndarray) -> None:
        self.bits += np.bincount(rows // self.sites, weights=bits, minlength=len(self.bits))


class DrawingStream(SymbolStream):
    """
    Draws symbols at random. A symbol of frequency 1, which stands for impossible, is never drawn.

    Args:
        tables ([`Tables`]): Tables.
        generator (`torch.Generator`, *optional*): Source of randomness.
    """

    exact = False
    redraws = 32

    def __init__(self, tables: Tables, generator: torch.Generator | None = None):
        self.tables, self.generator = tables, generator

    def code(self, bank, tables, rows, symbols=None):
        device = "cpu" if self.generator is None else self.generator.device
        sums = self.tables.sums(bank)
        if sums.shape[1] == 1:
            return np.zeros(len(rows), dtype=np.int64)
        total = int(sums[0, -1])  # the same in each table
        drawn = torch.randint(total, (len(rows),), generator=self.generator, device=device).cpu().numpy()
        found = np.empty(len(rows), dtype=np.int64)
        for table, places in _by_table(tables, len(rows)):
            found[places] = np.searchsorted(sums[table], drawn[places], side="right")
        return found


class WritingStream(SymbolStream):
    """
    Writes symbols as bytes.

    Args:
        tables ([`Tables`]): Tables.
    """

    def __init__(self, tables: Tables):
        self.tables = tables
        self.encoder = requires("constriction", extra="entropy").stream.queue.RangeEncoder()

    def code(self, bank, tables, rows, symbols=None):
        if self.tables.banks[bank].shape[1] > 1:
            values = symbols.astype(np.int32)
            for table, places in _by_table(tables, len(rows)):
                self.encoder.encode(values[places], self.tables.model(bank, table))
        return symbols

    def code_raw(self, rows, values=None):
        halves = np.stack([values >> 16, values & 0xFFFF]).astype(np.int32)
        self.encoder.encode(halves.ravel(), self.tables.raw_model())
        return values

    def words(self) -> np.ndarray:
        """What was written, as `(n,)` uint32."""
        return self.encoder.get_compressed()


class ReadingStream(SymbolStream):
    """
    Reads symbols from bytes.

    Args:
        tables ([`Tables`]): Tables.
        words (`numpy.ndarray` of shape `(n,)`): What a [`WritingStream`] wrote, uint32.
    """

    def __init__(self, tables: Tables, words: np.ndarray):
        self.tables = tables
        self.decoder = requires("constriction", extra="entropy").stream.queue.RangeDecoder(words)

    def code(self, bank, tables, rows, symbols=None):
        found = np.zeros(len(rows), dtype=np.int64)
        if self.tables.banks[bank].shape[1] > 1:
            for table, places in _by_table(tables, len(rows)):
                found[places] = self._read(self.tables.model(bank, table), found[places].size)
        return found

    def code_raw(self, rows, values=None):
        high, low = self._read(self.tables.raw_model(), 2 * len(rows)).astype(np.uint32).reshape(2, -1)
        return high << 16 | low

    def check_end(self) -> None:
        """Raises a `ValueError` where bytes are left over."""
        if not self.decoder.maybe_exhausted():
            raise ValueError("`data` must end with the code, it goes on.")

    def _read(self, model: Any, count: int) -> np.ndarray:
        try:
            return self.decoder.decode(model, count)
        except (AssertionError, ValueError) as error:  # constriction's, of words that no encoder writes
            raise ValueError("`data` must hold symbols of this prior, it is changed.") from error


def _by_table(tables: np.ndarray | int, count: int) -> list[tuple[int, Any]]:
    """Tables in ascending order, each with the places of its symbols, in order; none where there are no symbols."""
    if count == 0:
        return []
    if np.ndim(tables) == 0:
        return [(int(tables), slice(None))]
    if tables.max() < 2**16:
        tables = tables.astype(np.uint16)  # which NumPy sorts in linear time
    order = np.argsort(tables, kind="stable")
    ordered = tables[order]
    starts = np.flatnonzero(np.diff(ordered, prepend=ordered[:1] ^ 1))
    ends = [*starts[1:].tolist(), count]
    return [(table, order[start:end]) for table, start, end in zip(ordered[starts].tolist(), starts.tolist(), ends)]
