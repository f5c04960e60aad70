r"""The adversarial part of DL-GAN's objective (LASERS, 2024, section 3.4, eqs 14–16), which is that of VQ-GAN.

The generator minimises ℓ_recon + λ f(t) ℓ_adv with the adaptive weight of eq 16,

    λ = ‖∇_G ℓ_recon‖ / (‖∇_G ℓ_adv‖ + δ),

the norms of the gradients at the decoder's last layer G, and a factor f(t) that rises from 0 to 1 after a start step,
while the discriminator learns from the start on: it knows something before its loss counts. All losses are computed in
float32, whatever the precision of the logits.

*LeCam* (Tseng et al., "Regularizing Generative Adversarial Networks under Limited Data", CVPR 2021) keeps the logits of
one kind near the running mean of the other kind's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from ...models.patch_discriminator import PatchDiscriminatorOutput
from ...utils.distributed import all_reduce_sum, rank_and_world_size
from ..weights.sharding import full_tensor


__all__ = ["AdversarialObjective", "LeCamRegularizer"]

_KINDS = ("hinge", "vanilla")
_GRADIENT_SCALE = 1024.0  # keeps the gradients of single pixels above the smallest float16


def _check_kind(kind: str) -> None:
    if kind not in _KINDS:
        raise ValueError(f"`kind` must be one of {_KINDS}, got {kind!r}.")


def discriminator_loss(real: torch.Tensor, fake: torch.Tensor, kind: str = "hinge") -> torch.Tensor:
    """
    What the discriminator minimises: half the sum of the losses on real images and on reconstructions.

    Args:
        real (`torch.Tensor`): Logits of images.
        fake (`torch.Tensor`): Logits of reconstructions, which must be detached from the generator *before* the
            discriminator sees them.
        kind (`str`, defaults to `"hinge"`): `"hinge"`, mean max(0, 1 − real) and mean max(0, 1 + fake), or `"vanilla"`,
            cross-entropy.

    Returns:
        `torch.Tensor`: The loss, 0-dim, float32.

    Raises:
        ValueError: If `kind` is another word.
    """
    _check_kind(kind)
    real, fake = real.float(), fake.float()
    if kind == "hinge":
        return 0.5 * (F.relu(1 - real).mean() + F.relu(1 + fake).mean())
    return 0.5 * (F.softplus(-real).mean() + F.softplus(fake).mean())


def generator_loss(fake: torch.Tensor, kind: str = "hinge") -> torch.Tensor:
    """
    What the generator minimises.

    Args:
        fake (`torch.Tensor`): Logits of reconstructions.
        kind (`str`, defaults to `"hinge"`): `"hinge"`, −mean fake, or `"vanilla"`, the non-saturating cross-entropy
            −mean log σ(fake).

    Returns:
        `torch.Tensor`: The loss, 0-dim, float32.

    Raises:
        ValueError: If `kind` is another word.
    """
    _check_kind(kind)
    fake = fake.float()
    return -fake.mean() if kind == "hinge" else F.softplus(-fake).mean()


def adaptive_weight(
    reconstruction_loss: torch.Tensor,
    adversarial_loss: torch.Tensor,
    last_layer: torch.Tensor,
    delta: float = 1e-6,
    maximum: float = 1e4,
) -> torch.Tensor:
    """
    The weight λ of the adversarial loss (LASERS, 2024, eq 16), with the norms in float32. Under data parallelism the
    gradients are averaged over ranks first, so that all have the λ of the whole batch.

    Args:
        reconstruction_loss (`torch.Tensor`): ℓ_recon, 0-dim, with its graph, which is kept.
        adversarial_loss (`torch.Tensor`): The generator's adversarial loss, likewise.
        last_layer (`torch.Tensor`): Weight of the decoder's last layer, on which both depend.
        delta (`float`, defaults to 1e-6): δ, added to the denominator's norm; above 0.
        maximum (`float`, defaults to 1e4): Largest λ.

    Returns:
        `torch.Tensor`: λ, 0-dim, float32, without gradient. It is 0 where a norm is not finite, as in a step that a
        gradient scaler skips.

    Raises:
        ValueError: If `delta` or `maximum` is not above 0.
    """
    for name, value in (("delta", delta), ("maximum", maximum)):
        if not value > 0:
            raise ValueError(f"`{name}` must be above 0, got {value!r}.")
    gradients = torch.stack(
        [
            torch.autograd.grad(loss * _GRADIENT_SCALE, last_layer, retain_graph=True)[0].float().flatten()
            for loss in (reconstruction_loss, adversarial_loss)
        ]
    )
    norms = torch.linalg.vector_norm(all_reduce_sum(gradients), dim=1) / (_GRADIENT_SCALE * rank_and_world_size()[1])
    weight = (norms[0] / (norms[1] + delta)).clamp(0.0, maximum).detach()
    return torch.where(torch.isfinite(norms[0]) & torch.isfinite(norms[1]), weight, torch.zeros_like(weight))


def adversarial_factor(step: int, start: int, warmup: int = 0) -> float:
    """
    The factor f(t) of the adversarial loss: 0 before `start`, then linear to 1 over `warmup` steps.

    Args:
        step (`int`): Optimiser steps taken.
        start (`int`): First step at which the discriminator is trained.
        warmup (`int`, defaults to 0): Steps from there until its loss counts in full; 0: at once.

    Returns:
        `float`: The factor, in [0, 1].
    """
    if step < start:
        return 0.0
    return min(1.0, (step - start) / warmup) if warmup > 0 else 1.0


class LeCamRegularizer:
    """
    Creates the LeCam regularisation of a discriminator, mean max(0, real − m_fake)² + mean max(0, m_real − fake)² with
    running means m of the logits (equal on all ranks), a part of what [`RunFolder`] saves.

    Args:
        decay (`float`, defaults to 0.999): Decay of the running means, in [0, 1).

    Raises:
        ValueError: If `decay` is out of range.
    """

    def __init__(self, decay: float = 0.999):
        if not 0.0 <= decay < 1.0:
            raise ValueError(f"`decay` must lie in [0, 1), got {decay!r}.")
        self.decay = decay
        self.means = torch.zeros(2)

    def __call__(self, real: torch.Tensor, fake: torch.Tensor) -> torch.Tensor:
        """
        Updates the running means by a batch's logits and gives the regularisation.

        Args:
            real (`torch.Tensor`): Logits of images.
            fake (`torch.Tensor`): Logits of reconstructions.

        Returns:
            `torch.Tensor`: The regularisation, 0-dim, float32.
        """
        real, fake = real.float(), fake.float()
        batch = torch.stack([real.detach().mean(), fake.detach().mean()])
        batch = all_reduce_sum(batch) / rank_and_world_size()[1]
        self.means = torch.lerp(batch, self.means.to(batch.device), self.decay)
        return F.relu(real - self.means[1]).square().mean() + F.relu(self.means[0] - fake).square().mean()

    def state_dict(self) -> dict[str, Any]:
        """The running means of real and fake logits."""
        return {"means": self.means.cpu()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """
        Restores the running means.

        Args:
            state (`dict`): What `state_dict` gave.
        """
        self.means = state["means"].clone()


def _logits(output: PatchDiscriminatorOutput | torch.Tensor) -> torch.Tensor:
    """The logits of a discriminator, also of one that returns nothing else."""
    return output if torch.is_tensor(output) else output.logits


class AdversarialObjective:
    """
    Creates what DL-GAN adds to a training step: the generator's term λ w f(t) ℓ_adv of eq 15 and the discriminator's
    own loss.

    The generator's term sees the discriminator's weights as constants, and the discriminator sees detached
    reconstructions: neither loss leaves a gradient in the other network, so that both can be in one optimiser.

    Args:
        discriminator (`torch.nn.Module`): Maps images to logits; not wrapped for distribution.
        kind (`str`, defaults to `"hinge"`): Loss, `"hinge"` or `"vanilla"`.
        weight (`float`, defaults to 1.0): w, beside the adaptive λ; at least 0.
        adaptive (`bool`, defaults to `True`): Whether λ is that of eq 16; otherwise it is 1.
        start (`int`, defaults to 0): Optimiser steps before the discriminator learns.
        warmup (`int`, defaults to 0): Steps from there until its loss counts in full, see [`adversarial_factor`].
        lecam ([`LeCamRegularizer`], *optional*): Regularisation of the discriminator.
        lecam_weight (`float`, defaults to 0.0): Its weight.
        structure (`torch.nn.Module`, *optional*): What the generator's term calls with the discriminator's weights: for
            a sharded discriminator the attribute `structure` of its [`FullySharded`]. Default: `discriminator`.

    Raises:
        ValueError: If an argument is out of range.
    """

    def __init__(
        self,
        discriminator: nn.Module,
        kind: str = "hinge",
        weight: float = 1.0,
        adaptive: bool = True,
        start: int = 0,
        warmup: int = 0,
        lecam: LeCamRegularizer | None = None,
        lecam_weight: float = 0.0,
        structure: nn.Module | None = None,
    ):
        _check_kind(kind)
        for name, value in (("weight", weight), ("start", start), ("warmup", warmup), ("lecam_weight", lecam_weight)):
            if not value >= 0:
                raise ValueError(f"`{name}` must be at least 0, got {value!r}.")
        self.discriminator, self.kind, self.weight, self.adaptive = discriminator, kind, weight, adaptive
        self.start, self.warmup, self.lecam, self.lecam_weight = start, warmup, lecam, lecam_weight
        self.structure = discriminator if structure is None else structure

    def active(self, step: int) -> bool:
        """
        Whether the discriminator learns in this step.

        Args:
            step (`int`): Optimiser steps taken.

        Returns:
            `bool`: `step >= start`.
        """
        return step >= self.start

    def generator_term(
        self, sample: torch.Tensor, reconstruction_loss: torch.Tensor, last_layer: torch.Tensor, step: int
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """
        What the generator's loss gains.

        Args:
            sample (`torch.Tensor` of shape `(B, C, H, W)`): Reconstructions, with their graph.
            reconstruction_loss (`torch.Tensor`): ℓ_recon, 0-dim, with its graph.
            last_layer (`torch.Tensor`): Weight of the decoder's last layer.
            step (`int`): Optimiser steps taken.

        Returns:
            `tuple`: The term, 0-dim, and for the log `generator_loss` (unweighted) and `adversarial_weight` λ w f(t),
            detached.
        """
        constants = {name: full_tensor(tensor) for name, tensor in self.discriminator.named_parameters()}
        constants.update(self.discriminator.named_buffers())
        loss = generator_loss(_logits(torch.func.functional_call(self.structure, constants, (sample,))), self.kind)
        weight = self.weight * adversarial_factor(step, self.start, self.warmup) * torch.ones_like(loss.detach())
        if self.adaptive:
            weight = weight * adaptive_weight(reconstruction_loss, loss, last_layer)
        return weight * loss, {"generator_loss": loss.detach(), "adversarial_weight": weight}

    def discriminator_term(
        self,
        images: torch.Tensor,
        sample: torch.Tensor,
        forward: Callable[[torch.Tensor], torch.Tensor] | None = None,
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """
        What the discriminator minimises.

        Args:
            images (`torch.Tensor` of shape `(B, C, H, W)`): Images.
            sample (`torch.Tensor` of shape `(B, C, H, W)`): Reconstructions; detached here.
            forward (`Callable[[torch.Tensor], torch.Tensor]`, *optional*): The discriminator as it is wrapped for
                distribution. It is called once, on images and reconstructions together.

        Returns:
            `tuple`: The loss, 0-dim, and for the log `discriminator_loss`, `logits_real` and `logits_fake` (means),
            detached.
        """
        both = torch.cat([images, sample.detach().to(images.dtype)])
        real, fake = _logits((forward or self.discriminator)(both)).float().chunk(2)
        loss = discriminator_loss(real, fake, self.kind)
        parts = {
            "discriminator_loss": loss.detach(),
            "logits_real": real.detach().mean(),
            "logits_fake": fake.detach().mean(),
        }
        if self.lecam is not None:
            loss = loss + self.lecam_weight * self.lecam(real, fake)
        return loss, parts
