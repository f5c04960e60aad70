r"""Categorical distributions over codewords (Scribano et al., 2023, section 3.2.2): sampling, a differentiable
approximation of it, and indices as numbers.

A network gives logits ẑ of shape `(B, c̄, |C|, h, w)`. Training draws the soft one-hot vector

    z̄ = softmax((ẑ + G) / τ),    G ~ Gumbel(0, 1)                                              (eq 20)

and multiplies it with the codebook (Alg. 1 multiplies the raw logits instead). Sampling draws z̃_0 ~ softmax(ẑ / γ)
(eq 25). τ and γ are two different temperatures: τ smooths a gradient, γ a distribution. As γ → 0, the most likely
codeword is taken. An index i stands for the number 2 i / (|C| − 1) − 1, and a soft one-hot vector for the mean of these
numbers.

All random numbers come from `randn_tensor`, which accepts generators on the CPU and one generator for each item. The
normal distribution function turns a normal number into a uniform one. Uniform numbers are float32 and never 0 or 1, so
that their logarithms are finite.
"""

from __future__ import annotations

import math

import torch
from diffusers.utils.torch_utils import randn_tensor


__all__ = [
    "absorb",
    "expected_number",
    "gumbel_noise",
    "gumbel_softmax",
    "index_to_number",
    "number_to_index",
    "sample_categorical",
    "scramble",
    "uniform_noise",
]

Generators = torch.Generator | list[torch.Generator] | None


def uniform_noise(shape: tuple[int, ...], generator: Generators = None, device: torch.device | str | None = None):
    """
    Uniform numbers, strictly between 0 and 1.

    Args:
        shape (`tuple[int, ...]`): Their shape; the first entry is the batch.
        generator (`torch.Generator` or a list of them, *optional*): One, or one for each item of the batch, on the CPU
            or the device of the numbers.
        device (`torch.device`, *optional*): Device of the result. Defaults to the CPU.

    Returns:
        `torch.Tensor`: float32, from 1e-7 to 1 − 1e-7.
    """
    normal = randn_tensor(tuple(shape), generator=generator, device=torch.device(device or "cpu"), dtype=torch.float32)
    return (0.5 * (1 + torch.erf(normal / math.sqrt(2)))).clamp(1e-7, 1 - 1e-7)


def gumbel_noise(shape: tuple[int, ...], generator: Generators = None, device: torch.device | str | None = None):
    """
    Standard Gumbel numbers, −log(−log u).

    Args:
        shape (`tuple[int, ...]`): Their shape; the first entry is the batch.
        generator (`torch.Generator` or a list of them, *optional*): One, or one for each item of the batch, on the CPU
            or the device of the numbers.
        device (`torch.device`, *optional*): Device of the result. Defaults to the CPU.

    Returns:
        `torch.Tensor`: float32, finite.
    """
    return -torch.log(-torch.log(uniform_noise(shape, generator, device)))


def _check(logits: torch.Tensor, name: str, value: float, least: str) -> None:
    if logits.ndim < 3 or not logits.is_floating_point():
        raise ValueError(
            f"`logits` must be floating point of shape (batch, slots, codewords, ...), got {logits.dtype} of shape "
            f"{tuple(logits.shape)}."
        )
    if not (value > 0 if least == "positive" else value >= 0):
        raise ValueError(f"`{name}` must be {least}, got {value!r}.")


def gumbel_softmax(logits: torch.Tensor, tau: float = 1.0, generator: Generators = None) -> torch.Tensor:
    """
    Draws a soft one-hot vector from each distribution (eq 20). Differentiable in the logits.

    Args:
        logits (`torch.Tensor` of shape `(B, c̄, |C|, ...)`): Logits.
        tau (`float`, defaults to 1.0): τ, positive. As it goes to 0, the vector becomes one-hot.
        generator (`torch.Generator` or a list of them, *optional*): One, or one for each item of the batch.

    Returns:
        `torch.Tensor` of the same shape: Probabilities, float32.

    Raises:
        ValueError: If τ is not positive or the logits have another shape or type.
    """
    _check(logits, "tau", tau, "positive")
    return ((logits.float() + gumbel_noise(logits.shape, generator, logits.device)) / tau).softmax(dim=2)


def sample_categorical(logits: torch.Tensor, temperature: float = 1.0, generator: Generators = None) -> torch.Tensor:
    """
    Draws indices from softmax(logits / γ) (eq 25), as the largest entries of ẑ + γ G.

    Args:
        logits (`torch.Tensor` of shape `(B, c̄, |C|, ...)`): Logits ẑ.
        temperature (`float`, defaults to 1.0): γ, not negative. 0 takes the most likely index without randomness.
        generator (`torch.Generator` or a list of them, *optional*): One, or one for each item of the batch.

    Returns:
        `torch.Tensor` of shape `(B, c̄, ...)`: Indices, int64.

    Raises:
        ValueError: If γ is negative or the logits have another shape or type.
    """
    _check(logits, "temperature", temperature, "zero or positive")
    logits = logits.float()
    if temperature > 0:
        logits = logits + temperature * gumbel_noise(logits.shape, generator, logits.device)
    return logits.argmax(dim=2)


def index_to_number(indices: torch.Tensor, codewords: int) -> torch.Tensor:
    """
    The number that stands for an index, 2 i / (|C| − 1) − 1.

    Args:
        indices (`torch.Tensor`): Indices, 0 to |C| − 1.
        codewords (`int`): |C|, at least 2.

    Returns:
        `torch.Tensor` of the same shape: Numbers in [-1, 1], float32.
    """
    return 2 * indices.float() / (codewords - 1) - 1


def number_to_index(numbers: torch.Tensor, codewords: int) -> torch.Tensor:
    """
    The index whose number is nearest; the inverse of [`index_to_number`].

    Args:
        numbers (`torch.Tensor`): Numbers. Those outside [-1, 1] get the first or last index.
        codewords (`int`): |C|, at least 2.

    Returns:
        `torch.Tensor` of the same shape: Indices, int64.
    """
    return ((numbers.float() + 1) / 2 * (codewords - 1)).round().clamp(0, codewords - 1).long()


def expected_number(probabilities: torch.Tensor) -> torch.Tensor:
    """
    The soft index: the mean of the numbers that stand for the codewords. Differentiable.

    Args:
        probabilities (`torch.Tensor` of shape `(B, c̄, |C|, ...)`): Distributions.

    Returns:
        `torch.Tensor` of shape `(B, c̄, ...)`: Numbers in [-1, 1].
    """
    codewords = probabilities.shape[2]
    numbers = index_to_number(torch.arange(codewords, device=probabilities.device), codewords)
    return torch.einsum("bck...,k->bc...", probabilities, numbers.to(probabilities.dtype))


def _keep(codes: torch.Tensor, survival: torch.Tensor | float, generator: Generators) -> torch.Tensor:
    survival = torch.as_tensor(survival, dtype=torch.float32, device=codes.device)
    if survival.ndim == 1:
        survival = survival.view(-1, *[1] * (codes.ndim - 1))
    return uniform_noise(codes.shape, generator, codes.device) < survival


def scramble(
    codes: torch.Tensor, survival: torch.Tensor | float, codewords: int, generator: Generators = None
) -> torch.Tensor:
    """
    The uniform forward process of D3PM (Austin et al., 2021).

    An index stays with probability ᾱ. Otherwise it is drawn anew from all codewords.

    Args:
        codes (`torch.Tensor` of shape `(B, ...)`): Indices, int64.
        survival (`torch.Tensor` of shape `(B,)` or a number): ᾱ in [0, 1].
        codewords (`int`): |C|.
        generator (`torch.Generator` or a list of them, *optional*): One, or one for each item of the batch.

    Returns:
        `torch.Tensor` of the same shape: Indices, int64.
    """
    kept = _keep(codes, survival, generator)
    drawn = (uniform_noise(codes.shape, generator, codes.device) * codewords).long().clamp_max(codewords - 1)
    return torch.where(kept, codes, drawn)


def absorb(
    codes: torch.Tensor, survival: torch.Tensor | float, mask: int, generator: Generators = None
) -> torch.Tensor:
    """
    The absorbing forward process of D3PM (Austin et al., 2021).

    An index stays with probability ᾱ. Otherwise it becomes the mask.

    Args:
        codes (`torch.Tensor` of shape `(B, ...)`): Indices, int64.
        survival (`torch.Tensor` of shape `(B,)` or a number): ᾱ in [0, 1].
        mask (`int`): The index of the mask, usually |C|.
        generator (`torch.Generator` or a list of them, *optional*): One, or one for each item of the batch.

    Returns:
        `torch.Tensor` of the same shape: Indices, int64.
    """
    return torch.where(_keep(codes, survival, generator), codes, mask)
