r"""A prior over codes, P(code) = ∏ p(symbol | context), with tables: a compressor and a generator.

An index code has a table of frequencies for each slot and context (`index_model.py`). A sparse code has the prior of
LASERS (2024), eqs 8 and 9: each atom is active with a probability of its own, with a coefficient from a mixture of
Gaussians (`sparse_model.py`). The tables are fitted to codes in closed form and by EM, made integers once and stored as
such, so that the bytes of a code are the same on every machine. `bits` is the cross-entropy under these tables, which
is what `compress` costs.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.utils import BaseOutput

from ...coding import Code, Coder
from ...coding.checks import is_code
from ...coding.frequencies import PRECISION, frequencies, smoothed
from ...coding.symbol_streams import CountingStream, DrawingStream, MeasuringStream, Tables
from ...utils import config_checks as checks
from ...utils.distributed import all_reduce_sum
from ...utils.model_loading import LasersModelMixin
from .index_model import IndexModel
from .prior_files import PriorFiles
from .sparse_model import SparseModel


__all__ = ["FactorizedPrior", "PriorOutput"]

_MOST_ENTRIES = 2**22  # of an index code's tables, 16 MiB, that contexts may have by default


@dataclass
class PriorOutput(BaseOutput):
    """
    Output of a prior's `forward`.

    Args:
        bits (`torch.Tensor` of shape `(B,)`): Bits of each image's code, −log₂ P, float64, on the CPU.
    """

    bits: torch.Tensor


class FactorizedPrior(LasersModelMixin, PriorFiles, ModelMixin, ConfigMixin):
    """
    Probabilities of a model's codes, from tables. It has to be fitted before use. [`from_coder`] gives the
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
        contexts (`bool`, defaults to `True`): Whether probabilities depend on symbols that come before: of an index
            code on neighbours and on earlier slots, of a coefficient on the largest earlier one of its site.
        repeats (`bool`, defaults to `False`): Whether, with contexts, an index code says first whether a symbol is that
            of all its neighbours.

    Attributes:
        coefficient_scale (`torch.Tensor` of shape `(S,)`): Half-widths of the coefficients' quantiser.
        mixtures (`torch.Tensor` of shape `(3, mixtures, components)`): Weights, means and deviations of the mixtures,
            the latter two in units of the scale; for each slot where the order counts, else once, one a context.
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
        "contexts": checks.Flag(),
        "repeats": checks.Flag(),
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
        contexts: bool = True,
        repeats: bool = False,
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
            self.symbol_model = SparseModel(levels[0], len(levels), ordered, coefficient_bits, components, contexts)
            self.register_buffer("coefficient_scale", torch.ones(len(levels)))
            self.register_buffer("mixtures", torch.zeros(3, self.symbol_model.mixtures, components))
        else:
            self.symbol_model = IndexModel(levels, contexts, repeats)
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
            **arguments: Further arguments of the class, e.g. `components`. `contexts` defaults to `False` where their
                tables would have more than 2²² entries, `repeats` to `True` but where symbols are numbers, whose
                neighbours tell more than whether they are the same.

        Returns:
            [`FactorizedPrior`]: The prior.

        Raises:
            ValueError: If the model makes no codes.
        """
        coder = model.coder
        if not coder.levels:
            raise ValueError(f"`model` must make codes, got {type(coder).__name__}, which makes none.")
        scales = coder.slot_scales
        if scales is None:
            shapes = IndexModel(coder.levels, True, False).shapes().values()
            arguments.setdefault("contexts", sum(math.prod(shape) for shape in shapes) <= _MOST_ENTRIES)
            arguments.setdefault("repeats", not coder.numeric)
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
            codes ([`SparseCode`] or [`IndexCode`], or an iterable of them): Codes. An iterable is read twice for index
                codes with contexts, else once.

        Returns:
            [`FactorizedPrior`]: This prior.

        Raises:
            ValueError: If there is no code, one does not fit, or `codes` is an iterator where it is read twice.
        """
        codes = [codes] if is_code(codes) else codes
        counts, sites, used = self._count(codes)
        if not self.config.sparse and self.symbol_model.contexts:
            if iter(codes) is codes:
                raise ValueError(
                    "`codes` must be readable twice where there are contexts, got an iterator: give a list."
                )
            second = self._count(codes, self.symbol_model.marginal_tables(counts))[0]
            counts |= {name: part for name, part in second.items() if not name.startswith("symbols")}
        probabilities = self.symbol_model.probabilities(counts)
        if self.config.sparse:
            self.mixtures.copy_(self.symbol_model.fit_mixtures(counts["cells"]))
            chances = self.symbol_model.cell_probabilities(self.mixtures.cpu())
            # counts bend the mixture: with the rate in the loss some cells are used, and those beside them are not
            probabilities["cells"] = (
                chances if self.config.coefficient_bits is None else smoothed(counts["cells"], chances)
            )
        bits = 0.0 if self.config.coefficient_bits is not None else 32.0 * used * self.config.sparse
        for name, chance in probabilities.items():
            if chance.shape[1] > 1:
                table = frequencies(chance)
                self.get_buffer(f"table_{name}").copy_(table)
                if name in self.symbol_model.coded():
                    bits += float((counts[name] * (PRECISION - table.double().log2())).sum())
        self.site_bits.fill_(max(1, round(bits / sites)))
        return self

    def _count(self, codes: Iterable[Code], tables: Tables | None = None) -> tuple[dict[str, torch.Tensor], int, int]:
        """Counts of all tables, on the CPU, summed over ranks; how many sites, and how many used slots, there were."""
        stream, sites, used = CountingStream(self.symbol_model.shapes(), tables), 0, 0
        for code in codes:
            self._check_code(code)
            self._walk(stream, code)
            sites += code.num_sites
            used += int((code.indices >= 0).sum())
        sites, used = all_reduce_sum(torch.tensor([sites, used], device=self.device)).tolist()
        if sites == 0:
            raise ValueError("`codes` must hold at least one site, got none.")
        found = {
            name: all_reduce_sum(torch.from_numpy(part).to(self.device)).cpu() for name, part in stream.counts.items()
        }
        return found, sites, used

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
        Random codes. They know their nearest neighbours at best, so that images of them are textures, not pictures.

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

    def summary(self) -> dict[str, Any]:
        """
        Facts on the prior beyond its configuration, for a reader.

        Returns:
            `dict[str, Any]`: Under `prior`: mean bits of a site of the fitted codes, 0 before `fit`; number of tables,
            and their bytes in a file.
        """
        tables = [tensor for name, tensor in self.named_buffers() if name.startswith("table_")]
        facts = {
            "bits_per_site": int(self.site_bits),
            "tables": sum(len(table) for table in tables),
            "table_bytes": sum(table.numel() * table.element_size() for table in tables),
        }
        return {"prior": facts}

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
