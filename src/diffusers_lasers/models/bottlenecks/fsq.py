r"""Finite scalar quantisation (Mentzer et al., 2023): a baseline without a codebook, supplied by `vector-quantize-pytorch`.

Each channel of a site is squashed to an interval and rounded to one of its `levels`; the code is the tuple of levels and costs
Σ log₂ levels bits. Gradients pass straight through the rounding; there is no further loss.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from diffusers.configuration_utils import register_to_config
from diffusers.utils.accelerate_utils import apply_forward_hook
from torch.nn import functional as F
from tqdm.auto import tqdm

from ...coding import IndexCode
from ...functional.images.patch_signals import patch_grid
from ...utils import config_checks as checks
from ...utils.import_utils import requires
from .base import Bottleneck, BottleneckOutput, check_positive, sample_signals


__all__ = ["FSQBottleneck"]


class FSQBottleneck(Bottleneck):
    """
    Rounds each channel to a few levels (FSQ). With as many levels as channels of a site there are no projections; else linear
    ones lead to the quantised space and back.

    Args:
        latent_channels (`int`, defaults to 16): Channels L of the latents.
        levels (`tuple[int, ...]`, defaults to sixteen times 7): Levels of each quantised channel, each at least 3.
        patch_size (`int`, defaults to 1): Side p of a site, in latent positions.

    Raises:
        ImportError: Without `vector-quantize-pytorch` (extra `training`).
    """

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
        requires("vector_quantize_pytorch", extra="training")
        from vector_quantize_pytorch import FSQ

        self.quantizer = FSQ(levels=list(levels), dim=features, return_indices=False)
        self.register_buffer("half_widths", torch.tensor([n // 2 for n in levels]))

    @property
    def num_symbols(self) -> int:
        """Levels of the finest channel."""
        return max(self.config.levels)

    @property
    def levels(self) -> tuple[int, ...]:
        """Levels of each quantised channel."""
        return tuple(self.config.levels)

    @property
    def bits_per_site(self) -> float:
        """Bits of one site: the sum of log₂ of the levels."""
        return sum(math.log2(levels) for levels in self.config.levels)

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
        Learns the projections to and from the quantised space from fixed latents, by gradients straight through the rounding: they start as the leading
        principal axes, and minimise the squared error of the latents by Adam with a cosine schedule. With as many levels as features of a site there are no
        projections, and nothing is learned.

        Args:
            latents (`torch.Tensor` of shape `(B, L, H, W)`, or an iterable of such tensors): Latents; an iterable is read twice.
            steps (`int`, defaults to 3000): Steps.
            batch_size (`int`, defaults to 2048): Sites a step.
            learning_rate (`float`, defaults to 0.003): First learning rate.
            max_signals (`int`, defaults to 262144): Sites that are drawn from the latents.
            seed (`int`, defaults to 0): Seed of the draw and of the steps.
            progress (`bool`, defaults to `True`): Whether to show a bar.

        Raises:
            ValueError: If the latents do not fit or are not finite.
        """
        check_positive(steps=steps, batch_size=batch_size)
        signals = sample_signals(self, latents, max_signals, seed)
        if not self.quantizer.has_projections:
            return
        project_in, project_out = self.quantizer.project_in, self.quantizer.project_out
        with torch.no_grad():
            mean = signals.mean(dim=0)
            left, spread, axes = torch.linalg.svd(signals[:65536] - mean, full_matrices=False)
            width = min(len(self.config.levels), len(axes))
            deviation = (spread[:width] / min(len(signals), 65536) ** 0.5).clamp_min(1e-6)
            generator = torch.Generator().manual_seed(seed)
            for weight in (project_in.weight, project_out.weight):  # where there are more levels than axes
                noise = torch.randn(weight.shape, generator=generator)
                weight.copy_(0.1 * noise / weight.shape[1] ** 0.5)
            project_in.weight[:width] = axes[:width] / deviation[:, None]
            project_out.weight[:, :width] = (axes[:width] * deviation[:, None]).t()
            project_in.bias.copy_(-(project_in.weight.float() @ mean))
            project_out.bias.copy_(mean)
        optimizer = torch.optim.Adam(self.quantizer.parameters(), lr=learning_rate)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        with torch.enable_grad():
            for _ in tqdm(range(steps), desc="FSQ", disable=not progress):
                batch = signals[torch.randint(len(signals), (batch_size,), generator=generator).to(signals.device)]
                loss = F.mse_loss(self._project(project_out, self._round(batch)), batch)
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
                schedule.step()
        for parameter in self.quantizer.parameters():
            parameter.grad = None

    @apply_forward_hook
    @torch.no_grad()
    def encode(self, latents: torch.Tensor) -> IndexCode:
        """
        Codes latents.

        Args:
            latents (`torch.Tensor` of shape `(B, L, H, W)`): Latents.

        Returns:
            [`IndexCode`]: `h × w = ⌈H/p⌉ × ⌈W/p⌉` sites with a level for each quantised channel.
        """
        with torch.autocast(latents.device.type, enabled=False):
            return self._code(self._round(self.finite_signals(latents)), latents)

    @apply_forward_hook
    def decode(self, code: IndexCode) -> torch.Tensor:
        """
        Latents of a code.

        Args:
            code ([`IndexCode`]): A code with the same levels.

        Returns:
            `torch.Tensor` of shape `(B, L, H, W)`: Latents in float32.

        Raises:
            ValueError: If it is no such code: other levels, other sites or, on the CPU, indices out of range.
        """
        self._check_code(code)
        half = self.half_widths
        values = (code.indices.flatten(0, 2) - half) / half
        with torch.autocast(code.indices.device.type, enabled=False):
            signals = self._project(self.quantizer.project_out, values)
        return self.latents(signals, code.latent_size, torch.float32)

    def forward(self, latents: torch.Tensor, return_dict: bool = True) -> BottleneckOutput | tuple:
        """
        Rounds latents, with gradients straight through.

        Args:
            latents (`torch.Tensor` of shape `(B, L, H, W)`): Latents.
            return_dict (`bool`, defaults to `True`): Whether to return an output class instead of a tuple.

        Returns:
            [`BottleneckOutput`] or `tuple`: Latents in the dtype of the input, zero losses, and the [`IndexCode`].
        """
        with torch.autocast(latents.device.type, enabled=False):
            signals = self.signals(latents)
            values = self._round(signals)
            passed = self._project(self.quantizer.project_out, values)
            zero = signals.new_zeros(())
            output = BottleneckOutput(
                latents=self.latents(passed, latents.shape[-2:], latents.dtype),
                loss=zero,
                commitment_loss=zero,
                codebook_loss=zero,
                code=self._code(values.detach(), latents),
            )
        return output if return_dict else output.to_tuple()

    def _round(self, signals: torch.Tensor) -> torch.Tensor:
        """Quantised values in [−1, 1], `(N, channels)`, differentiable straight through."""
        return self.quantizer.quantize(self._project(self.quantizer.project_in, signals))

    @staticmethod
    def _project(projection: torch.nn.Module, signals: torch.Tensor) -> torch.Tensor:
        """Applies a projection in its own precision, which a half-precision checkpoint lowers, and returns float32."""
        weight = getattr(projection, "weight", None)
        return projection(signals if weight is None else signals.to(weight.dtype)).float()

    def _code(self, values: torch.Tensor, latents: torch.Tensor) -> IndexCode:
        half = self.half_widths
        levels = (values * half + half).round().long()
        height, width = latents.shape[-2:]
        shape = (latents.shape[0], *patch_grid(height, width, self.patch_size), len(self.config.levels))
        return IndexCode(levels.reshape(shape), tuple(self.config.levels), (height, width))
