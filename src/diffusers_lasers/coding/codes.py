r"""The two values that an autoencoder's bottleneck can produce: sparse codes and index codes.

A code is a value. It holds one entry a site (a patch of p × p latent positions) and what a decoder needs beside the model:
the size of the latents and, where it came from an image, the size of the image. The bits that it costs follow from the
model that made it (`bottleneck.bits_per_site`), the symbols that it used from [`SparseCode.usage_counts`].
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch.nn import functional as F


__all__ = ["IndexCode", "SparseCode"]


def _counts(indices: torch.Tensor, symbols: int) -> torch.Tensor:
    """Occurrences `(symbols,)` int64 of each index; −1 is not counted. Unlike `bincount`, without host synchronisation."""
    flat = indices.flatten() + 1
    return flat.new_zeros(symbols + 1).index_add_(0, flat, torch.ones_like(flat))[1:]


def _check_indices(indices: torch.Tensor) -> None:
    if indices.ndim != 4 or indices.dtype != torch.int64:
        raise ValueError(
            f"`indices` must be int64 of shape (B, h, w, slots), got {indices.dtype} of shape {tuple(indices.shape)}."
        )


@dataclass(frozen=True, eq=False)
class SparseCode:
    r"""
    Sparse dictionary codes of a batch (LASERS, 2024, Fig. 2): at most `sparsity` atoms and their coefficients a site.

    Args:
        indices (`torch.Tensor` of shape `(B, h, w, sparsity)`): Atom of each slot, int64, in order of selection; −1 marks an
            unused slot.
        coefficients (`torch.Tensor` of shape `(B, h, w, sparsity)`): Coefficients, floating point; 0 in unused slots.
        num_atoms (`int`): Number K of atoms of the dictionary.
        latent_size (`tuple[int, int]`): Height and width of the coded latents, before padding to whole patches.
        image_size (`tuple[int, int]`, *optional*): Height and width of the image that the latents came from.

    Raises:
        ValueError: If the shapes do not fit or `indices` is not int64.
    """

    indices: torch.Tensor
    coefficients: torch.Tensor
    num_atoms: int
    latent_size: tuple[int, int]
    image_size: tuple[int, int] | None = None

    def __post_init__(self):
        _check_indices(self.indices)
        if self.coefficients.shape != self.indices.shape:
            raise ValueError(
                f"`coefficients` must have the shape of `indices`, {tuple(self.indices.shape)}, got "
                f"{tuple(self.coefficients.shape)}."
            )

    @property
    def sparsity(self) -> int:
        """Slots a site, S."""
        return self.indices.shape[-1]

    def to(self, device: torch.device | str) -> SparseCode:
        """The code on another device."""
        return replace(self, indices=self.indices.to(device), coefficients=self.coefficients.to(device))

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
        The code with only the first `sparsity` atoms of each site, refitted by least squares to what the full code decodes to.
        The new coefficients are floats: [`DictionaryBottleneck.truncate`] quantises them too.

        Greedy codes are nested, so that the support is the one a pursuit with this sparsity finds. The refit projects the
        full reconstruction \(Dγ\), which is exact for least-squares coefficients: the projection of the signal on fewer
        atoms is the projection of its projection.

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

    def usage_counts(self) -> torch.Tensor:
        """Support slots that each atom fills, `(num_atoms,)` int64."""
        return _counts(self.indices, self.num_atoms)


@dataclass(frozen=True, eq=False)
class IndexCode:
    """
    Codeword indices of a batch: one a site for vector quantisation, one a stage for residual quantisation, one a channel for
    finite scalar quantisation.

    Args:
        indices (`torch.Tensor` of shape `(B, h, w, slots)`): Index of each slot, int64.
        levels (`tuple[int, ...]`): Size of the alphabet of each slot.
        latent_size (`tuple[int, int]`): Height and width of the coded latents, before padding to whole patches.
        image_size (`tuple[int, int]`, *optional*): Height and width of the image that the latents came from.

    Raises:
        ValueError: If `indices` is not int64 of four dimensions or `levels` does not name each slot.
    """

    indices: torch.Tensor
    levels: tuple[int, ...]
    latent_size: tuple[int, int]
    image_size: tuple[int, int] | None = None

    def __post_init__(self):
        _check_indices(self.indices)
        if len(self.levels) != self.indices.shape[-1]:
            raise ValueError(f"`levels` must name {self.indices.shape[-1]} slots, got {len(self.levels)}.")

    def to(self, device: torch.device | str) -> IndexCode:
        """The code on another device."""
        return replace(self, indices=self.indices.to(device))

    def usage_counts(self) -> torch.Tensor:
        """Occurrences of each index over all slots, `(max(levels),)` int64."""
        return _counts(self.indices, max(self.levels))
