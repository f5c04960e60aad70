"""What a code costs an ideal entropy coder, how a bottleneck's tables follow its codes, and by what it chooses them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from ...coding import Code
from ...coding.symbol_bits import SymbolBits
from ...coding.symbol_counts import count_symbols
from ...utils.config_checks import check_fields
from .rate_tables import IMAGE_VARIANCE, RATE_WEIGHT, RateTables


_START_ROUNDS = 4  # of coding and counting, before training


@dataclass
class Choice:
    """
    By what a code is chosen: the least ‖y − ŷ‖² + w · bits of a site.

    Args:
        weight (`torch.Tensor` of shape `()`): w, the squared error that one bit is worth.
        bits ([`SymbolBits`]): What the symbols cost.
    """

    weight: torch.Tensor
    bits: SymbolBits

    @property
    def symbol_costs(self) -> torch.Tensor:
        """Squared error `(S, K)` that each symbol must save."""
        return self.weight * self.bits.symbols

    @property
    def cell_costs(self) -> torch.Tensor:
        """The same `(S, 2ⁿ)` of each cell of a quantised coefficient."""
        return self.weight * self.bits.cells


class RatedCodes:
    """
    Base of [`Bottleneck`]. A subclass with tables gives its `_code_of_signals`; one with a density has `has_rate` and
    `_site_bits` of its own. One that can choose by a prior's bits has `_variance_under`.
    """

    tables: RateTables | None

    def _choice(self, rate_weight: float | None = None, prior: Any = None) -> Choice | None:
        """
        By what codes are chosen; `None`: the nearest.

        Args:
            rate_weight (`float`, *optional*): λ. Defaults to that of the configuration, with the running tables.
            prior ([`FactorizedPrior`], *optional*): Whose bits count where λ is given. Defaults to the running tables.

        Raises:
            ValueError: If λ is out of range, there is neither a prior nor a table, the prior is of another model, or
                the bottleneck cannot choose.
        """
        if rate_weight is None:
            return None if self.tables is None else self._choice(self.config.rate_weight)
        check_fields({"rate_weight": RATE_WEIGHT}, {"rate_weight": rate_weight})
        if rate_weight == 0:
            return None
        if prior is not None and not hasattr(prior, "symbol_bits"):
            raise ValueError(f"`prior` must be a FactorizedPrior, got {type(prior).__name__}.")
        if prior is not None:
            bits = prior.symbol_bits(self)
            return Choice(rate_weight / IMAGE_VARIANCE * self._variance_under(bits), bits)
        if self.tables is None:
            raise ValueError(
                f"`prior` must be given with a `rate_weight` above 0, since this {type(self).__name__} has no tables "
                f"of its own, got `rate_weight` {rate_weight}."
            )
        return Choice(self.tables.weight(rate_weight), self.tables.bits(self.ordered))

    def _variance_under(self, bits: SymbolBits) -> torch.Tensor:
        """Variance `()` of the values of signals whose symbols are drawn independently, each with 2^−bits."""
        raise NotImplementedError

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
        return self.tables.bits().of(code.indices.flatten(0, 2))

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
