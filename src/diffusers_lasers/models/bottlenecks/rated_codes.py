"""What a code costs an ideal entropy coder under the tables of its bottleneck, and how the tables follow its codes."""

from __future__ import annotations

import torch

from ...coding import Code
from ...coding.symbol_counts import count_symbols
from .rate_tables import RateTables


_START_ROUNDS = 4  # of coding and counting, before training


class RatedCodes:
    """
    Base of [`Bottleneck`]. A subclass with tables gives its `_code_of_signals`; one with a density has `has_rate` and
    `_site_bits` of its own.
    """

    tables: RateTables | None

    @property
    def has_rate(self) -> bool:
        """Whether it says what its codes cost an ideal entropy coder; see [`rate`]."""
        return self.tables is not None

    @torch.no_grad()
    def rate(self, code: Code) -> torch.Tensor:
        """
        What an ideal entropy coder needs for a code under the tables that training has left. For held-out images this
        is their cross-entropy: nothing is estimated from the code itself.

        Args:
            code ([`SparseCode`] or [`IndexCode`]): A code of this bottleneck; it may have only the first slots, as for
                [`decode`].

        Returns:
            `torch.Tensor` of shape `(B,)`: Bits of each image, float64.

        Raises:
            ValueError: If the code is of another bottleneck, or this one has no tables.
        """
        if not self.has_rate:
            raise ValueError(
                f"`rate` needs a bottleneck with running tables or a density, got a {type(self).__name__} with "
                f"`rate_weight` {self.config.get('rate_weight')!r}."
            )
        self._check_code(code)
        with torch.autocast(code.device.type, enabled=False):
            return self._site_bits(code).reshape(len(code), -1).double().sum(dim=1)

    def _site_bits(self, code: Code) -> torch.Tensor:
        """Bits `(N,)` of the sites of a code under the tables."""
        return self.tables.bits(code.indices.flatten(0, 2))

    def _mean_rate(self, code: Code, signals: torch.Tensor) -> torch.Tensor | None:
        """Mean bits `()` of a value of `signals (N, p²·L)`, which have this code; `None` without tables."""
        return None if self.tables is None else self._site_bits(code).mean() / signals.shape[1]

    @torch.no_grad()
    def _observe_code(self, code: Code, signals: torch.Tensor, decay: float) -> None:
        """Moves the tables, where there are any, by the codes of all ranks."""
        if self.tables is not None:
            counts = count_symbols(code, self.levels, self.slot_scales, self.coefficient_bits)
            self.tables.observe(counts, signals.detach(), decay)

    def _start_tables(self, signals: torch.Tensor) -> None:
        """Fills the tables, where there are any, from codes of `signals (N, p²·L)`: first without a weight of bits."""
        if self.tables is not None:
            self.tables.clear()
            for _ in range(_START_ROUNDS):
                self._observe_code(self._code_of_signals(signals), signals, decay=0.0)

    def _code_of_signals(self, signals: torch.Tensor) -> Code:
        """The code of `signals (N, p²·L)` as N images of one site; of bottlenecks with tables."""
        raise NotImplementedError
