r"""A prior over codes, every symbol on its own: P(code) = ∏ p(symbol), a compressor and a generator.

An index code has a table of frequencies a slot. A sparse code has the prior of LASERS (2024), eqs 8 and 9: each atom is
active with a probability of its own, with a coefficient from a mixture of Gaussians (`sparse_model.py`). The tables are
fitted to codes in closed form and by EM, made integers once and stored as such, so that the bytes of a code are the
same on every machine. `bits` is the cross-entropy under these tables, which is what `compress` costs.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.utils import BaseOutput

from ...coding import Code, Coder, IndexCode, SparseCode
from ...coding.checks import check_index, check_sparse, check_values
from ...coding.coefficients import dequantize_coefficients, quantize_coefficients
from ...coding.container import MAX_SITES, check_sites, fingerprint
from ...coding.frequencies import PRECISION, frequencies
from ...coding.payloads import by_magnitude
from ...coding.streams import StreamHeader, pack_streams, unpack_streams
from ...coding.symbol_streams import (
    CountingStream,
    DrawingStream,
    MeasuringStream,
    ReadingStream,
    SymbolStream,
    Tables,
    WritingStream,
)
from ...functional.images.patch_signals import patch_grid
from ...utils import config_checks as checks
from ...utils.distributed import all_reduce_sum
from ...utils.model_loading import LasersModelMixin
from .index_model import IndexModel
from .sparse_model import DENSITY_BITS, SparseModel


__all__ = ["FactorizedPrior", "PriorOutput"]

_STREAM_BITS = 2**16  # of a stream, about: what its last words and its length add is little beside them
_FREE_SITES = 2**16  # in a file without a byte for them
_READY: weakref.WeakKeyDictionary[FactorizedPrior, tuple] = weakref.WeakKeyDictionary()  # tables made from buffers


@dataclass
class PriorOutput(BaseOutput):
    """
    Output of a prior's `forward`.

    Args:
        bits (`torch.Tensor` of shape `(B,)`): Bits of each image's code, −log₂ P, float64, on the CPU.
    """

    bits: torch.Tensor


class FactorizedPrior(LasersModelMixin, ModelMixin, ConfigMixin):
    """
    Probabilities of a model's codes, symbol by symbol. It has to be fitted before use. [`from_coder`] gives the
    arguments that belong to a model.

    Args:
        levels (`tuple[int, ...]`): Size of the alphabet of each slot: for sparse codes as often the number of atoms as
            a site has slots.
        sparse (`bool`, defaults to `False`): Whether codes are [`SparseCode`]s, or [`IndexCode`]s.
        ordered (`bool`, defaults to `True`): Whether the order of a site's atoms is part of a sparse code, or they are
            a set, whose order costs nothing.
        coefficient_bits (`int`, *optional*): Bits of a coefficient, 1 to 16. Defaults to `None`: float32, of which each
            costs 32 bits.
        patch_size (`int`, defaults to 1): Side of a site, in latent positions.
        components (`int`, defaults to 3): Gaussians of a coefficient's mixture.

    Attributes:
        coefficient_scale (`torch.Tensor` of shape `(S,)`): Half-widths of the coefficients' quantiser.
        mixtures (`torch.Tensor` of shape `(3, mixtures, components)`): Weights, means and deviations of the mixtures,
            the latter two in units of the scale; one mixture a slot where the order counts, else one.
        coder_fingerprint (`torch.Tensor`): 32 bits that tell the model whose codes these are, 0-dimensional.
        table_… (`torch.Tensor` of shape `(tables, symbols)`): Frequencies, int32, that sum to 2²⁴ in each row.
    """

    _supports_group_offloading = False
    _no_split_modules: list[str] = []
    _keep_in_fp32_modules = ["coefficient_scale", "mixtures"]
    _config_fields = {
        "levels": checks.Sequence(checks.Integer(1, 2**20), most=2**16 - 1),
        "sparse": checks.Flag(),
        "ordered": checks.Flag(),
        "coefficient_bits": checks.Optional(checks.Integer(1, 16)),
        "patch_size": checks.Integer(1, 2**10),
        "components": checks.Integer(1, 64),
    }

    @register_to_config
    def __init__(
        self,
        levels: tuple[int, ...] = (512,),
        sparse: bool = False,
        ordered: bool = True,
        coefficient_bits: int | None = None,
        patch_size: int = 1,
        components: int = 3,
    ):
        super().__init__()
        levels = tuple(levels)
        if sparse and (len(set(levels)) > 1 or len(levels) > levels[0]):
            raise ValueError(
                "`levels` must name the atoms of one dictionary, at least as many as slots, got "
                f"{checks.shown(levels)}."
            )
        if not sparse and coefficient_bits is not None or sparse and ordered and coefficient_bits is None:
            raise ValueError(
                f"`coefficient_bits` must be None for index codes and a number for ordered sparse codes, got "
                f"{coefficient_bits}."
            )
        if sparse:
            checks.check_size(len(levels) ** 2 * levels[0] * (1 if ordered else 2), levels=levels)
            self.symbol_model = SparseModel(levels[0], len(levels), ordered, coefficient_bits, components)
            self.register_buffer("coefficient_scale", torch.ones(len(levels)))
            self.register_buffer("mixtures", torch.zeros(3, self.symbol_model.mixtures, components))
        else:
            self.symbol_model = IndexModel(levels)
        shapes = self.symbol_model.shapes()
        checks.check_size(sum(math.prod(shape) for shape in shapes.values()), levels=levels)
        for name, shape in shapes.items():
            if shape[1] > 1:
                self.register_buffer(f"table_{name}", torch.zeros(shape, dtype=torch.int32))
        self.register_buffer("coder_fingerprint", torch.zeros((), dtype=torch.int64))
        self.register_buffer("site_bits", torch.zeros((), dtype=torch.int64))  # mean of the fitted codes; 0 before

    @classmethod
    def from_coder(cls, model: Coder, **arguments: Any) -> FactorizedPrior:
        """
        An unfitted prior for the codes of a model.

        Args:
            model ([`Coder`]): An autoencoder, a bottleneck or a patch codec, as it will be used: a change of its
                weights or of `coefficient_bits` needs a new prior.
            **arguments: Further arguments of the class, e.g. `components`.

        Returns:
            [`FactorizedPrior`]: The prior.

        Raises:
            ValueError: If the model makes no codes.
        """
        coder = model.coder
        if not coder.levels:
            raise ValueError(f"`model` must make codes, got {type(coder).__name__}, which makes none.")
        scales = coder.slot_scales
        prior = cls(
            levels=coder.levels,
            sparse=scales is not None,
            ordered=coder.ordered,
            coefficient_bits=coder.coefficient_bits,
            patch_size=coder.site_side,
            **arguments,
        )
        if scales is not None:
            prior.coefficient_scale.copy_(scales)
        prior.coder_fingerprint.fill_(coder.fingerprint)
        return prior

    @torch.no_grad()
    def fit(self, codes: Code | Iterable[Code]) -> FactorizedPrior:
        """
        Sets all tables from codes. Counts are summed over ranks, each of which gives its share.

        Args:
            codes ([`SparseCode`] or [`IndexCode`], or an iterable of them): Codes, read once.

        Returns:
            [`FactorizedPrior`]: This prior.

        Raises:
            ValueError: If there is no code, or one does not fit.
        """
        stream, sites, used = CountingStream(self.symbol_model.shapes()), 0, 0
        for code in [codes] if isinstance(codes, Code) else codes:
            self._check_code(code)
            self._walk(stream, code)
            sites += code.num_sites
            used += int((code.indices >= 0).sum())
        totals = all_reduce_sum(torch.tensor([sites, used], device=self.device))
        sites, used = totals.tolist()
        if sites == 0:
            raise ValueError("`codes` must hold at least one site, got none.")
        counts = {
            name: all_reduce_sum(torch.from_numpy(found).to(self.device)).cpu()
            for name, found in stream.counts.items()
        }
        probabilities = self.symbol_model.probabilities(counts)
        if self.config.sparse:
            self.mixtures.copy_(self.symbol_model.fit_mixtures(counts["cells"]))
            probabilities["cells"] = self.symbol_model.cell_probabilities(self.mixtures.cpu())
        bits = 0.0 if self.config.coefficient_bits is not None else 32.0 * used * self.config.sparse
        for name, chance in probabilities.items():
            if chance.shape[1] > 1:
                table = frequencies(chance)
                self.get_buffer(f"table_{name}").copy_(table)
                if name != "cells" or self.config.coefficient_bits is not None:
                    bits += float((counts[name] * (PRECISION - table.double().log2())).sum())
        self.site_bits.fill_(max(1, round(bits / sites)))
        return self

    @torch.no_grad()
    def bits(self, code: Code) -> torch.Tensor:
        """
        Bits of each image of a code, −log₂ P: what [`compress`] costs, but for its header and the ends of streams.

        Args:
            code ([`SparseCode`] or [`IndexCode`]): A code of the prior's model.

        Returns:
            `torch.Tensor` of shape `(B,)`: Bits, float64, on the CPU.

        Raises:
            ValueError: If the code does not fit, or the prior is not fitted.
        """
        self._check_code(code)
        stream = MeasuringStream(self._tables()[0], len(code), math.prod(code.grid))
        self._walk(stream, code)
        return torch.from_numpy(stream.bits)

    @torch.no_grad()
    def sample(
        self,
        batch: int,
        grid: tuple[int, int],
        generator: torch.Generator | None = None,
        slots: int | None = None,
    ) -> Code:
        """
        Random codes. Sites are independent of each other, so that images of them are textures, not pictures.

        Args:
            batch (`int`): Images.
            grid (`tuple[int, int]`): Sites down and across.
            generator (`torch.Generator`, *optional*): Source of randomness.
            slots (`int`, *optional*): Slots a site. Defaults to all.

        Returns:
            [`SparseCode`] or [`IndexCode`]: Codes, on the prior's device.

        Raises:
            ValueError: If a size is no positive integer or too large, or the prior is not fitted.
        """
        most = len(self.config.levels)
        sizes = {"batch": batch, "grid": grid, "slots": most if slots is None else slots}
        fields = {
            "batch": checks.Integer(0, 2**32 - 1),
            "grid": checks.Sequence(checks.Integer(1, 2**16), least=2, most=2),
            "slots": checks.Integer(1, most),
        }
        checks.check_fields(fields, sizes)
        size = tuple(side * self.config.patch_size for side in grid)
        stream = DrawingStream(self._tables()[0], generator)
        return self._found(stream, (batch, *grid), sizes["slots"], size, None).to(self.device)

    @torch.no_grad()
    def compress(self, code: Code) -> bytes:
        """
        A code as bytes, at its [`bits`]. Needs constriction (extra `entropy`).

        Args:
            code ([`SparseCode`] or [`IndexCode`]): A code of the prior's model.

        Returns:
            `bytes`: What [`decompress`] reads: a header of 43, and for each 64 kbit or image, whichever is more, a
            stream with at most 12 bytes beyond its bits.

        Raises:
            ValueError: If the code does not fit, a coefficient is not finite or no point of the quantiser, or the prior
                is not fitted.
            ImportError: If constriction is not installed.
        """
        self._check_code(code, exact=True)
        tables, mark = self._tables()
        per_image = max(1, math.prod(code.grid) * int(self.site_bits))
        images = min(max(1, len(code)), -(-_STREAM_BITS // per_image))
        streams = []
        for first in range(0, len(code), images):
            stream = WritingStream(tables)
            self._walk(stream, code[first : first + images])
            streams.append(stream.words())
        header = StreamHeader(
            int(self.coder_fingerprint), mark, len(code), code.latent_size, code.image_size, code.slots, images
        )
        return pack_streams(header, streams)

    @torch.no_grad()
    def decompress(self, data: bytes, images: slice | None = None, max_sites: int | None = None) -> Code:
        """
        The code of bytes. Of a set of atoms the slots come back by falling magnitude of their coefficients, as
        [`Bottleneck.unpack`] gives them; every other code comes back as it was.

        Args:
            data (`bytes`): What [`compress`] gave. It is not trusted: sizes are compared with its length before memory
                is taken.
            images (`slice`, *optional*): Images to read, e.g. `slice(2, 5)`; streams without them are not decoded.
                Defaults to all.
            max_sites (`int`, *optional*): Most sites of all images together. Defaults to 2²⁴, and to 2¹⁶ beyond those
                that the bytes account for.

        Returns:
            [`SparseCode`] or [`IndexCode`]: The code, on the prior's device.

        Raises:
            ValueError: If the bytes are cut off, changed, something else, of another model or prior, or have more
                sites; or the prior is not fitted.
            ImportError: If constriction is not installed.
        """
        header, streams = unpack_streams(data)
        tables, mark = self._tables()
        if header.prior != mark:
            raise ValueError("`data` must be compressed by this prior, it is of another.")
        if header.coder != int(self.coder_fingerprint):
            raise ValueError("`data` must hold a code of this prior's model, it is of another.")
        slots = len(self.config.levels)
        if header.slots > slots:
            raise ValueError(f"`data` must have at most {slots} slots a site, its header names {header.slots}.")
        if images is not None and not isinstance(images, slice):
            raise ValueError(f"`images` must be a slice, e.g. slice(2, 5), got {images!r}.")
        grid = patch_grid(*header.latent_size, self.config.patch_size)
        check_sites(header.batch, grid, MAX_SITES if max_sites is None else max_sites)
        if max_sites is None:
            least = self.symbol_model.least_bits(tables, header.slots)
            for number, words in enumerate(streams):
                held = min(header.stream_images, header.batch - number * header.stream_images) * math.prod(grid)
                if held > _FREE_SITES and held * least > 32 * len(words) + 64:
                    raise ValueError(f"`data` must have the bits of {held} sites in a stream, it has fewer.")
            if least == 0:
                check_sites(header.batch, grid, _FREE_SITES)
        wanted = list(range(header.batch)[slice(None) if images is None else images])
        parts, rows = [], {}  # decoded streams, and the row in them of each of their images
        for number in sorted({image // header.stream_images for image in wanted}):
            first = number * header.stream_images
            count = min(header.stream_images, header.batch - first)
            rows.update(zip(range(first, first + count), range(len(rows), len(rows) + count)))
            stream = ReadingStream(tables, streams[number])
            sizes = (header.latent_size, header.image_size)
            parts.append(self._found(stream, (count, *grid), header.slots, *sizes))
            stream.check_end()
        if not parts:
            stream = ReadingStream(tables, np.zeros(0, dtype=np.uint32))
            parts.append(self._found(stream, (0, *grid), header.slots, header.latent_size, header.image_size))
        tensors = {name: torch.cat([getattr(part, name) for part in parts]) for name in parts[0].tensors}
        chosen = [rows[image] for image in wanted]
        return replace(parts[0], **{name: found[chosen] for name, found in tensors.items()}).to(self.device)

    def forward(self, code: Code, return_dict: bool = True) -> PriorOutput | tuple[torch.Tensor]:
        """
        Bits of each image of a code; see [`bits`].

        Args:
            code ([`SparseCode`] or [`IndexCode`]): A code of the prior's model.
            return_dict (`bool`, defaults to `True`): Whether to return an output class instead of a tuple.

        Returns:
            [`PriorOutput`] or `tuple`: Bits `(B,)`.
        """
        bits = self.bits(code)
        return PriorOutput(bits=bits) if return_dict else (bits,)

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
        facts = (type(self).__name__, [(name, self.config[name]) for name in sorted(self._config_fields)])
        facts = repr(facts).replace("[", "(").replace("]", ")")  # JSON makes lists of tuples
        weights = {name: tensor for name, tensor in state.items() if name != "mixtures"}
        _READY[self] = key, Tables(banks), fingerprint(facts, weights)
        return _READY[self][1:]
