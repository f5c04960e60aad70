r"""Losses of diffusion on codebook indices (Scribano et al., 2023, section 4.2; Austin et al., 2021, for the discrete
baselines).

*categorical* (eq 24): with z̄ from the Gumbel-softmax of the logits (eq 20), x̃_0 = D(z̄ C) and z̃_0 the soft index,

    L = w_x ‖x_0 − x̃_0‖² + w_ε ‖ε − ε̃‖²,    ε̃ = (z_t − √ᾱ_t z̃_0) / √(1 − ᾱ_t).

Both are errors of the clean image or code, so under Min-SNR w_x = min(snr, γ) and w_ε = min(snr, γ) / snr: the same
weight twice, not two different ones (printed without weights, the second term alone already counts the error of z_0 snr
times). Without γ both are 1, as printed. x_0 is the decoded real code, which the soft decoding can reach.

*continuous* (eq 4): w_ε ‖ε − ε_θ‖².    *uniform*: cross-entropy of the clean indices at all sites.

*absorbing*: cross-entropy of hidden indices over their expected share 1 − ᾱ_t, which is the variational bound up to a
constant.

z_t and ᾱ_t are the scheduler's, which also samples: what is trained on is what is met in sampling.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler, SchedulerMixin

from ...functional.diffusion import implied_noise, min_snr_weights, signal_to_noise
from ...functional.diffusion.categorical import expected_number, gumbel_softmax, index_to_number
from ...models.codecs import ModelBasedVQCodec
from ...schedulers import AbsorbingD3PMScheduler, CategoricalDDPMScheduler, UniformD3PMScheduler


__all__ = ["IndexDiffusionObjective"]

#: What a kind is trained with: the scheduler that adds the noise, and that samples later.
_SCHEDULERS = {
    "categorical": CategoricalDDPMScheduler,
    "continuous": DDPMScheduler,
    "uniform": UniformD3PMScheduler,
    "absorbing": AbsorbingD3PMScheduler,
}
_CODE_LOSSES = ("epsilon", "cross_entropy", "none")


class IndexDiffusionObjective:
    r"""
    Creates the loss of a denoiser of indices.

    Args:
        kind (`str`): `"categorical"`, `"continuous"`, `"uniform"` or `"absorbing"`.
        num_codewords (`int`): Codewords |C| of each slot.
        scheduler ([`CategoricalDDPMScheduler`], `diffusers.DDPMScheduler`, [`UniformD3PMScheduler`] or
            [`AbsorbingD3PMScheduler`]): The forward process, its `add_noise` and ᾱ, of `kind`, in this order:
            `categorical`, `continuous`, `uniform`, `absorbing`.
        codec ([`ModelBasedVQCodec`], *optional*): Decodes for the image term.
        image_weight (`float`, defaults to 1.0): Weight of the image term of the categorical loss; 0 leaves it out, and
            needs no codec.
        code_loss (`str`, defaults to `"epsilon"`): Second term of the categorical loss: `"epsilon"` (eq 24),
            `"cross_entropy"` of the indices, or `"none"`.
        tau (`float`, defaults to 1.0): τ of the Gumbel-softmax.
        snr_gamma (`float`, *optional*): γ of Min-SNR.
        self_conditioning (`float`, defaults to 0.0): Probability of giving the denoiser its own first estimate, for a
            model that takes one.

    Raises:
        ValueError: If an argument is out of range, or there is nothing to minimise.
    """

    def __init__(
        self,
        kind: str,
        num_codewords: int,
        scheduler: SchedulerMixin,
        codec: ModelBasedVQCodec | None = None,
        image_weight: float = 1.0,
        code_loss: str = "epsilon",
        tau: float = 1.0,
        snr_gamma: float | None = None,
        self_conditioning: float = 0.0,
    ):
        if kind not in _SCHEDULERS:
            raise ValueError(f"`kind` must be one of {tuple(_SCHEDULERS)}, got {kind!r}.")
        needed = _SCHEDULERS[kind]
        if not isinstance(scheduler, needed):
            raise ValueError(
                f"`scheduler` must be a {needed.__name__} for the kind {kind!r}, got {type(scheduler).__name__}."
            )
        if scheduler.config.get("num_codewords", num_codewords) != num_codewords:
            raise ValueError(
                f"`scheduler` must have {num_codewords} codewords, as `num_codewords` says, "
                f"got {scheduler.config.num_codewords}."
            )
        if code_loss not in _CODE_LOSSES:
            raise ValueError(f"`code_loss` must be one of {_CODE_LOSSES}, got {code_loss!r}.")
        if not image_weight >= 0 or not tau > 0 or (snr_gamma is not None and not snr_gamma > 0):
            raise ValueError(
                "`image_weight` must not be negative, `tau` and `snr_gamma` be positive, got "
                f"{image_weight!r}, {tau!r} and {snr_gamma!r}."
            )
        if kind == "categorical" and image_weight == 0 and code_loss == "none":
            raise ValueError("`image_weight` is 0 and `code_loss` 'none': there is nothing to minimise.")
        if kind == "categorical" and image_weight > 0 and not hasattr(codec, "decode_soft"):
            raise ValueError(
                "`codec` must be a ModelBasedVQCodec for the image term (`image_weight` 0 leaves it out), got "
                f"{type(codec).__name__}."
            )
        if not 0 <= self_conditioning <= 1:
            raise ValueError(f"`self_conditioning` must be a probability, got {self_conditioning!r}.")
        self.kind, self.num_codewords, self.scheduler, self.codec = kind, num_codewords, scheduler, codec
        self.image_weight, self.code_loss, self.tau = image_weight, code_loss, tau
        self.snr_gamma, self.self_conditioning = snr_gamma, self_conditioning

    def __call__(
        self, denoiser: Callable, codes: torch.Tensor, timesteps: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """
        The loss of a batch.

        Args:
            denoiser (`Callable`): A [`CategoricalUNet2DModel`], wrapped or not, of the fitting `parameterization`.
            codes (`torch.Tensor` of shape `(B, c̄, h, w)`): Clean indices, int64.
            timesteps (`torch.Tensor` of shape `(B,)`, *optional*): t. Defaults to uniform ones.

        Returns:
            `tuple[torch.Tensor, dict[str, torch.Tensor]]`: The loss, and its detached parts by name: unweighted means,
            and `accuracy`, the share of indices that the largest logit names.
        """
        if timesteps is None:
            timesteps = torch.randint(0, len(self.scheduler), (len(codes),), device=codes.device)
        noisy, noise, alphas = self._add_noise(codes, timesteps)
        condition = {}
        if self.self_conditioning and float(torch.rand(())) < self.self_conditioning:
            with torch.no_grad():
                condition["self_condition"] = self.estimate(denoiser(noisy, timesteps).sample, noisy, alphas)
        output = denoiser(noisy, timesteps, **condition).sample.float()
        if self.kind == "continuous":
            return self._continuous(output, noise, alphas)
        if self.kind == "categorical":
            loss, parts = self._categorical(output, codes, noisy, noise, alphas)
        else:
            loss, parts = self._discrete(output, codes, noisy, alphas)
        parts["accuracy"] = (output.argmax(dim=2) == codes).float().mean()
        return loss, {name: value.detach() for name, value in {"loss": loss, **parts}.items()}

    def _add_noise(self, codes, timesteps):
        """The scheduler's z_t, the Gaussian noise in it (None in indices), and ᾱ_t `(B,)`."""
        if self.kind in ("uniform", "absorbing"):
            return self.scheduler.add_noise(codes, timesteps), None, self.scheduler.survival(timesteps)
        original = index_to_number(codes, self.num_codewords)
        noise = torch.randn_like(original)
        alphas = self.scheduler.alphas_cumprod.to(codes.device)[timesteps]
        return self.scheduler.add_noise(original, noise, timesteps), noise, alphas

    @staticmethod
    def estimate(output: torch.Tensor, noisy: torch.Tensor, alphas: torch.Tensor) -> torch.Tensor:
        """
        z̃_0 that conditions the next evaluation.

        Args:
            output (`torch.Tensor`): Logits `(B, c̄, |C|, h, w)`, or noise `(B, c̄, h, w)`.
            noisy (`torch.Tensor` of shape `(B, c̄, h, w)`): z_t.
            alphas (`torch.Tensor` of shape `(B,)`): ᾱ_t.

        Returns:
            `torch.Tensor` of shape `(B, c̄, h, w)`: The soft index, or what the noise implies, clamped to [-1, 1].
        """
        if output.ndim == 5:
            return expected_number(output.float().softmax(dim=2))
        alphas = alphas.view(-1, 1, 1, 1)
        return ((noisy - (1 - alphas).sqrt() * output.float()) / alphas.sqrt()).clamp(-1, 1)

    def _weights(self, alphas: torch.Tensor, prediction_type: str) -> torch.Tensor:
        if self.snr_gamma is None:
            return torch.ones_like(alphas)
        return min_snr_weights(signal_to_noise(alphas), self.snr_gamma, prediction_type)

    def _continuous(self, output, noise, alphas):
        errors = (output - noise).square().flatten(1).mean(dim=1)
        loss = (self._weights(alphas, "epsilon") * errors).mean()
        return loss, {"loss": loss.detach(), "epsilon_error": errors.detach().mean()}

    def _categorical(self, logits, codes, noisy, noise, alphas):
        parts, loss = {}, logits.new_zeros(())
        soft = gumbel_softmax(logits, self.tau)
        if self.image_weight > 0:
            target = self.codec.decode(codes).sample.float()
            errors = (self.codec.decode_soft(soft).sample.float() - target).square().flatten(1).mean(dim=1)
            loss = loss + self.image_weight * (self._weights(alphas, "sample") * errors).mean()
            parts["image_error"] = errors.mean()
        if self.code_loss == "epsilon":
            implied = implied_noise(noisy, expected_number(soft), alphas)
            errors = (implied - noise).square().flatten(1).mean(dim=1)
            loss = loss + (self._weights(alphas, "epsilon") * errors).mean()
            parts["epsilon_error"] = errors.mean()
        elif self.code_loss == "cross_entropy":
            entropy = F.cross_entropy(logits.transpose(1, 2), codes)
            loss = loss + entropy
            parts["cross_entropy"] = entropy
        return loss, parts

    def _discrete(self, logits, codes, noisy, alphas):
        entropies = F.cross_entropy(logits.transpose(1, 2), codes, reduction="none")  # (B, c̄, h, w)
        if self.kind == "uniform":
            loss = entropies.mean()
        else:
            hidden = (noisy == self.num_codewords) * entropies
            loss = (hidden.flatten(1).mean(dim=1) / (1 - alphas)).mean()
        return loss, {"cross_entropy": loss}
