r"""The dictionary-learning bottleneck of LASERS (2024), sections 3.2–3.3.

Each site y of the latents z_e is replaced by a combination of at most S atoms of a learned dictionary (eqs 10–12),

    ẑ = D γ,   γ = OMP(y, D, S),   ‖d_k‖₂ = 1 ,

and the model minimises ℓ_recon + w_D ‖sg[z_e] − ẑ‖² + β ‖z_e − sg[ẑ]‖² (eq 13), each norm as a mean over elements.

Ours differs from the paper where it is silent or wrong: a patch of p × p sites is one signal of p²·L features with a
dictionary of as many rows; the support is coded by a pursuit that is safe on zero, repeated and dependent atoms; the
gradient to the encoder is the straight-through copy (eq 7) or, with `gradient="projection"`, the exact one for the
chosen support; and coefficients can be quantised, since a code with floats in it costs 32 bits for each.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from diffusers.configuration_utils import register_to_config
from diffusers.utils.accelerate_utils import apply_forward_hook
from torch import nn
from torch.nn import functional as F

from ...coding import SparseCode
from ...coding.checks import check_sparse
from ...coding.container import CodeHeader
from ...coding.payloads import pack_sparse, unpack_sparse
from ...functional.dictionary import dictionary_from_signals, mutual_coherence
from ...functional.dictionary.coherence import similar_atoms, welch_bound
from ...functional.images.patch_signals import patch_grid
from ...functional.pursuit.by_name import PURSUITS, get_pursuit
from ...functional.pursuit.prefixes import prefix_coefficients
from ...functional.pursuit.synthesis import projection_synthesis, synthesize
from ...learning import OnlineDictionaryLearner
from ...utils import config_checks as checks
from ...utils.distributed import broadcast
from ...visualization import atom_map, atom_tiles, coherence_histogram
from .bottleneck import Bottleneck, BottleneckOutput
from .nested_training import NestedTraining
from .quantized_coefficients import SCALE_SAMPLES, QuantizedCoefficients
from .rate_tables import RATE_WEIGHT, RateTables
from .rated_codes import Choice


__all__ = ["DictionaryBottleneck"]

_MEMORY = 0.99  # decay of the running tables in a step, as that of codebooks
_SIMILAR = 0.99  # least inner product of atoms that count as near-duplicates


class DictionaryBottleneck(QuantizedCoefficients, NestedTraining, Bottleneck):
    r"""
    Codes latents by sparse combinations of learned atoms (LASERS, 2024).

    Args:
        latent_channels (`int`, defaults to 16): Channels L of the latents.
        num_atoms (`int`, defaults to 512): Atoms K of the dictionary.
        sparsity (`int`, defaults to 5): Atoms S a site may use, at most `num_atoms`.
        patch_size (`int`, defaults to 1): Side p of a site, in latent positions.
        gradient (`str`, defaults to `"straight_through"`): How gradients pass: `"straight_through"` copies them to the
            encoder (eq 7; the dictionary learns from its own loss alone), `"projection"` uses the exact Jacobian for
            the chosen support, to the encoder and to the dictionary.
        dictionary_weight (`float`, defaults to 1.0): Weight of the dictionary loss, second term of eq 13.
        commitment_weight (`float`, defaults to 0.25): Weight β of the commitment loss, third term of eq 13.
        coefficient_bits (`int`, *optional*): Bits n of a coefficient, 1 to 16. Defaults to `None`: float32
            coefficients.
        coefficient_scaling (`str`, defaults to `"depth"`): Range of the quantised coefficients: `"depth"` has one for
            each slot in order of selection, so that the order is part of the code; `"shared"` has one for all, so that
            the support is a set and log2 S! bits are saved.
        tolerance (`float`, *optional*): Residual norm below which a site takes no further atom. Defaults to `None`.
        pursuit (`str`, defaults to `"omp"`): How sites are coded: `"omp"` (the paper), `"ols"` (shorter residuals for
            up to twice the time), `"iht"` or `"fista"`; see [`get_pursuit`].
        sparsity_dropout (`float`, defaults to 0.0): Probability that a training step decodes only the first atoms of
            each site, refitted, 1 to `sparsity` of them at equal odds; truncated codes are then decoded better.
        rate_weight (`float`, defaults to 0.0): λ, the loss of one bit a latent value, in the scale of a mean squared
            error of pixels in [−1, 1]. A site uses as many of the atoms found, and their coefficients go to such
            cells, as make ‖y − ŷ‖² + w · bits least, with bits by running tables and w = 4 λ times the variance of the
            latents. 0 uses all, takes the nearest cells and keeps no tables.

    Attributes:
        dictionary (`torch.nn.Parameter` of shape `(p²·L, K)`): Atoms as columns, of unit norm; kept so by
            [`DictionaryUpkeep`] in training.
        coefficient_scale (`torch.Tensor` of shape `(S,)`): Half-width of the quantised range for each slot: the 99.5th
            percentile of the coefficients' magnitude, a running mean over training steps.
    """

    _decoding_config = ("coefficient_scaling",)
    _kind, _nested = "sparse", True
    _keep_in_fp32_modules = [*Bottleneck._keep_in_fp32_modules, "dictionary", "coefficient_scale", "tables"]
    _config_fields = {
        "latent_channels": checks.CHANNELS,
        "num_atoms": checks.Integer(1, 2**24),
        "sparsity": checks.Integer(1, 2**16),
        "patch_size": checks.Integer(1, 2**10),
        "gradient": checks.Word("straight_through", "projection"),
        "dictionary_weight": checks.WEIGHT,
        "commitment_weight": checks.WEIGHT,
        "coefficient_bits": checks.Optional(checks.Integer(1, 16)),
        "coefficient_scaling": checks.Word("depth", "shared"),
        "tolerance": checks.Optional(checks.WEIGHT),
        "pursuit": checks.Word(*PURSUITS),
        "sparsity_dropout": checks.Number(0.0, 1.0),
        "rate_weight": RATE_WEIGHT,
    }

    @register_to_config
    def __init__(
        self,
        latent_channels: int = 16,
        num_atoms: int = 512,
        sparsity: int = 5,
        patch_size: int = 1,
        gradient: str = "straight_through",
        dictionary_weight: float = 1.0,
        commitment_weight: float = 0.25,
        coefficient_bits: int | None = None,
        coefficient_scaling: str = "depth",
        tolerance: float | None = None,
        pursuit: str = "omp",
        sparsity_dropout: float = 0.0,
        rate_weight: float = 0.0,
    ):
        super().__init__()
        if sparsity > num_atoms:
            raise ValueError(f"`sparsity` must be at most `num_atoms` ({num_atoms}), got {sparsity}.")
        features = patch_size * patch_size * latent_channels
        checks.check_size(
            features * num_atoms, num_atoms=num_atoms, latent_channels=latent_channels, patch_size=patch_size
        )
        self.dictionary = nn.Parameter(F.normalize(torch.randn(features, num_atoms), dim=0))
        self.register_buffer("coefficient_scale", torch.ones(sparsity))
        self.register_buffer("scale_steps", torch.zeros((), dtype=torch.int64))
        self._set_dropout(sparsity_dropout)
        if rate_weight:
            cells = 2 ** (coefficient_bits or 0)
            checks.check_size(sparsity * (num_atoms + cells), num_atoms=num_atoms, sparsity=sparsity)
            self.tables = RateTables(sparsity, num_atoms, coefficient_bits or 0)

    @property
    def levels(self) -> tuple[int, ...]:
        """Atoms of the dictionary, for each of the `sparsity` slots."""
        return (self.config.num_atoms,) * self.config.sparsity

    @torch.no_grad()
    def initialize(self, latents: torch.Tensor, generator: torch.Generator | None = None) -> None:
        """
        Sets the first atom to the direction of the mean site and the others to those of random sites less that mean;
        the same on all ranks. The sites of an untrained encoder share most of their energy: taken as they are, they
        would make a dictionary of nearly one atom. The coefficient scale is set from the same sites.

        Args:
            latents (`torch.Tensor` of shape `(B, L, H, W)`): Latents of the untrained encoder.
            generator (`torch.Generator`, *optional*): Source of randomness.
        """
        signals = self.signals(latents)
        mean = signals.mean(dim=0, keepdim=True)
        atoms = dictionary_from_signals(signals - mean, self.config.num_atoms, generator=generator)
        atoms[:, :1] = torch.where(mean.norm() > 0, F.normalize(mean, dim=1).t(), atoms[:, :1])
        self.dictionary.copy_(broadcast(atoms.contiguous()))
        self.coefficient_scale.copy_(self._batch_scale(*self._pursue(signals)))
        self._start_dropout(generator)
        self._start_tables(signals)

    @torch.no_grad()
    def fit(
        self,
        latents: torch.Tensor | Iterable[torch.Tensor],
        passes: int = 1,
        learner: OnlineDictionaryLearner | None = None,
        progress: bool = True,
        **learner_arguments: Any,
    ) -> OnlineDictionaryLearner:
        """
        Learns the dictionary from fixed latents, those of a frozen autoencoder, by online dictionary learning; no
        gradient is involved. The coefficient scale is set from the first latents, coded with the result.

        Args:
            latents (`torch.Tensor` of shape `(B, L, H, W)`, or an iterable of such tensors): The latents, the same in
                every pass; their sites are the signals. An iterable is read once a pass, and once more at the end.
            passes (`int`, defaults to 1): Passes over the latents.
            learner ([`OnlineDictionaryLearner`], *optional*): One to go on with, e.g. loaded from a file. Defaults to a
                new one with this bottleneck's atoms, sparsity, pursuit and tolerance.
            progress (`bool`, defaults to `True`): Whether to show a bar.
            **learner_arguments: Further arguments of a new learner, e.g. `batch_size`, `seed` or `revive_every`.

        Returns:
            [`OnlineDictionaryLearner`]: The learner, to be saved or continued.

        Raises:
            ValueError: If the latents do not fit, or `learner` has another number of atoms or features.
        """
        if learner is None:
            config = self.config
            learner = OnlineDictionaryLearner(
                config.num_atoms,
                config.sparsity,
                pursuit=config.pursuit,
                tolerance=config.tolerance,
                device=self.dictionary.device,
                **learner_arguments,
            )
        features = self.dictionary.shape[0] if learner.dictionary is None else learner.dictionary.shape[0]
        if (features, learner.config.num_atoms) != self.dictionary.shape:
            raise ValueError(
                f"`learner` must have a dictionary of shape {tuple(self.dictionary.shape)}, got "
                f"{(features, learner.config.num_atoms)}."
            )
        device = self.dictionary.device
        signals = self.signals(latents.to(device)) if torch.is_tensor(latents) else _Signals(self, latents)
        learner.fit(signals, passes=passes, resume=True, progress=progress)
        self.dictionary.copy_(learner.dictionary)
        first = signals if torch.is_tensor(signals) else next(iter(signals))
        spread = first[:: max(1, len(first) // SCALE_SAMPLES)]  # over all of its images
        self.coefficient_scale.copy_(self._batch_scale(*self._pursue(spread)))
        self._start_tables(spread)
        return learner

    @apply_forward_hook
    @torch.no_grad()
    def encode(self, latents: torch.Tensor, rate_weight: float | None = None, prior: Any = None) -> SparseCode:
        """
        Codes latents.

        Args:
            latents (`torch.Tensor` of shape `(B, L, H, W)`): Latents.
            rate_weight (`float`, *optional*): λ of this call; see [`Bottleneck.encode_to_code`].
            prior ([`FactorizedPrior`], *optional*): Whose bits count.

        Returns:
            [`SparseCode`]: `h × w = ⌈H/p⌉ × ⌈W/p⌉` sites of `sparsity` slots; coefficients are float32, on the
            quantiser's grid where `coefficient_bits` is set.

        Raises:
            ValueError: If the latents have another number of channels, or λ and prior do not fit.
        """
        choice = self._choice(rate_weight, prior)
        indices, coefficients = self._choose(self.signals(latents), choice)
        return self._code(indices, self._quantize(indices, coefficients, choice), latents)

    def truncate(self, code: SparseCode, sparsity: int) -> SparseCode:
        """
        A code of this bottleneck with only the first `sparsity` atoms of each site: refitted, and quantised again where
        `coefficient_bits` is set. It costs `site_bits(sparsity)` a site.

        Args:
            code ([`SparseCode`]): A code of this dictionary.
            sparsity (`int`): Atoms to keep, from 1 to the code's own.

        Returns:
            [`SparseCode`]: A code with `sparsity` slots.

        Raises:
            ValueError: If `code` is none of this bottleneck's, see [`decode`], or `sparsity` is out of range.
        """
        self._check_code(code)
        code = code.truncate(sparsity, self.dictionary)
        indices, coefficients = code.indices.flatten(0, 2), code.coefficients.flatten(0, 2)
        coefficients = self._quantize(indices, coefficients, self._choice()).reshape(code.indices.shape)
        return replace(code, coefficients=coefficients)

    @apply_forward_hook
    def decode(self, code: SparseCode) -> torch.Tensor:
        """
        Latents of a code (LASERS, 2024, eq 12); differentiable in the coefficients and the dictionary. The order of a
        site's slots changes nothing, to the bit: a support is a set.

        Args:
            code ([`SparseCode`]): A code of this dictionary; it may have fewer slots than `sparsity`.

        Returns:
            `torch.Tensor` of shape `(B, L, H, W)`: Latents in float32.

        Raises:
            ValueError: If it is not a sparse code of as many atoms, has other sites or, on the CPU, indices out of
                range or coefficients that are not finite.
        """
        self._check_code(code)
        with torch.autocast(code.indices.device.type, enabled=False):
            # a sum of floats depends on the order of its terms, a set of atoms has none
            indices, order = code.indices.flatten(0, 2).sort(dim=1)
            coefficients = code.coefficients.flatten(0, 2).gather(1, order)
            signals = synthesize(indices, coefficients, self.dictionary.float())
            return self.latents(signals, code.latent_size, torch.float32)

    def _check_kind(self, code: SparseCode) -> None:
        check_sparse(code, self.config.num_atoms)

    def _check_packable(self, code: SparseCode) -> None:
        check_sparse(code, self.config.num_atoms, self.config.sparsity)

    def _pack_payload(self, code: SparseCode) -> bytes:
        rows = (code.indices.flatten(0, 2), code.coefficients.flatten(0, 2))
        return pack_sparse(*rows, code.num_atoms, self.ordered, self.slot_scales[: code.slots], self.coefficient_bits)

    def _unpack_payload(self, header: CodeHeader, payload: bytes, rows: int, shape: tuple[int, ...]) -> SparseCode:
        bits, atoms, scale = header.coefficient_bits, self.config.num_atoms, self.slot_scales[: header.slots]
        found = unpack_sparse(payload, rows, header.slots, atoms, self._ordered(bits), scale, bits)
        indices, coefficients = (part.reshape(shape) for part in found)
        return SparseCode(indices, coefficients, atoms, header.latent_size, header.image_size)

    def forward(self, latents: torch.Tensor, return_dict: bool = True) -> BottleneckOutput | tuple:
        """
        Codes and decodes latents, with gradients and losses (LASERS, 2024, eqs 7 and 13).

        Args:
            latents (`torch.Tensor` of shape `(B, L, H, W)`): Latents.
            return_dict (`bool`, defaults to `True`): Whether to return an output class instead of a tuple.

        Returns:
            [`BottleneckOutput`] or `tuple`: Latents in the input's dtype, losses in float32, and the [`SparseCode`].
        """
        with torch.autocast(latents.device.type, enabled=False):
            signals = self.signals(latents)
            dictionary = self.dictionary.float()
            choice = self._choice()
            indices, exact = self._choose(signals, choice)
            if self.training:
                self._track_scale(indices, exact)
            coefficients = self._quantize(indices, exact, choice)
            code, kept = self._code(indices, coefficients, latents), self._kept_slots()
            rate = self._mean_rate(code, signals)
            if self.training:
                self._observe_code(code, signals, _MEMORY)
            if kept is not None:
                fewer = self._code(indices, exact, latents).truncate(kept, dictionary)
                indices, exact = fewer.indices.flatten(0, 2), fewer.coefficients.flatten(0, 2)
                coefficients = self._quantize(indices, exact, choice)
            coded = synthesize(indices, coefficients, dictionary)
            codebook_loss = F.mse_loss(coded, signals.detach())
            commitment_loss = F.mse_loss(signals, coded.detach())
            if self.config.gradient == "projection":
                passed = projection_synthesis(signals, dictionary, indices, exact)
                passed = passed + (coded - passed).detach()
            else:
                passed = signals + (coded - signals).detach()
            loss = self.config.dictionary_weight * codebook_loss + self.config.commitment_weight * commitment_loss
            output = BottleneckOutput(
                latents=self.latents(passed, latents.shape[-2:], latents.dtype),
                loss=loss,
                commitment_loss=commitment_loss.detach(),
                codebook_loss=codebook_loss.detach(),
                code=code,
                rate=rate,
            )
        return output if return_dict else output.to_tuple()

    def summary(self) -> dict[str, Any]:
        """That of all bottlenecks, with the coefficients' ranges and the geometry of the dictionary."""
        facts = super().summary()
        facts["bottleneck"]["coefficient_scale"] = [float(value) for value in self.coefficient_scale]
        facts["bottleneck"]["dictionary"] = dictionary_summary(self.dictionary.detach().float())
        return facts

    def pictures(self, method: str = "pca") -> dict[str, Any]:
        """The atoms as tiles, how alike they are, and how they lie in a plane; see [`Coder.pictures`]."""
        dictionary = self.dictionary.detach().float()
        pictures = {"atoms.png": atom_tiles(dictionary)}
        if dictionary.shape[1] > 1:
            pictures["coherence.png"] = coherence_histogram(dictionary)
        if dictionary.shape[1] > 3:
            pictures["atom_map.png"] = atom_map(dictionary, method=method)
        return pictures

    def _pursue(self, signals: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Codes of signals. The check for non-finite values synchronises, so that only the CPU has it."""
        check_finite = signals.device.type == "cpu"
        dictionary = self.dictionary.detach()
        pursue = get_pursuit(self.config.pursuit)
        return pursue(
            signals.detach(), dictionary, self.config.sparsity, self.config.tolerance, check_finite=check_finite
        )

    def _choose(self, signals: torch.Tensor, choice: Choice | None) -> tuple[torch.Tensor, torch.Tensor]:
        """Codes of signals `(N, p²·L)`; with a choice only the first atoms of each site, where more would not pay."""
        indices, coefficients = self._pursue(signals)
        if choice is None:
            return indices, coefficients
        dictionary = self.dictionary.detach().float()
        exact = [torch.zeros_like(coefficients), *prefix_coefficients(indices, coefficients, dictionary)]
        slot, losses = torch.arange(indices.shape[1], device=indices.device), []
        for count, values in enumerate(exact):
            kept = torch.where(slot < count, indices, -1)
            values = self._quantize(kept, values, choice)
            errors = (signals.detach() - synthesize(kept, values, dictionary)).square().sum(dim=1)
            losses.append(errors + choice.weight * choice.bits.of(kept, self._cells(values)))
        count = torch.stack(losses).argmin(dim=0)  # the fewest of equal ones
        chosen = torch.stack(exact)[count, torch.arange(len(count), device=count.device)]
        chosen = torch.where(coefficients.isnan(), coefficients, chosen)  # of signals that are not finite
        return torch.where(slot < count.unsqueeze(1), indices, -1), chosen

    def _site_bits(self, code: SparseCode) -> torch.Tensor:
        indices, coefficients = code.indices.flatten(0, 2), code.coefficients.flatten(0, 2).float()
        return self.tables.bits(self.ordered).of(indices, self._cells(coefficients))

    def _code_of_signals(self, signals: torch.Tensor) -> SparseCode:
        choice = self._choice()
        indices, coefficients = self._choose(signals, choice)
        parts = (indices, self._quantize(indices, coefficients, choice))
        side = self.config.patch_size
        return SparseCode(*(part[:, None, None] for part in parts), self.config.num_atoms, (side, side))

    def _code(self, indices: torch.Tensor, coefficients: torch.Tensor, latents: torch.Tensor) -> SparseCode:
        height, width = latents.shape[-2:]
        shape = (latents.shape[0], *patch_grid(height, width, self.config.patch_size), self.config.sparsity)
        return SparseCode(indices.reshape(shape), coefficients.reshape(shape), self.config.num_atoms, (height, width))


def dictionary_summary(dictionary: torch.Tensor) -> dict[str, Any]:
    """Geometry of a dictionary `(features, K)`; see [`Coder.summary`]."""
    features, atoms = dictionary.shape
    norms = dictionary.norm(dim=0)
    return {
        "atoms": atoms,
        "features": features,
        "coherence": float(mutual_coherence(dictionary)),
        "welch_bound": welch_bound(features, atoms),
        "smallest_norm": float(norms.min()),
        "largest_norm": float(norms.max()),
        "near_duplicates": int(similar_atoms(dictionary, _SIMILAR).sum()),
        "near_duplicates_from": _SIMILAR,
    }


@dataclass
class _Signals:
    """The sites of an iterable of latents, item by item; it can be read as often as the iterable."""

    bottleneck: DictionaryBottleneck
    latents: Iterable[torch.Tensor]

    def __iter__(self) -> Iterator[torch.Tensor]:
        device = self.bottleneck.dictionary.device
        return (self.bottleneck.signals(item.to(device)) for item in self.latents)
