r"""Finite scalar quantisation (Mentzer et al., 2023): a baseline without a codebook.

Each channel of a site is squashed to an interval and rounded to one of its `levels`; the code is the tuple of levels
and costs Σ log₂ levels bits. Gradients pass straight through the rounding; there is no further loss.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from diffusers.configuration_utils import register_to_config
from torch import nn
from torch.nn import functional as F
from tqdm.auto import tqdm

from ...functional.quantisers.cheapest_points import cheapest_points
from ...learning.principal_axes import affine_fit, standard_axes
from ...utils import config_checks as checks
from ...utils.distributed import broadcast
from .bottleneck import sample_signals
from .index_bottleneck import IndexBottleneck
from .rated_codes import Choice


__all__ = ["FSQBottleneck"]

_INITIAL_SIGNALS = 65536  # signals that the projections start from
_MARGIN = 1e-3  # share that an interval is wider than its outermost integers, which tanh would else never reach


class FSQBottleneck(IndexBottleneck):
    """
    Rounds each channel to a few levels (FSQ). With as many levels as channels of a site there are no projections; else
    linear ones lead to the quantised space and back.

    Args:
        latent_channels (`int`, defaults to 16): Channels L of the latents.
        levels (`tuple[int, ...]`, defaults to sixteen times 7): Levels of each quantised channel, each at least 3.
        patch_size (`int`, defaults to 1): Side p of a site, in latent positions.
    """

    _keep_in_fp32_modules = [*IndexBottleneck._keep_in_fp32_modules, "quantizer"]
    numeric = True
    _config_fields = {
        "latent_channels": checks.CHANNELS,
        "levels": checks.Sequence(checks.Integer(3, 2**16), most=2**14),
        "patch_size": checks.Integer(1, 2**10),
    }

    @register_to_config
    def __init__(self, latent_channels: int = 16, levels: tuple[int, ...] = (7,) * 16, patch_size: int = 1):
        super().__init__()
        features = patch_size * patch_size * latent_channels
        checks.check_size(
            2 * features * len(levels), latent_channels=latent_channels, levels=levels, patch_size=patch_size
        )
        ends = {"project_in": (features, len(levels)), "project_out": (len(levels), features)}
        same = features == len(levels)
        self.quantizer = nn.ModuleDict(
            {name: nn.Identity() if same else nn.Linear(*end) for name, end in ends.items()}
        )
        self.register_buffer("level_counts", torch.tensor(levels), persistent=False)
        self.register_buffer("half_widths", torch.tensor([n // 2 for n in levels]))

    @property
    def levels(self) -> tuple[int, ...]:
        """Levels of each quantised channel."""
        return tuple(self.config.levels)

    @torch.no_grad()
    def initialize(self, latents: torch.Tensor, generator: torch.Generator | None = None) -> None:
        """
        Starts the projections, where there are any: to the leading principal axes, each with variance 1, and back by
        least squares from their codes; the same on all ranks.

        Args:
            latents (`torch.Tensor` of shape `(B, L, H, W)`): Latents of the untrained encoder.
            generator (`torch.Generator`, *optional*): Source of randomness, for more levels than features of a site.
        """
        self._start_projections(self.signals(latents)[:_INITIAL_SIGNALS], generator)

    def _start_projections(self, signals: torch.Tensor, generator: torch.Generator | None) -> None:
        project_in, project_out = self.quantizer["project_in"], self.quantizer["project_out"]
        if isinstance(project_in, nn.Identity):
            return
        mean, axes, deviation = standard_axes(signals)
        width = min(len(axes), project_in.out_features)
        device = "cpu" if generator is None else generator.device
        noise = torch.randn(project_in.weight.shape, generator=generator, device=device)
        project_in.weight.copy_(broadcast(noise.to(signals)) / len(axes) ** 0.5)
        project_in.weight[:width] = (axes / deviation).t()[:width]
        project_in.bias.copy_(-(project_in.weight.float() @ mean))
        codes = self._bounded(signals).round() / self.half_widths
        weight, bias = affine_fit(codes, signals)
        project_out.weight.copy_(weight)
        project_out.bias.copy_(bias)

    def fit(
        self,
        latents: torch.Tensor | Iterable[torch.Tensor],
        steps: int = 3000,
        batch_size: int = 2048,
        learning_rate: float = 3e-3,
        max_signals: int = 2**18,
        seed: int = 0,
        progress: bool = True,
    ) -> None:
        """
        Learns the projections to and from the quantised space from fixed latents, by gradients straight through the
        rounding: they start as by [`initialize`], and minimise the squared error of the latents by Adam with a
        cosine schedule. With as many levels as features of a site there are no projections, and nothing is learned.

        Args:
            latents (`torch.Tensor` of shape `(B, L, H, W)`, or an iterable of such tensors): Latents; an iterable is
                read twice.
            steps (`int`, defaults to 3000): Steps.
            batch_size (`int`, defaults to 2048): Sites a step.
            learning_rate (`float`, defaults to 0.003): First learning rate.
            max_signals (`int`, defaults to 262144): Sites that are drawn from the latents.
            seed (`int`, defaults to 0): Seed of the draw and of the steps.
            progress (`bool`, defaults to `True`): Whether to show a bar.

        Raises:
            ValueError: If the latents do not fit or are not finite.
        """
        counts = {"steps": steps, "batch_size": batch_size}
        checks.check_fields(dict.fromkeys(counts, checks.Integer()), counts)
        signals = sample_signals(self, latents, max_signals, seed)
        if isinstance(self.quantizer["project_in"], nn.Identity):
            return
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            self._start_projections(signals[:_INITIAL_SIGNALS], generator)
        optimizer = torch.optim.Adam(self.quantizer.parameters(), lr=learning_rate)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        with torch.enable_grad():
            for _ in tqdm(range(steps), desc="FSQ", disable=not progress):
                batch = signals[torch.randint(len(signals), (batch_size,), generator=generator).to(signals.device)]
                loss = F.mse_loss(self._straight_through(batch, batch), batch)
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
                schedule.step()
        for parameter in self.quantizer.parameters():
            parameter.grad = None

    def _quantize(self, signals: torch.Tensor, choice: Choice | None = None) -> torch.Tensor:
        bounded = self._bounded(signals)
        levels = bounded.round().long() + self.half_widths
        if choice is None:
            return levels
        # an error of a channel counts as it leaves `project_out`: its own, times the length of its column
        weight = getattr(self.quantizer["project_out"], "weight", None)
        unit = (1.0 if weight is None else weight.float().norm(dim=0)) / self.half_widths
        every = torch.arange(max(self.levels), device=signals.device)
        points = unit[:, None] * (every - self.half_widths[:, None])
        points = points.masked_fill(every >= self.level_counts[:, None], float("inf"))
        return cheapest_points(unit * bounded, levels, points, choice.symbol_costs)

    def _dequantize(self, indices: torch.Tensor) -> torch.Tensor:
        half = self.half_widths
        return self._project("project_out", (indices - half) / half)

    def _straight_through(self, signals: torch.Tensor, quantized: torch.Tensor) -> torch.Tensor:
        """The same values, with gradients to both projections and straight through the rounding between them."""
        bounded = self._bounded(signals)
        rounded = bounded + (bounded.round() - bounded).detach()
        return self._project("project_out", rounded / self.half_widths)

    def _bounded(self, signals: torch.Tensor) -> torch.Tensor:
        """
        Projected signals `(N, channels)`, squashed to intervals in which `levels` integers each lie; as in the paper's
        appendix A.1.
        """
        counts = self.level_counts
        half = (counts - 1) * (1 + _MARGIN) / 2
        offset = torch.where(counts % 2 == 0, 0.5, 0.0)
        return torch.tanh(self._project("project_in", signals) + torch.atanh(offset / half)) * half - offset

    def _project(self, name: str, signals: torch.Tensor) -> torch.Tensor:
        """Applies a projection in its own precision, which a half-precision checkpoint lowers, and returns float32."""
        projection = self.quantizer[name]
        weight = getattr(projection, "weight", None)
        return projection(signals if weight is None else signals.to(weight.dtype)).float()
