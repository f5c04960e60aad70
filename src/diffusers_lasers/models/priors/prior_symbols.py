"""Codes as symbols of a prior, and back: what is checked, in which order the atoms of a set come, and the tables."""

from __future__ import annotations

import weakref
from typing import Any

import numpy as np
import torch

from ...coding import Code, Coder, IndexCode, SparseCode
from ...coding.checks import check_index, check_sparse, check_values
from ...coding.coefficients import dequantize_coefficients, quantize_coefficients
from ...coding.container import fingerprint
from ...coding.frequencies import PRECISION
from ...coding.payloads import by_magnitude
from ...coding.symbol_bits import FLOAT_BITS, SymbolBits
from ...coding.symbol_streams import SymbolStream, Tables
from ...functional.images.patch_signals import patch_grid
from ...utils import config_checks as checks
from .sparse_model import DENSITY_BITS


_BITS: weakref.WeakKeyDictionary[Tables, list] = weakref.WeakKeyDictionary()  # of symbols without contexts
_READY: weakref.WeakKeyDictionary[PriorSymbols, tuple] = weakref.WeakKeyDictionary()  # tables made from buffers


class PriorSymbols:
    """Base of [`FactorizedPrior`], whose configuration, buffers and `symbol_model` it uses."""

    def _walk(self, stream: SymbolStream, code: Code) -> None:
        """Gives the symbols of a code to a stream."""
        shape = (len(code), *code.grid)
        indices = code.indices.flatten(0, 2).cpu()
        if not self.config.sparse:
            self.symbol_model.walk(stream, shape, code.slots, indices.numpy())
            return
        coefficients = code.coefficients.flatten(0, 2).cpu().float()
        if self.config.ordered:
            if bool(((indices[:, 1:] >= 0) & (indices[:, :-1] < 0)).any()):
                raise ValueError("`code` must have its unused slots (-1) last, one stands before an atom.")
        else:
            order = torch.where(indices >= 0, indices, self.config.levels[0]).argsort(dim=1, stable=True)
            indices, coefficients = indices.gather(1, order), coefficients.gather(1, order)
        bits = self.config.coefficient_bits
        values = cells = None
        if bits is None and stream.exact:
            values = coefficients.contiguous().numpy().view(np.uint32)
        else:
            scale = self.coefficient_scale.cpu().float()[: code.slots]
            cells = quantize_coefficients(coefficients, scale, bits or DENSITY_BITS).numpy()
        self.symbol_model.walk(stream, shape, code.slots, indices.numpy(), cells, values)

    def _found(
        self,
        stream: SymbolStream,
        shape: tuple[int, int, int],
        slots: int,
        latent_size: tuple[int, int],
        image_size: tuple[int, int] | None,
    ) -> Code:
        """A code of symbols that a stream finds."""
        levels = tuple(self.config.levels)[:slots]
        if not self.config.sparse:
            indices = torch.from_numpy(self.symbol_model.walk(stream, shape, slots))
            return IndexCode(indices.reshape(*shape, slots), levels, latent_size, image_size)
        found, cells, values = self.symbol_model.walk(stream, shape, slots)
        indices, bits = torch.from_numpy(found), self.config.coefficient_bits
        scale = self.coefficient_scale.cpu().float()[:slots]
        if values is not None:
            if not np.isfinite(values.view(np.float32)).all():
                raise ValueError("`data` must have finite coefficients, got NaN or infinity.")
            coefficients = torch.from_numpy(values.view(np.float32))
        else:
            coefficients = dequantize_coefficients(torch.from_numpy(cells), scale, bits or DENSITY_BITS)
        coefficients = torch.where(indices >= 0, coefficients, 0.0)
        if not self.config.ordered:
            indices, coefficients = by_magnitude(indices, coefficients)
        indices, coefficients = (part.reshape(*shape, slots) for part in (indices, coefficients))
        return SparseCode(indices, coefficients, levels[0], latent_size, image_size)

    def _check_code(self, code: Any, exact: bool = False) -> None:
        """Raises a `ValueError` where `code` is none that the prior's model makes, or none that a file can hold."""
        levels = tuple(self.config.levels)
        if self.config.sparse:
            check_sparse(code, levels[0], len(levels))
        else:
            check_index(code, levels, nested=True, wanted=f"slots of levels {checks.shown(levels)}")
        check_values(code.to("cpu"), patch_grid(*code.latent_size, self.config.patch_size))
        if self.config.sparse:
            self._check_support(code.to("cpu"), exact)

    def _check_support(self, code: SparseCode, exact: bool) -> None:
        indices, coefficients = code.indices.flatten(0, 2), code.coefficients.flatten(0, 2)
        ascending = indices.sort(dim=1).values
        if bool(((ascending[:, 1:] == ascending[:, :-1]) & (ascending[:, 1:] >= 0)).any()):
            raise ValueError("`code` must name each atom of a support once, an atom stands twice.")
        if not exact:
            return
        bits, used = self.config.coefficient_bits, indices >= 0
        if bits is None:
            points, what = coefficients.float().to(coefficients.dtype), "float32"
        else:
            scale = self.coefficient_scale.cpu().float()[: code.slots]
            cells = quantize_coefficients(coefficients.float(), scale, bits)
            points, what = dequantize_coefficients(cells, scale, bits), f"points of the quantiser with {bits} bits"
        if not bool(((points == coefficients) | ~used).all() & (coefficients[~used] == 0).all()):
            raise ValueError(f"`code` must have coefficients that are {what}, and 0 in unused slots, got others.")

    @torch.no_grad()
    def symbol_bits(self, coder: Coder) -> SymbolBits:
        """
        Bits of the symbols when nothing is known of their neighbours, by which a code can be chosen: contexts are
        averaged out, and the atoms of a set count as independent.

        Args:
            coder ([`Coder`]): The model whose codes are chosen.

        Returns:
            [`SymbolBits`]: Bits, on the device of the model.

        Raises:
            ValueError: If the prior is not fitted, or is that of another model.
        """
        coder = coder.coder
        own = (int(self.coder_fingerprint), self.config.coefficient_bits)
        if own != (coder.fingerprint, coder.coefficient_bits):
            raise ValueError(
                f"`prior` must be fitted to the codes of this {type(coder).__name__}, got that of another, of other "
                "weights or of other `coefficient_bits`."
            )
        tables = self._tables()[0]
        if tables not in _BITS:
            chances = self.symbol_model.shares(tables)
            _BITS[tables] = [-torch.log2(chance).float() for chance in chances]
        parts = [part.to(coder.device) for part in _BITS[tables]]
        if self.config.sparse and self.config.coefficient_bits is None:
            parts[1] = torch.full((len(parts[0]), 1), FLOAT_BITS, device=coder.device)
        return SymbolBits(*parts, ordered=self.config.ordered)

    def _tables(self) -> tuple[Tables, int]:
        """Tables as streams read them, and the fingerprint of the prior; made once for unchanged buffers."""
        state = dict(self.named_buffers())
        key = tuple(
            (name, id(tensor), None if tensor.is_inference() else tensor._version) for name, tensor in state.items()
        )
        found = _READY.get(self)
        if found is not None and found[0] == key:
            return found[1:]
        if int(self.site_bits) < 1:
            raise ValueError("The FactorizedPrior is not fitted: call `fit` first.")
        banks = {}
        for name, shape in self.symbol_model.shapes().items():
            if shape[1] == 1:
                banks[name] = np.full(shape, 2**PRECISION, dtype=np.int32)
                continue
            banks[name] = state[f"table_{name}"].cpu().numpy()
            if (banks[name] < 1).any() or (banks[name].sum(axis=1, dtype=np.int64) != 2**PRECISION).any():
                raise ValueError(f"The tables of a FactorizedPrior must sum to 2^{PRECISION}, table_{name} does not.")
        # files of priors from before `repeats` was an argument stay readable
        names = [name for name in sorted(self._config_fields) if name != "repeats" or self.config.repeats]
        facts = (type(self).__name__, [(name, self.config[name]) for name in names])
        facts = repr(facts).replace("[", "(").replace("]", ")")  # JSON makes lists of tuples
        weights = {name: tensor for name, tensor in state.items() if name != "mixtures"}
        _READY[self] = key, Tables(banks), fingerprint(facts, weights)
        return _READY[self][1:]
