r"""Vector-quantised bottlenecks with running-mean codebooks: the baselines of LASERS (2024), section 3.1.

`VectorQuantizerBottleneck` replaces each site by its nearest codeword (eqs 1–2). `ResidualVQBottleneck` repeats that on
what the earlier stages leave, ẑ = Σ_d e^{(d)}_{k_d}, which buys log₂ K bits a stage: it is the peer of a dictionary
code at the same rate. Gradients are copied straight through (eq 7), the encoder pays β‖z_e − sg[ẑ_e]‖² (third term of
eq 3), and running means with data initialisation and revival of dead codewords replace the second term. The authors'
baseline subtracted the codewords' mean in place and re-created its parameters each step; ours is the algorithm as
published, tuned with care.

The revival is not that of dictionaries (`learning/revival.py`): a codeword has a length and a running count, by which
it dies and with which it restarts, while an atom has unit norm and dies where no code uses it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from diffusers.configuration_utils import register_to_config
from tqdm.auto import tqdm

from ...functional.quantisers.codebook import (
    codeword_statistics,
    kmeans,
    nearest_codewords,
    update_codebook,
    with_costs,
)
from ...functional.quantisers.subquantizers import encode_residual
from ...functional.rates import perplexity
from ...learning.codebooks import fit_quantizer
from ...utils import config_checks as checks
from ...utils.distributed import all_reduce_sum, broadcast
from ...visualization import atom_map, atom_tiles, usage_histogram
from .bottleneck import sample_signals
from .index_bottleneck import IndexBottleneck
from .nested_training import NestedTraining
from .rate_tables import RATE_WEIGHT, RateTables
from .rated_codes import Choice


__all__ = ["ResidualVQBottleneck", "VectorQuantizerBottleneck"]

_INITIAL_SIGNALS = 65536  # signals that initialisation looks at
_FIELDS = {
    "latent_channels": checks.CHANNELS,
    "num_codewords": checks.Integer(1, 2**24),
    "patch_size": checks.Integer(1, 2**10),
    "decay": checks.Number(0.0, 1.0, below=True),
    "commitment_weight": checks.WEIGHT,
    "revive_threshold": checks.Number(0.0, 1.0, below=True),
    "rate_weight": RATE_WEIGHT,
}


class _RunningMeanQuantizer(NestedTraining, IndexBottleneck):
    """
    Stages of vector quantisation, each on the residual of those before.

    Attributes:
        codebook (`torch.Tensor` of shape `(depth, K, p²·L)`): Codewords of each stage.
        counts (`torch.Tensor` of shape `(depth, K)`): Running counts N_k.
        sums (`torch.Tensor` of shape `(depth, K, p²·L)`): Running sums m_k.
    """

    _nested = True
    _keep_in_fp32_modules = [*IndexBottleneck._keep_in_fp32_modules, "codebook", "counts", "sums", "tables"]

    def _build(self, depth: int, config: dict) -> None:
        features = config["patch_size"] ** 2 * config["latent_channels"]
        deciding = {name: config[name] for name in ("num_codewords", "latent_channels", "patch_size")}
        checks.check_size(2 * depth * config["num_codewords"] * features, **deciding, depth=depth)
        self.depth = depth
        codebook = torch.randn(depth, config["num_codewords"], features) / features**0.5
        self.register_buffer("codebook", codebook)
        self.register_buffer("counts", torch.ones(depth, config["num_codewords"]))
        self.register_buffer("sums", codebook.clone())
        self._set_dropout(config.get("stage_dropout", 0.0))
        if config["rate_weight"]:
            self.tables = RateTables(depth, config["num_codewords"])

    @property
    def levels(self) -> tuple[int, ...]:
        """Codewords of each stage, stage by stage."""
        return (self.config.num_codewords,) * self.depth

    @torch.no_grad()
    def initialize(self, latents: torch.Tensor, generator: torch.Generator | None = None) -> None:
        """
        Runs k-means on the sites of `latents`, stage by stage; the same on all ranks.

        Args:
            latents (`torch.Tensor` of shape `(B, L, H, W)`): Latents of the untrained encoder.
            generator (`torch.Generator`, *optional*): Source of randomness.
        """
        residual = signals = self.signals(latents)[:_INITIAL_SIGNALS]
        for stage in range(self.depth):
            codebook, counts = kmeans(residual, self.config.num_codewords, generator=generator)
            counts = counts.clamp_min(1e-3)
            self.codebook[stage] = broadcast(codebook)
            self.counts[stage] = broadcast(counts)
            self.sums[stage] = self.codebook[stage] * self.counts[stage].unsqueeze(1)
            residual = residual - codebook[nearest_codewords(residual, codebook)]
        self._start_dropout(generator)
        self._start_tables(signals)

    @torch.no_grad()
    def fit(
        self,
        latents: torch.Tensor | Iterable[torch.Tensor],
        max_signals: int = 2**18,
        seed: int = 0,
        progress: bool = True,
        **quantizer_arguments: Any,
    ) -> None:
        """
        Learns the codebooks from fixed latents, those of a frozen autoencoder, by faiss: k-means, stage after stage on
        what a beam search of the stages before leaves.

        Args:
            latents (`torch.Tensor` of shape `(B, L, H, W)`, or an iterable of such tensors): Latents; an iterable is
                read twice.
            max_signals (`int`, defaults to 262144): Sites that are drawn from them.
            seed (`int`, defaults to 0): Seed of the draw and of k-means.
            progress (`bool`, defaults to `True`): Whether to show a bar.
            **quantizer_arguments: Further arguments of `learning.fit_quantizer`: `iterations`, `threads`.

        Raises:
            ValueError: If the number of codewords is no power of two, or the latents are too few, do not fit or are not
                finite.
            ImportError: Without faiss (extra `codec`).
        """
        codewords = self.config.num_codewords
        bits = codewords.bit_length() - 1
        if bits < 1 or codewords != 2**bits:
            raise ValueError(f"`num_codewords` must be a power of two of at least 2 for `fit`, got {codewords!r}.")
        signals = sample_signals(self, latents, max_signals, seed)
        kind = "VQ" if self.depth == 1 else "RQ"
        with tqdm(total=self.depth, desc="Codebooks", disable=not progress) as bar:
            books, _ = fit_quantizer(
                signals.cpu().numpy(),
                kind,
                self.depth,
                bits,
                seed=seed,
                report=lambda stage: bar.update(),
                **quantizer_arguments,
            )
        self.codebook.copy_(torch.from_numpy(books))
        self._start_tables(signals)
        indices = self._quantize(signals, self._choice())
        for stage, given in enumerate(self._stage_inputs(signals, indices)):
            counts, _ = codeword_statistics(given, indices[:, stage], codewords)
            self.counts[stage] = counts.clamp_min(1e-3)
            self.sums[stage] = self.codebook[stage] * self.counts[stage].unsqueeze(1)

    @property
    def usage(self) -> torch.Tensor | None:
        """Running counts `(depth, K)` of the codewords' uses in training; `None` before any."""
        return None if bool((self.counts == self.counts.flatten()[0]).all()) else self.counts

    def summary(self) -> dict[str, Any]:
        """That of all bottlenecks, and how the codewords were used in training; see [`Coder.summary`]."""
        facts, usage = super().summary(), self.usage
        if usage is not None:
            facts["bottleneck"]["usage_in_training"] = {
                "perplexity_of_each_stage": [float(perplexity(row)) for row in usage],
                "smallest_share": float((usage / usage.sum(dim=1, keepdim=True)).min()),
            }
        return facts

    def pictures(self, method: str = "pca") -> dict[str, Any]:
        """The codewords of each stage as tiles, how they lie in a plane and how they were used."""
        pictures, usage = {}, self.usage
        for stage, book in enumerate(self.codebook.float(), 1):
            counts = None if usage is None else usage[stage - 1]
            pictures[f"codewords_{stage}.png"] = atom_tiles(book.t(), usage=counts)
            if len(book) > 3:
                pictures[f"codeword_map_{stage}.png"] = atom_map(book.t(), counts, method)
            if counts is not None:
                pictures[f"usage_{stage}.png"] = usage_histogram(counts)
        return pictures

    def _quantize(self, signals: torch.Tensor, choice: Choice | None = None) -> torch.Tensor:
        codebook, beam = self.codebook.float(), self.config.get("beam_size", 1)
        if choice is not None:
            signals, codebook = with_costs(signals, codebook, choice.symbol_costs)
        if beam > 1:
            return encode_residual(signals, codebook, beam)
        indices, residual = [], signals
        for stage in range(self.depth):
            if stage:
                residual = residual - codebook[stage - 1][indices[-1]]
            indices.append(nearest_codewords(residual, codebook[stage]))
        return torch.stack(indices, dim=1)

    def _dequantize(self, indices: torch.Tensor) -> torch.Tensor:
        return sum(self.codebook[stage].float()[indices[:, stage]] for stage in range(indices.shape[1]))

    def _stage_inputs(self, signals: torch.Tensor, indices: torch.Tensor) -> Iterator[torch.Tensor]:
        """What each stage was given: the signals, less the codewords of the stages before."""
        for stage in range(self.depth):
            yield signals
            signals = signals - self.codebook[stage].float()[indices[:, stage]]

    @torch.no_grad()
    def _observe(self, signals: torch.Tensor, indices: torch.Tensor) -> None:
        """
        Moves the running means of each stage by the statistics of all ranks; dead codewords restart at rank 0's
        signals.
        """
        self._observe_code(self._code_of_indices(indices), signals, self.config.decay)
        codewords = self.config.num_codewords
        for stage, signals in enumerate(list(self._stage_inputs(signals, indices))):
            counts, sums = codeword_statistics(signals, indices[:, stage], codewords)
            all_reduce_sum(counts)
            all_reduce_sum(sums)
            chosen = torch.randint(signals.shape[0], (codewords,), device=signals.device)
            candidates = broadcast(signals[chosen])
            self.counts[stage], self.sums[stage], self.codebook[stage] = update_codebook(
                self.counts[stage].float(),
                self.sums[stage].float(),
                counts,
                sums,
                candidates,
                self.config.decay,
                self.config.revive_threshold,
            )


class VectorQuantizerBottleneck(_RunningMeanQuantizer):
    """
    Replaces each site by its nearest codeword (VQ-VAE with running means; LASERS, 2024, eqs 1–5).

    Args:
        latent_channels (`int`, defaults to 16): Channels L of the latents.
        num_codewords (`int`, defaults to 512): Codewords K.
        patch_size (`int`, defaults to 1): Side p of a site, in latent positions.
        decay (`float`, defaults to 0.99): Memory λ of the running means.
        commitment_weight (`float`, defaults to 0.25): Weight β of the commitment loss.
        revive_threshold (`float`, defaults to 0.03): Share of the mean running count below which a codeword restarts at
            a random signal; 0 disables that.
        rate_weight (`float`, defaults to 0.0): λ, the loss of one bit a latent value, in the scale of a mean squared
            error of pixels in [−1, 1]. A site takes the codeword of the least ‖y − e‖² + w · bits (Chou, Lookabaugh &
            Gray, 1989), with bits by a running table and w = 4 λ times the variance of the latents. 0 takes the nearest
            codeword and keeps no table.
    """

    latent_evenness = 0.0  # one codeword a site has to spend itself on the strong components
    _config_fields = _FIELDS

    @register_to_config
    def __init__(
        self,
        latent_channels: int = 16,
        num_codewords: int = 512,
        patch_size: int = 1,
        decay: float = 0.99,
        commitment_weight: float = 0.25,
        revive_threshold: float = 0.03,
        rate_weight: float = 0.0,
    ):
        super().__init__()
        self._build(1, self.config)


class ResidualVQBottleneck(_RunningMeanQuantizer):
    """
    Quantises each site in stages, each coding what the stages before left over (residual vector quantisation).

    Args:
        latent_channels (`int`, defaults to 16): Channels L of the latents.
        num_codewords (`int`, defaults to 512): Codewords K of each stage.
        depth (`int`, defaults to 5): Stages.
        patch_size (`int`, defaults to 1): Side p of a site, in latent positions.
        decay (`float`, defaults to 0.99): Memory λ of the running means.
        commitment_weight (`float`, defaults to 0.25): Weight β of the commitment loss.
        revive_threshold (`float`, defaults to 0.03): Share of the mean running count below which a codeword restarts at
            a random signal; 0 disables that.
        beam_size (`int`, defaults to 1): Partial sums that coding keeps after each stage; 1 takes the nearest codeword
            each time.
        stage_dropout (`float`, defaults to 0.0): Probability that a training step decodes only its first stages, 1 to
            `depth` of them at equal odds; codes cut to their first stages are then decoded better. All stages code and
            learn in every step.
        rate_weight (`float`, defaults to 0.0): λ, as in [`VectorQuantizerBottleneck`], at each stage.
    """

    _config_fields = (
        _FIELDS
        | {"depth": checks.Integer(1, 4096), "beam_size": checks.Integer(1, 2**16)}
        | {"stage_dropout": checks.Number(0.0, 1.0)}
    )

    @register_to_config
    def __init__(
        self,
        latent_channels: int = 16,
        num_codewords: int = 512,
        depth: int = 5,
        patch_size: int = 1,
        decay: float = 0.99,
        commitment_weight: float = 0.25,
        revive_threshold: float = 0.03,
        beam_size: int = 1,
        stage_dropout: float = 0.0,
        rate_weight: float = 0.0,
    ):
        super().__init__()
        self._build(depth, self.config)
