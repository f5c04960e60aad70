r"""Geometry, initialisation and revival of dictionaries of unit-norm atoms.

A dictionary \(D \in \mathbb{R}^{L \times K}\) holds its atoms as columns on the unit sphere. Learning it by gradient
needs the projection of a gradient to the sphere's tangent space and the retraction of the stepped atoms,

    g_j ← g_j − d_j d_jᵀ g_j,        d_j ← d_j / ‖d_j‖₂ .

LASERS (2024) starts from Gaussian atoms and learns them with Adam. With least-squares coefficients the gradient is
tangent already, since the residual is orthogonal to the chosen atoms. With quantised coefficients it is not. We add the
projection, atoms taken from signals, and the revival of atoms that no code uses. Learning without a learning rate (eqs
23–28) is in `online_learning.py`.

Half-precision input is computed and returned in float32. The functions of a training step (projection, retraction,
revival) decide nothing on the host that depends on a value.
"""

from __future__ import annotations

import math

import torch


__all__ = [
    "dictionary_from_signals",
    "draw_signals",
    "draw_subset",
    "mutual_coherence",
    "normalize_atoms",
    "project_to_tangent",
    "random_dictionary",
    "revive_atoms",
]

# Rows of the Gram matrix that are held at a time.
_COHERENCE_BLOCK = 1024


def normalize_atoms(dictionary: torch.Tensor) -> torch.Tensor:
    r"""
    Scales each atom to unit norm (eq 28), whatever its length. Differentiable.

    Args:
        dictionary (`torch.Tensor` of shape `(features, atoms)`): Atoms as columns; floating point.

    Returns:
        `torch.Tensor` of shape `(features, atoms)`: \(d_j / ‖d_j‖_2\); zero columns stay zero.

    Raises:
        ValueError: If `dictionary` is not a floating-point matrix with at least one row and one column.
    """
    dictionary = _matrix("dictionary", dictionary, "(features, atoms)")
    peak = dictionary.detach().abs().amax(dim=0)
    scaled = dictionary / torch.where(peak > 0, peak, 1.0)  # largest entry 1: squares neither overflow nor vanish
    energy = scaled.square().sum(dim=0)
    return scaled / torch.where(energy > 0, energy, 1.0).sqrt()


def project_to_tangent(gradient: torch.Tensor, dictionary: torch.Tensor) -> torch.Tensor:
    r"""
    Removes from each column of `gradient` its part along the atom, \(g_j - d_j d_j^⊤ g_j\).

    A step along the result changes no atom's length to first order, so that the retraction undoes none of it. The call
    normalises the atoms, so that the projection is exact also for a dictionary that is rounded to half precision.

    Args:
        gradient (`torch.Tensor` of shape `(features, atoms)`): Gradient with respect to the dictionary.
        dictionary (`torch.Tensor` of shape `(features, atoms)`): Atoms as columns. Columns of `gradient` at zero atoms
            are returned as they are.

    Returns:
        `torch.Tensor` of shape `(features, atoms)`: The projected gradient.

    Raises:
        ValueError: If the two are not floating-point matrices of one shape.
    """
    gradient = _matrix("gradient", gradient, "(features, atoms)")
    if gradient.shape != dictionary.shape:
        raise ValueError(
            f"`gradient` must have the shape of `dictionary`, {tuple(dictionary.shape)}, got {tuple(gradient.shape)}."
        )
    atoms = normalize_atoms(dictionary)
    return gradient - atoms * (atoms * gradient).sum(dim=0)


@torch.no_grad()
def mutual_coherence(dictionary: torch.Tensor) -> torch.Tensor:
    r"""
    Largest similarity of two atoms, \(\max_{i \ne j} |d_i^⊤ d_j|\) after normalisation.

    Args:
        dictionary (`torch.Tensor` of shape `(features, atoms)`): Atoms as columns, of any length.

    Returns:
        `torch.Tensor`: 0-dimensional, from 0 (orthogonal atoms, or a single one) to 1 (two atoms are equal up to sign).

    Raises:
        ValueError: If `dictionary` is not a floating-point matrix with at least one row and one column.
    """
    atoms = normalize_atoms(dictionary)
    coherence = atoms.new_zeros(())
    with torch.autocast(atoms.device.type, enabled=False):
        for start in range(0, atoms.shape[1], _COHERENCE_BLOCK):  # at most 1024 rows of the Gram matrix at a time
            gram = (atoms[:, start : start + _COHERENCE_BLOCK].t() @ atoms).abs_()
            gram.diagonal(offset=start).zero_()
            coherence = torch.maximum(coherence, gram.amax())
    return coherence.clamp(max=1.0)


def random_dictionary(
    features: int,
    atoms: int,
    generator: torch.Generator | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.float32,
) -> torch.Tensor:
    r"""
    Draws atoms uniformly from the unit sphere.

    Args:
        features (`int`): Length L of an atom, at least 1.
        atoms (`int`): Number K of atoms, at least 1.
        generator (`torch.Generator`, *optional*): Source of randomness. One on the CPU gives the same dictionary on
            every `device`.
        device (`torch.device` or `str`, *optional*): Device of the dictionary. Defaults to torch's default device.
        dtype (`torch.dtype`, *optional*, defaults to `torch.float32`): Floating-point type of the dictionary.

    Returns:
        `torch.Tensor` of shape `(features, atoms)`: Atoms as columns, of unit norm up to the rounding of `dtype`.

    Raises:
        ValueError: If `features` or `atoms` is below 1, or `dtype` is not floating point.
    """
    if features < 1 or atoms < 1:
        raise ValueError(f"`features` and `atoms` must be at least 1, got {features} and {atoms}.")
    if not dtype.is_floating_point:
        raise ValueError(f"`dtype` must be a floating-point type, got {dtype}.")
    device = torch.get_default_device() if device is None else torch.device(device)
    draw = _draw(torch.randn, (features, atoms), generator, device, dtype=torch.promote_types(dtype, torch.float32))
    return normalize_atoms(draw).to(dtype)


@torch.no_grad()
def dictionary_from_signals(
    signals: torch.Tensor, atoms: int, jitter: float = 0.01, generator: torch.Generator | None = None
) -> torch.Tensor:
    r"""
    Takes random signals as atoms, after normalisation.

    Signals that agree up to scale and sign (to about 1e-4) count once, since they would give the same atom. Zero and
    non-finite signals are skipped. If fewer signals than atoms are left, the other atoms repeat them with Gaussian
    noise. If none is left, the atoms are random. Runs once before training, and waits for the device.

    Args:
        signals (`torch.Tensor` of shape `(N, features)`): Signals, `N >= 1`; floating point.
        atoms (`int`): Number K of atoms, at least 1.
        jitter (`float`, *optional*, defaults to 0.01): Expected norm of the noise, relative to a unit signal; above 0.
        generator (`torch.Generator`, *optional*): Source of randomness, on any device.

    Returns:
        `torch.Tensor` of shape `(features, atoms)`: Unit-norm atoms as columns, on the device of `signals`.

    Raises:
        ValueError: If `signals` is not a floating-point matrix with at least one row, `atoms` is below 1, or `jitter`
            is not above 0.
    """
    signals = _matrix("signals", signals, "(N, features)")
    if atoms < 1:
        raise ValueError(f"`atoms` must be at least 1, got {atoms}.")
    if not jitter > 0:
        raise ValueError(f"`jitter` must be above 0, got {jitter}.")
    candidates = signals[_usable(signals)]
    if len(candidates) == 0:
        return random_dictionary(signals.shape[1], atoms, generator, signals.device, signals.dtype)
    candidates = normalize_atoms(candidates.t()).t()
    largest = candidates.gather(1, candidates.abs().argmax(dim=1, keepdim=True))
    keys = (candidates * largest.sign() * 1e4).round().to(torch.int32)  # equal for ±d
    group = torch.unique(keys, dim=0, return_inverse=True)[1]
    rows = torch.arange(len(group), device=group.device)
    first = torch.full((int(group.max()) + 1,), len(group), device=group.device)
    first.scatter_reduce_(0, group, rows, "amin")  # one signal of each group
    chosen = first[_draw(torch.randperm, len(first), generator, first.device)[:atoms]]
    repeats = chosen[torch.arange(atoms, device=chosen.device) % len(chosen)]
    noise = _noise(atoms, signals, jitter, generator)
    noise[: len(chosen)] = 0.0
    return normalize_atoms((candidates[repeats] + noise).t()).contiguous()


@torch.no_grad()
def revive_atoms(
    dictionary: torch.Tensor,
    dead: torch.Tensor,
    signals: torch.Tensor,
    jitter: float = 0.05,
    generator: torch.Generator | None = None,
) -> torch.Tensor:
    r"""
    Replaces dead atoms by normalised random signals with Gaussian noise.

    The signals are distinct as long as enough of them are finite and not zero. If there is no such signal, the atoms
    stay. Nothing is decided on the host: the call takes the same time whether atoms are dead or not.

    Args:
        dictionary (`torch.Tensor` of shape `(features, atoms)`): Atoms as columns.
        dead (`torch.Tensor` of shape `(atoms,)`): Which atoms to replace; bool.
        signals (`torch.Tensor` of shape `(N, features)`): Signals to draw from, such as a batch of latents. N may be 0.
        jitter (`float`, *optional*, defaults to 0.05): Expected norm of the noise, relative to a unit signal; at least
            0.
        generator (`torch.Generator`, *optional*): Source of randomness, on any device.

    Returns:
        `torch.Tensor` of shape `(features, atoms)`: The dictionary with unit-norm replacements; the other columns are
        unchanged.

    Raises:
        ValueError: If the shapes do not fit, `dead` is not bool or `jitter` is negative.
    """
    dictionary = _matrix("dictionary", dictionary, "(features, atoms)")
    features, atoms = dictionary.shape
    if dead.shape != (atoms,) or dead.dtype != torch.bool:
        raise ValueError(f"`dead` must be bool of shape ({atoms},), got {dead.dtype} of shape {tuple(dead.shape)}.")
    if signals.ndim != 2 or signals.shape[1] != features:
        raise ValueError(f"`signals` must have the shape (N, {features}), got {tuple(signals.shape)}.")
    if not jitter >= 0:
        raise ValueError(f"`jitter` must be at least 0, got {jitter}.")
    if len(signals) == 0:
        return dictionary.clone()
    signals = signals.to(dictionary.dtype)
    usable = _usable(signals)
    order = torch.where(usable, _draw(torch.rand, len(signals), generator, signals.device), -1.0)
    order = order.topk(min(atoms, len(signals))).indices  # random, usable signals first
    available = usable.sum().clamp(min=1, max=len(order))
    source = order[(dead.cumsum(0) - 1).clamp(min=0) % available]  # the n-th dead atom takes the n-th signal
    fresh = normalize_atoms(signals[source].t()) + _noise(atoms, signals, jitter, generator).t()
    return torch.where(dead & usable.any(), normalize_atoms(fresh), dictionary)


@torch.no_grad()
def draw_subset(mask: torch.Tensor, amount: int, generator: torch.Generator | None = None) -> torch.Tensor:
    """
    Draws at most `amount` of the marked atoms. Nothing is decided on the host.

    Args:
        mask (`torch.Tensor` of shape `(atoms,)`): The marked atoms, for instance the dead ones; bool.
        amount (`int`): Number of atoms to draw, at least 0. All marked atoms are drawn if there are fewer.
        generator (`torch.Generator`, *optional*): Source of randomness, on any device.

    Returns:
        `torch.Tensor` of shape `(atoms,)`: The drawn atoms; bool.
    """
    order = torch.where(mask, _draw(torch.rand, mask.shape, generator, mask.device), -1.0)
    chosen = order.topk(min(amount, len(mask))).indices
    return torch.zeros_like(mask).scatter_(0, chosen, True) & mask


@torch.no_grad()
def draw_signals(
    signals: torch.Tensor, weights: torch.Tensor, amount: int, generator: torch.Generator | None = None
) -> torch.Tensor:
    """
    Draws distinct signals one after the other, each with probability proportional to its weight (Efraimidis & Spirakis,
    2006).

    Args:
        signals (`torch.Tensor` of shape `(N, features)`): Signals.
        weights (`torch.Tensor` of shape `(N,)`): Weights of at least 0, for instance the energy that a dictionary
            leaves unexplained.
        amount (`int`): Number of signals to draw, at least 0. All are drawn if there are fewer.
        generator (`torch.Generator`, *optional*): Source of randomness, on any device.

    Returns:
        `torch.Tensor` of shape `(min(amount, N), features)`: The drawn signals.
    """
    source = weights.device if generator is None else generator.device
    noise = torch.empty(len(weights), device=source, dtype=weights.dtype).exponential_(generator=generator)
    keys = weights / noise.clamp_min(1e-20).to(weights.device, non_blocking=True)
    return signals[keys.topk(min(amount, len(signals))).indices]


def _matrix(name: str, tensor: torch.Tensor, shape: str) -> torch.Tensor:
    """Returns the matrix in float32 or float64, or raises a `ValueError` that names it."""
    if tensor.ndim != 2 or not tensor.is_floating_point() or tensor.numel() == 0:
        raise ValueError(
            f"`{name}` must be a non-empty floating-point tensor of shape {shape}, got {tensor.dtype} of shape "
            f"{tuple(tensor.shape)}."
        )
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def _usable(signals: torch.Tensor) -> torch.Tensor:
    """Which signals `(N,)` are finite and not zero."""
    peak = signals.abs().amax(dim=1)
    return (peak > 0) & (peak < math.inf)


def _draw(sample, shape, generator: torch.Generator | None, device: torch.device, **kwargs) -> torch.Tensor:
    """Draws on the device of the generator. The host does not wait for the copy to a GPU."""
    source = device if generator is None else generator.device
    return sample(shape, generator=generator, device=source, **kwargs).to(device, non_blocking=True)


def _noise(atoms: int, signals: torch.Tensor, jitter: float, generator: torch.Generator | None) -> torch.Tensor:
    """Gaussian rows `(atoms, features)` with an expected squared norm of `jitter`²."""
    shape = (atoms, signals.shape[1])
    return _draw(torch.randn, shape, generator, signals.device, dtype=signals.dtype) * (jitter / math.sqrt(shape[1]))
