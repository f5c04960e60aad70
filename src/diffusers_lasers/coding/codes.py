"""The two kinds of codes: sparse codes of a dictionary, and indices of codebooks."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch.nn import functional as F

from ..utils.config_checks import described
from .code import Code, check_indices, check_sizes, is_count, register


__all__ = ["IndexCode", "SparseCode"]


def _are_counts(levels: tuple | list) -> bool:
    """Whether all are positive integers; of hundreds of slots, told at once."""
    return set(map(type, levels)) <= {int} and min(levels, default=1) >= 1 or all(map(is_count, levels))


@register
@dataclass(frozen=True, eq=False)
class SparseCode(Code):
    r"""
    Sparse dictionary codes of a batch (LASERS, 2024, Fig. 2): at most `sparsity` atoms and their coefficients a site.

    Args:
        indices (`torch.Tensor` of shape `(B, h, w, sparsity)`): Atom of each slot, int64, in order of selection; −1
            marks an unused slot.
        coefficients (`torch.Tensor` of shape `(B, h, w, sparsity)`): Coefficients, floating point; 0 in unused slots.
        num_atoms (`int`): Number K of atoms of the dictionary.
        latent_size (`tuple[int, int]`): Height and width of the coded latents, before padding to whole patches.
        image_size (`tuple[int, int]`, *optional*): Height and width of the image that the latents came from.

    Raises:
        ValueError: If shapes, dtypes or devices do not fit, or a size or `num_atoms` is no positive integer. Values
            are not looked at.
    """

    _tensors: ClassVar[tuple[str, ...]] = ("indices", "coefficients")
    _lowest: ClassVar[int] = -1

    indices: torch.Tensor
    coefficients: torch.Tensor
    num_atoms: int
    latent_size: tuple[int, int]
    image_size: tuple[int, int] | None = None

    def __post_init__(self):
        check_indices(self.indices)
        shape = self.indices.shape
        if not torch.is_tensor(self.coefficients) or self.coefficients.shape != shape:
            raise ValueError(
                f"`coefficients` must have the shape of `indices`, {tuple(shape)}, got {described(self.coefficients)}."
            )
        if not self.coefficients.is_floating_point() or self.coefficients.device != self.indices.device:
            raise ValueError(
                f"`coefficients` must be floating point on {self.indices.device}, as `indices`, got "
                f"{self.coefficients.dtype} on {self.coefficients.device}."
            )
        if not is_count(self.num_atoms):
            raise ValueError(f"`num_atoms` must be a positive integer, got {self.num_atoms!r}.")
        check_sizes(self)

    @property
    def sparsity(self) -> int:
        """Slots a site, S."""
        return self.slots

    @property
    def levels(self) -> tuple[int, ...]:
        """Atoms of the dictionary, for each slot."""
        return (self.num_atoms,) * self.slots

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        """Atoms of the one dictionary."""
        return (self.num_atoms,)

    def to_dense(self) -> torch.Tensor:
        """The codes with their zeros, `(B, h, w, num_atoms)`: γ of LASERS, 2024, eq 12."""
        dense = self.coefficients.new_zeros(*self.indices.shape[:-1], self.num_atoms)
        return dense.scatter_add_(-1, self.indices.clamp_min(0), self.coefficients * (self.indices >= 0))

    def to_sparse_coo(self) -> torch.Tensor:
        """The codes as a coalesced sparse COO tensor `(B, h, w, num_atoms)`, as LASERS, 2024, Fig. 2 stores them."""
        used = self.indices >= 0
        positions = torch.cat([used.nonzero()[:, :3], self.indices[used].unsqueeze(1)], dim=1).t()
        size = (*self.indices.shape[:-1], self.num_atoms)
        return torch.sparse_coo_tensor(positions, self.coefficients[used], size, check_invariants=True).coalesce()

    def truncate(self, sparsity: int, dictionary: torch.Tensor) -> SparseCode:
        r"""
        The code with only the first `sparsity` atoms of each site, refitted by least squares to what the full code
        decodes to. The new coefficients are floats: [`DictionaryBottleneck.truncate`] quantises them too.

        Greedy codes are nested, so that the support is the one a pursuit with this sparsity finds. The refit projects
        the full reconstruction \(Dγ\), which is exact for least-squares coefficients: the projection of the signal on
        fewer atoms is the projection of its projection.

        Args:
            sparsity (`int`): Atoms to keep, from 1 to the code's own.
            dictionary (`torch.Tensor` of shape `(features, num_atoms)`): The dictionary of the code.

        Returns:
            [`SparseCode`]: A code with `sparsity` slots.

        Raises:
            ValueError: If `sparsity` is out of range.
        """
        if not 1 <= sparsity <= self.sparsity:
            raise ValueError(f"`sparsity` must be from 1 to the code's {self.sparsity}, got {sparsity!r}.")
        indices = self.indices.flatten(0, 2)
        dtype = torch.promote_types(self.coefficients.dtype, torch.float32)
        atoms = dictionary.detach().to(dtype).t()[indices.clamp_min(0)] * (indices >= 0).unsqueeze(-1)  # (N, S, L)
        signals = (atoms * self.coefficients.flatten(0, 2).to(dtype).unsqueeze(-1)).sum(dim=1)  # (N, L)
        used = indices[:, :sparsity] >= 0
        # Zero rows below make the matrix tall; an unused slot's zero column gets a unit diagonal and then weight 0.
        missing = (0, max(0, sparsity - atoms.shape[-1]))
        basis, triangle = torch.linalg.qr(F.pad(atoms[:, :sparsity], missing).transpose(1, 2))  # (N, L', s), (N, s, s)
        triangle = triangle + torch.diag_embed((~used).to(dtype))
        projected = (basis * F.pad(signals, missing).unsqueeze(-1)).sum(dim=1).unsqueeze(-1)
        weights = torch.linalg.solve_triangular(triangle, projected, upper=True).squeeze(-1)
        weights = torch.where(used, weights, 0.0)
        shape = (*self.indices.shape[:-1], sparsity)
        return replace(
            self,
            indices=self.indices[..., :sparsity].contiguous(),
            coefficients=weights.reshape(shape).to(self.coefficients.dtype),
        )


@register
@dataclass(frozen=True, eq=False)
class IndexCode(Code):
    """
    Codeword indices of a batch: one a site for vector quantisation, one a stage for residual quantisation, one a
    channel for finite scalar quantisation.

    Args:
        indices (`torch.Tensor` of shape `(B, h, w, slots)`): Index of each slot, int64.
        levels (`tuple[int, ...]`): Size of the alphabet of each slot.
        latent_size (`tuple[int, int]`): Height and width of the coded latents, before padding to whole patches.
        image_size (`tuple[int, int]`, *optional*): Height and width of the image that the latents came from.

    Raises:
        ValueError: If `indices` is not int64 of four dimensions, `levels` does not name each slot, or it or a size is
            no positive integer. Values are not looked at.
    """

    coefficients: ClassVar[None] = None

    indices: torch.Tensor
    levels: tuple[int, ...]
    latent_size: tuple[int, int]
    image_size: tuple[int, int] | None = None

    def __post_init__(self):
        check_indices(self.indices)
        if not isinstance(self.levels, (tuple, list)) or not _are_counts(self.levels):
            raise ValueError(f"`levels` must be positive integers, one a slot, got {self.levels!r}.")
        if len(self.levels) != self.indices.shape[-1]:
            raise ValueError(f"`levels` must name {self.indices.shape[-1]} slots, got {len(self.levels)}.")
        if not isinstance(self.levels, tuple):
            object.__setattr__(self, "levels", tuple(self.levels))
        check_sizes(self)

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        """Codewords of each slot's codebook."""
        return self.levels
