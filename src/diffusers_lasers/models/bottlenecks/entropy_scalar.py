r"""Scalar quantisation for an entropy coder, trained with its rate (Ballé et al., 2017 and 2018).

Each value y of a site is named by its cell among 2ⁿ of one width Δ, its channel's step, and decoded as the centre:

    k = clamp(round((y − o) / Δ), −2ⁿ⁻¹, 2ⁿ⁻¹ − 1),    ŷ = o + Δ k.

Rounding has no gradient. In training, `"straight_through"` gives the decoder ŷ with the gradient of y (for Δ that of
Esser et al., 2020), and `"noise"` gives it y + Δ u with u uniform in [−½, ½], whose error has the same variance. Both
add λ·R to the loss. R is the mean of −log₂ P(a cell around y + Δ u), in bits a value, under a density for each channel:
a mixture of logistic densities, in closed form (`functional.quantisers.cell_rates`), where CompressAI's
`FactorizedPrior` has small networks. So training finds how fine each channel is worth its bits. Without λ the steps
are those of intₙ, in which practitioners store latents. The density is learned then too, so that every code has a rate.
"""

from __future__ import annotations

import math

import torch
from diffusers.configuration_utils import register_to_config
from torch import nn
from torch.nn import functional as F

from ...coding import IndexCode
from ...coding.symbol_bits import SymbolBits
from ...functional.quantisers.cell_rates import cell_bits
from ...functional.quantisers.cheapest_points import cheapest_points
from ...utils import config_checks as checks
from ...utils.distributed import broadcast
from .bottleneck import BottleneckOutput
from .index_bottleneck import IndexBottleneck
from .rate_tables import IMAGE_VARIANCE, RATE_WEIGHT
from .rated_codes import Choice


__all__ = ["EntropyScalarBottleneck"]

_SPEED = 10.0  # steps and density move so much faster than their parameters, whose learning rate is that of weights
_COMPONENTS = 3  # logistic densities a channel
_TAIL = 5e-4  # share of the first values below the first cell, and above the last, without λ
_FIRST_SITES = 2**14  # most sites that `initialize` draws for offsets and steps
_FIT_SITES, _FIT_STEPS = 2**12, 200  # of them for the first density, and steps of its fit
_FAR = 2.0**20  # steps to where an outermost cell ends, which stands for infinity


class EntropyScalarBottleneck(IndexBottleneck):
    """
    Rounds each value to a multiple of its channel's step, in training with a density that says what its cell costs.

    Args:
        latent_channels (`int`, defaults to 16): Channels L of the latents.
        bits (`int`, defaults to 8): Nominal bits n of a value, 2 to 16. With `rate_weight` they only bound the values;
            an entropy coder needs [`rate`].
        patch_size (`int`, defaults to 1): Side p of a site, in latent positions, each with steps of its own.
        rate_weight (`float`, defaults to 0.0): λ, the loss of one bit a latent value. An encoder that reduces the
            sides by f has L / f² latent values a pixel: R·L / f² is in bits a pixel.
        step (`float`, *optional*): First step of all channels, in units of the latents. Defaults to `None`:
            `initialize` chooses. Without λ it fits 2ⁿ cells to 99.9 % of a channel's values; with λ it takes
            √(24 λ / ln 2) deviations of the latents, at which a bit less costs λ, where the decoder is linear and
            pixel values have the variance ¼.
        learned_steps (`bool`, defaults to `True`): Whether training changes the steps.
        quantization (`str`, defaults to `"straight_through"`): What the decoder is given in training:
            `"straight_through"` or `"noise"`.

    Attributes:
        offset (`torch.Tensor` of shape `(p²·L,)`): Centre o of cell 0.
        log_steps (`torch.Tensor` of shape `(p²·L,)`): ln Δ / 10.
        density (`torch.Tensor` of shape `(3, 3, p²·L)`): Logits, locations (less o) and log-scales of the mixture's
            components, each over 10.
    """

    _keep_in_fp32_modules = [*IndexBottleneck._keep_in_fp32_modules, "offset", "log_steps", "density"]
    _decoding_config = ("bits",)
    numeric = True
    _config_fields = {
        "latent_channels": checks.CHANNELS,
        "bits": checks.Integer(2, 16),
        "patch_size": checks.Integer(1, 2**10),
        "rate_weight": RATE_WEIGHT,
        "step": checks.Optional(checks.Number(low=1e-6, high=1e6)),
        "learned_steps": checks.Flag(),
        "quantization": checks.Word("noise", "straight_through"),
    }

    @register_to_config
    def __init__(
        self,
        latent_channels: int = 16,
        bits: int = 8,
        patch_size: int = 1,
        rate_weight: float = 0.0,
        step: float | None = None,
        learned_steps: bool = True,
        quantization: str = "straight_through",
    ):
        super().__init__()
        self.depth = patch_size * patch_size * latent_channels
        checks.check_size(self.depth * 10, latent_channels=latent_channels, patch_size=patch_size)
        self.register_buffer("offset", torch.zeros(self.depth))
        log_steps = torch.full((self.depth,), math.log(self._first_step()) / _SPEED)
        if learned_steps:
            self.log_steps = nn.Parameter(log_steps)
        else:
            self.register_buffer("log_steps", log_steps)
        self.density = nn.Parameter(torch.zeros(3, _COMPONENTS, self.depth))

    def _first_step(self) -> float:
        """Step of latents with deviation 1."""
        config = self.config
        if config.step is not None:
            return config.step
        if config.rate_weight:
            return max(1e-6, math.sqrt(6 * config.rate_weight / (IMAGE_VARIANCE * math.log(2.0))))
        return 6.6 / 2**config.bits  # 99.9 % of a normal distribution

    @property
    def levels(self) -> tuple[int, ...]:
        """Cells of each value of a site."""
        return (2**self.config.bits,) * self.depth

    @property
    def steps(self) -> torch.Tensor:
        """Steps Δ `(p²·L,)`, with gradients."""
        return (_SPEED * self.log_steps.float()).exp()

    @torch.no_grad()
    def initialize(self, latents: torch.Tensor, generator: torch.Generator | None = None) -> None:
        """
        Sets offsets, steps and the density from latents; the same on all ranks.

        Args:
            latents (`torch.Tensor` of shape `(B, L, H, W)`): Latents of the untrained encoder.
            generator (`torch.Generator`, *optional*): Source of randomness, of the sites and of the noise
                that the density is fitted under.
        """
        with torch.autocast(latents.device.type, enabled=False):
            signals = self.signals(latents)
            device = signals.device if generator is None else generator.device
            drawn = torch.randperm(len(signals), generator=generator, device=device)[:_FIRST_SITES]
            signals = signals[drawn.to(signals.device)]
            noise = torch.rand(signals.shape, generator=generator, device=device).to(signals) - 0.5
            values = signals.sort(dim=0).values
            last, cells = len(values) - 1, 2**self.config.bits
            offset = values[last // 2]
            deviation = (values - values.mean(dim=0)).square().mean().sqrt().clamp_min(1e-12)
            if self.config.step is None and not self.config.rate_weight:
                low, high = values[round(_TAIL * last)], values[round((1 - _TAIL) * last)]
                steps = ((high - low) / cells).clamp_min(1e-6 * deviation)
                offset = low + (cells + 1) / 2 * steps
            else:
                unit = deviation if self.config.step is None else torch.ones_like(deviation)
                steps = (self._first_step() * unit).expand_as(offset)
            self.offset.copy_(broadcast(offset))
            self.log_steps.copy_(broadcast(steps.log() / _SPEED))
            self._fit_density(signals[:_FIT_SITES], noise[:_FIT_SITES])

    def _fit_density(self, signals: torch.Tensor, noise: torch.Tensor) -> None:
        """Fits the density to signals `(N, p²·L)` by Adam, from components around three quantiles."""
        values = (signals - self.offset).sort(dim=0).values
        last = len(values) - 1
        locations = torch.stack([values[round(share * last)] for share in (0.2, 0.5, 0.8)])
        spread = values.std(dim=0, correction=0).clamp_min(self.steps / 100)
        scales = torch.stack([0.4 * spread, 0.15 * spread, 0.4 * spread])
        density = torch.stack([torch.zeros_like(scales), locations, scales.log()]).div_(_SPEED).requires_grad_()
        cells, steps = self._positions(signals, self.steps), self.steps.detach()
        optimizer = torch.optim.Adam([density], lr=1e-2)
        with torch.enable_grad():
            for _ in range(_FIT_STEPS):
                optimizer.zero_grad(set_to_none=True)
                self._bits(cells, noise, steps, density).mean().backward()
                optimizer.step()
        self.density.copy_(broadcast(density.detach()))

    @property
    def has_rate(self) -> bool:
        """Yes: each code has bits under the density."""
        return True

    def _site_bits(self, code: IndexCode) -> torch.Tensor:
        cells = (code.indices.flatten(0, 2) - self.num_symbols // 2).float()
        return self._bits(cells, 0.0, self.steps, self.density).double().sum(dim=1)

    def forward(self, latents: torch.Tensor, return_dict: bool = True) -> BottleneckOutput | tuple:
        """
        Quantises latents; in training by noise or straight through, else by rounding.

        Args:
            latents (`torch.Tensor` of shape `(B, L, H, W)`): Latents.
            return_dict (`bool`, defaults to `True`): Whether to return an output class instead of a tuple.

        Returns:
            [`BottleneckOutput`] or `tuple`: Latents in the dtype of the input, the loss λ·R, the mean squared error of
            rounding as `commitment_loss`, and the [`IndexCode`].
        """
        with torch.autocast(latents.device.type, enabled=False):
            signals, steps = self.signals(latents), self.steps
            cells = self._positions(signals, steps)  # in steps
            rounding = (cells.round() - cells).detach()
            noise = torch.rand_like(cells) - 0.5 if self.training else rounding
            given = noise if self.config.quantization == "noise" else rounding
            with torch.no_grad():
                indices = self._quantize(signals)
                error = F.mse_loss(self._dequantize(indices), signals)
            if self.config.rate_weight:
                rate = self._bits(cells, noise, steps, self.density).mean()
                loss = self.config.rate_weight * rate
            else:  # only the density learns from it
                rate = self._bits(cells.detach(), noise, steps.detach(), self.density).mean()
                loss = rate - rate.detach()
            output = BottleneckOutput(
                latents=self.latents(self.offset + steps * (cells + given), latents.shape[-2:], latents.dtype),
                loss=loss,
                commitment_loss=error,
                codebook_loss=signals.new_zeros(()),
                code=self._code(indices, latents),
                rate=rate.detach(),
            )
        return output if return_dict else output.to_tuple()

    def _positions(self, signals: torch.Tensor, steps: torch.Tensor) -> torch.Tensor:
        """Signals `(N, p²·L)` in steps from the offset, held between the centres of the outermost cells."""
        half = self.num_symbols // 2
        return ((signals - self.offset) / steps).clamp(-half, half - 1)

    def _bits(
        self, cells: torch.Tensor, noise: torch.Tensor | float, steps: torch.Tensor, density: torch.Tensor
    ) -> torch.Tensor:
        """Bits of one step around `cells + noise`, both in steps; outermost cells reach to infinity."""
        half, middle = self.num_symbols // 2, cells + noise
        lower = torch.where(cells <= -half, -_FAR, middle - 0.5) * steps
        upper = torch.where(cells >= half - 1, _FAR, middle + 0.5) * steps
        return cell_bits(lower, upper, *(_SPEED * density.float()))

    def _quantize(self, signals: torch.Tensor, choice: Choice | None = None) -> torch.Tensor:
        cells = self._positions(signals, self.steps).round().long() + self.num_symbols // 2
        if choice is None:
            return cells
        every = torch.arange(self.num_symbols, device=signals.device)[:, None]
        return cheapest_points(signals, cells, self._dequantize(every).t(), choice.symbol_costs)

    def _variance_under(self, bits: SymbolBits) -> torch.Tensor:
        """That of the density: a prior gives cells that no code used too much weight, since they may lie far away."""
        logits, locations, log_scales = _SPEED * self.density.detach().float()
        weights = logits.softmax(dim=0)
        squares = locations.square() + (math.pi * log_scales.exp()).square() / 3
        return ((weights * squares).sum(dim=0) - (weights * locations).sum(dim=0).square()).mean()

    def _dequantize(self, indices: torch.Tensor) -> torch.Tensor:
        return self.offset + self.steps * (indices - self.num_symbols // 2)
