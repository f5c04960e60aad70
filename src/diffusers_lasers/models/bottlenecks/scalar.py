r"""Scalar quantisation of latents, value by value, as latents are stored in int8 or int4.

Each value y_f of a site, centred and, with `transform="klt"`, turned into the principal axes of the sites
(Karhunen–Loève), is named by its cell

    b_f = clamp(round((y_f − low_f) / Δ_f), 0, 2ⁿ − 1)

and decoded as the mean of the training values in that cell (Lloyd's condition; the midpoint where there were none).
Without `step` each Δ_f is the one of least squared error for 2ⁿ cells: per-channel int8 or int4. With `step` all values
share it, which is the best allotment of an entropy coder's bits at high rate: such a code is judged by the entropy of
its cells, its nominal n bits are only an upper bound. n may differ from value to value: bits that follow the variances
are what a code without an entropy coder wants.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from diffusers.configuration_utils import register_to_config

from ...functional.operands import may_look
from ...functional.quantisers.cheapest_points import cheapest_points
from ...learning.principal_axes import principal_axes
from ...utils import config_checks as checks
from .bottleneck import sample_signals
from .index_bottleneck import IndexBottleneck
from .rated_codes import Choice


__all__ = ["ScalarQuantizerBottleneck"]

_RANGES = 40  # candidate ranges, as shares of the largest magnitude


class ScalarQuantizerBottleneck(IndexBottleneck):
    """
    Rounds each value of a site to one of 2ⁿ values. It has to be fitted before use.

    Args:
        latent_channels (`int`, defaults to 16): Channels L of the latents.
        bits (`int` or `Sequence[int]`, defaults to 8): Bits n of a value, 1 to 12; or of each of the p²·L values, 0 to
            16: those of an axis of little variance need fewer.
        patch_size (`int`, defaults to 1): Side p of a site, in latent positions.
        transform (`str`, *optional*): `"klt"` quantises in the principal axes of the sites. Defaults to `None`: as they
            are.
        step (`float`, *optional*): Distance of neighbouring values, for all alike. Defaults to `None`: for each the one
            of least squared error.

    Attributes:
        mean (`torch.Tensor` of shape `(p²·L,)`): Mean site.
        basis (`torch.Tensor` of shape `(p²·L, p²·L)`): Principal axes as columns; the identity without transform.
        low (`torch.Tensor` of shape `(p²·L,)`): Centre of cell 0.
        steps (`torch.Tensor` of shape `(p²·L,)`): Distances Δ; 0 until fitted.
        points (`torch.Tensor` of shape `(p²·L, 2ⁿ)`): What each cell is decoded as; n is the largest.
    """

    _keep_in_fp32_modules = [*IndexBottleneck._keep_in_fp32_modules, "mean", "basis", "low", "steps", "points"]
    numeric = True
    _config_fields = {
        "latent_channels": checks.CHANNELS,
        "bits": checks.OneOrEach(checks.Integer(1, 12), checks.Integer(0, 16), most=2**16),
        "patch_size": checks.Integer(1, 2**10),
        "transform": checks.Optional(checks.Word("klt")),
        "step": checks.Optional(checks.Number(low=0.0, above=True)),
    }

    @register_to_config
    def __init__(
        self,
        latent_channels: int = 16,
        bits: int | Sequence[int] = 8,
        patch_size: int = 1,
        transform: str | None = None,
        step: float | None = None,
    ):
        super().__init__()
        self.depth = patch_size * patch_size * latent_channels
        if not isinstance(bits, int) and len(bits) != self.depth:
            raise ValueError(
                f"`bits` must be one number or {self.depth}, one for each value of a site, got {len(bits)}."
            )
        self._levels = tuple(2**own for own in ([bits] * self.depth if isinstance(bits, int) else bits))
        checks.check_size(
            self.depth * (self.depth + self.num_symbols),
            latent_channels=latent_channels,
            patch_size=patch_size,
            bits=bits,
        )
        self.register_buffer("mean", torch.zeros(self.depth))
        self.register_buffer("basis", torch.eye(self.depth))
        self.register_buffer("low", torch.zeros(self.depth))
        self.register_buffer("steps", torch.zeros(self.depth))
        self.register_buffer("points", torch.zeros(self.depth, self.num_symbols))

    @property
    def levels(self) -> tuple[int, ...]:
        """Cells of each value of a site."""
        return self._levels

    @property
    def _slots_wanted(self) -> str:
        most = "" if isinstance(self.config.bits, int) else "at most "
        return f"{self.depth} slots of {most}{self.num_symbols} cells"

    @torch.no_grad()
    def fit(
        self,
        latents: torch.Tensor | Iterable[torch.Tensor],
        max_signals: int = 2**17,
        seed: int = 0,
        progress: bool = True,
    ) -> None:
        """
        Sets axes, cells and values from fixed latents.

        Args:
            latents (`torch.Tensor` of shape `(B, L, H, W)`, or an iterable of such tensors): Latents; an iterable is
                read twice.
            max_signals (`int`, defaults to 131072): Sites that are drawn from them.
            seed (`int`, defaults to 0): Seed of the draw.
            progress (`bool`, defaults to `True`): Taken for all bottlenecks alike; this takes seconds and shows no bar.

        Raises:
            ValueError: If there are no latents, or they do not fit or are not finite.
        """
        signals = sample_signals(self, latents, max_signals, seed)
        mean = signals.mean(dim=0)
        centred = signals - mean
        basis = torch.eye(self.depth, device=signals.device)
        if self.config.transform == "klt":
            # float64 on the CPU: a few seconds at most, and the same axes on all devices
            covariance = (centred.t() @ centred).double().cpu() / len(centred)
            basis = principal_axes(covariance)[1].to(basis)
        turned = centred @ basis
        cells, most = torch.tensor(self.levels, device=turned.device), self.num_symbols
        if self.config.step is not None:
            steps = torch.full_like(mean, self.config.step)
            low = -steps * (cells // 2)
        else:
            low, steps = self._least_squares_steps(turned, cells)
        indices = self._cells(turned, low, steps)
        numbers = torch.arange(most, device=turned.device)
        flat = indices + most * torch.arange(self.depth, device=indices.device)
        counts = torch.zeros(self.depth * most, device=turned.device).index_add_(
            0, flat.flatten(), torch.ones_like(turned).flatten()
        )
        sums = torch.zeros_like(counts).index_add_(0, flat.flatten(), turned.flatten())
        middles = torch.where(numbers < cells[:, None], low[:, None] + steps[:, None] * numbers, 0.0)
        values = torch.where(counts > 0, sums / counts.clamp_min(1), middles.flatten()).view_as(middles)
        for name, value in (("mean", mean), ("basis", basis), ("low", low), ("steps", steps), ("points", values)):
            getattr(self, name).copy_(value)

    @staticmethod
    def _least_squares_steps(turned: torch.Tensor, cells: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Centres of cell 0 and steps of symmetric ranges, of least squared error among shares of the largest magnitude.
        """
        largest = turned.abs().amax(dim=0)
        largest = largest.clamp_min((1e-6 * largest.max()).clamp_min(1e-12))  # a channel that never varies
        best = torch.full_like(largest, float("inf"))
        steps = torch.zeros_like(largest)
        for share in torch.linspace(1.0, 1 / _RANGES, _RANGES):
            step = 2 * largest * share.item() / cells
            low = -step * (cells - 1) / 2
            rounded = low + step * ((turned - low) / step).round().clamp_min(0).minimum(cells - 1.0)
            error = (rounded - turned).square().sum(dim=0)
            steps, best = torch.where(error < best, step, steps), torch.minimum(error, best)
        return -steps * (cells - 1) / 2, steps

    def _cells(self, turned: torch.Tensor, low: torch.Tensor, steps: torch.Tensor) -> torch.Tensor:
        last = torch.tensor(self.levels, device=turned.device) - 1.0
        return ((turned - low) / steps).round().clamp_min(0).minimum(last).long()

    def _quantize(self, signals: torch.Tensor, choice: Choice | None = None) -> torch.Tensor:
        """
        Cells `(N, p²·L)` of signals. The check synchronises, so that only the CPU has it, and breaks a compiled graph.
        """
        if may_look(self.steps) and not self.steps.any():
            raise ValueError("The ScalarQuantizerBottleneck is not fitted: call `fit` first.")
        turned = (signals - self.mean.float()) @ self.basis.float()
        cells = self._cells(turned, self.low.float(), self.steps.float())
        if choice is None:
            return cells
        costs = choice.symbol_costs
        points = torch.where(costs.isinf(), torch.inf, self.points.float())  # a slot may have fewer
        return cheapest_points(turned, cells, points, costs)

    def _dequantize(self, indices: torch.Tensor) -> torch.Tensor:
        offsets = self.num_symbols * torch.arange(self.depth, device=indices.device)
        turned = self.points.float().flatten()[indices + offsets]
        return turned @ self.basis.float().t() + self.mean.float()
