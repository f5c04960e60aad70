r"""The two values that an autoencoder's bottleneck can produce: sparse codes and index codes.

A code is a value. It holds one entry a site (a patch of p × p latent positions) and what a decoder needs beside the model:
the size of the latents and, where it came from an image, the size of the image. The bits that it costs follow from the
model that made it (`bottleneck.bits_per_site`), the symbols that it used from [`SparseCode.usage_counts`].

Both are nodes of `torch.utils._pytree`: `tree_map`, `torch.export` and DDP find their tensors, accelerate moves them
by `to`. Constructors look at shapes and types only, never at values, which would make a device wait; `pack` and
`decode` of a bottleneck look at those.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any, ClassVar

import torch
from torch.nn import functional as F
from torch.utils import _pytree as pytree

from ..utils.config_checks import described


__all__ = ["IndexCode", "SparseCode"]


class _Code:
    """What both kinds share: a device, comparison by content, and which fields are tensors."""

    _tensors: ClassVar[tuple[str, ...]] = ("indices",)

    @property
    def device(self) -> torch.device:
        """Where the tensors are."""
        return self.indices.device

    def __eq__(self, other: object) -> bool:
        """Whether the other is a code of the same kind, sizes, device and values; a GPU has to wait for those."""
        if type(other) is not type(self):
            return NotImplemented
        (mine, facts), (theirs, other_facts) = _flatten(self), _flatten(other)
        return facts == other_facts and all(map(_same, mine, theirs))

    __hash__ = None  # as a list, whose content may change


def _same(first: torch.Tensor, second: torch.Tensor) -> bool:
    return (first.device, first.dtype) == (second.device, second.dtype) and torch.equal(first, second)


def _flatten(code: _Code) -> tuple[list[torch.Tensor], tuple]:
    """Tensors of a code, and everything else, in the order of its fields."""
    names = [field.name for field in fields(code)]
    facts = tuple(getattr(code, name) for name in names if name not in code._tensors)
    return [getattr(code, name) for name in code._tensors], facts


def _flatten_with_keys(code: _Code) -> tuple[list[tuple[pytree.KeyEntry, torch.Tensor]], tuple]:
    tensors, facts = _flatten(code)
    return [(pytree.GetAttrKey(name), tensor) for name, tensor in zip(code._tensors, tensors)], facts


def _unflatten(kind: type[_Code], tensors: Any, facts: tuple) -> _Code:
    """The code of whatever stands where its tensors were: unchecked, since `tree_map` may put anything there."""
    code, facts = object.__new__(kind), iter(facts)
    found = dict(zip(kind._tensors, tensors))
    for field in fields(kind):
        object.__setattr__(code, field.name, found[field.name] if field.name in found else next(facts))
    return code


def _tuples(value: Any) -> Any:
    """Lists, which JSON makes of tuples, as tuples again."""
    return tuple(map(_tuples, value)) if isinstance(value, (list, tuple)) else value


def _register(kind: type[_Code]) -> type[_Code]:
    pytree.register_pytree_node(
        kind,
        _flatten,
        partial(_unflatten, kind),
        serialized_type_name=f"diffusers_lasers.{kind.__name__}",
        to_dumpable_context=list,
        from_dumpable_context=_tuples,
        flatten_with_keys_fn=_flatten_with_keys,
    )
    return kind


def _counts(indices: torch.Tensor, symbols: int) -> torch.Tensor:
    """Occurrences `(symbols,)` int64 of each index; −1 is not counted. Unlike `bincount`, without host synchronisation."""
    flat = indices.flatten() + 1
    return flat.new_zeros(symbols + 1).index_add_(0, flat, torch.ones_like(flat))[1:]


def _check_indices(indices: torch.Tensor) -> None:
    if not torch.is_tensor(indices) or indices.ndim != 4 or indices.dtype != torch.int64:
        raise ValueError(f"`indices` must be int64 of shape (B, h, w, slots), got {described(indices)}.")


def _is_count(value: Any) -> bool:
    """Whether a value is a positive integer, also one that a compiler only knows by name."""
    return isinstance(value, (int, torch.SymInt)) and not isinstance(value, bool) and value >= 1


def _check_sizes(code: _Code) -> None:
    """Sizes are two positive integers each; lists become tuples, by which codes compare."""
    for name in ("latent_size", "image_size"):
        size = getattr(code, name)
        if size is None and name == "image_size":
            continue
        if not isinstance(size, (tuple, list)) or len(size) != 2 or not all(map(_is_count, size)):
            raise ValueError(f"`{name}` must be two positive integers, height and width, got {size!r}.")
        if not isinstance(size, tuple):
            object.__setattr__(code, name, tuple(size))


@_register
@dataclass(frozen=True, eq=False)
class SparseCode(_Code):
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
        ValueError: If shapes, dtypes or devices do not fit, or a size or `num_atoms` is no positive integer. Values
            are not looked at.
    """

    _tensors: ClassVar[tuple[str, ...]] = ("indices", "coefficients")

    indices: torch.Tensor
    coefficients: torch.Tensor
    num_atoms: int
    latent_size: tuple[int, int]
    image_size: tuple[int, int] | None = None

    def __post_init__(self):
        _check_indices(self.indices)
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
        if not _is_count(self.num_atoms):
            raise ValueError(f"`num_atoms` must be a positive integer, got {self.num_atoms!r}.")
        _check_sizes(self)

    @property
    def sparsity(self) -> int:
        """Slots a site, S."""
        return self.indices.shape[-1]

    def to(
        self,
        device: torch.device | str | int | torch.dtype | None = None,
        dtype: torch.dtype | None = None,
        non_blocking: bool = False,
    ) -> SparseCode:
        """
        The code on another device, or with coefficients of another type; as `torch.Tensor.to`.

        Args:
            device (`torch.device`, `str` or `int`, *optional*): Where to. Defaults to where the code is. A
                `torch.dtype` is taken as `dtype`.
            dtype (`torch.dtype`, *optional*): Floating-point type of the coefficients; indices stay int64. Defaults to
                what they have.
            non_blocking (`bool`, defaults to `False`): Whether the host does not wait for the copy.

        Returns:
            [`SparseCode`]: The code.

        Raises:
            ValueError: If `dtype` is no floating-point type.
        """
        if isinstance(device, torch.dtype):
            device, dtype = None, device
        indices = self.indices.to(device=device, non_blocking=non_blocking)
        coefficients = self.coefficients.to(device=device, dtype=dtype, non_blocking=non_blocking)
        return replace(self, indices=indices, coefficients=coefficients)

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


@_register
@dataclass(frozen=True, eq=False)
class IndexCode(_Code):
    """
    Codeword indices of a batch: one a site for vector quantisation, one a stage for residual quantisation, one a channel for
    finite scalar quantisation.

    Args:
        indices (`torch.Tensor` of shape `(B, h, w, slots)`): Index of each slot, int64.
        levels (`tuple[int, ...]`): Size of the alphabet of each slot.
        latent_size (`tuple[int, int]`): Height and width of the coded latents, before padding to whole patches.
        image_size (`tuple[int, int]`, *optional*): Height and width of the image that the latents came from.

    Raises:
        ValueError: If `indices` is not int64 of four dimensions, `levels` does not name each slot, or it or a size is
            no positive integer. Values are not looked at.
    """

    indices: torch.Tensor
    levels: tuple[int, ...]
    latent_size: tuple[int, int]
    image_size: tuple[int, int] | None = None

    def __post_init__(self):
        _check_indices(self.indices)
        if not isinstance(self.levels, (tuple, list)) or not all(map(_is_count, self.levels)):
            raise ValueError(f"`levels` must be positive integers, one a slot, got {self.levels!r}.")
        if len(self.levels) != self.indices.shape[-1]:
            raise ValueError(f"`levels` must name {self.indices.shape[-1]} slots, got {len(self.levels)}.")
        if not isinstance(self.levels, tuple):
            object.__setattr__(self, "levels", tuple(self.levels))
        _check_sizes(self)

    def to(
        self,
        device: torch.device | str | int | torch.dtype | None = None,
        dtype: torch.dtype | None = None,
        non_blocking: bool = False,
    ) -> IndexCode:
        """
        The code on another device.

        Args:
            device (`torch.device`, `str` or `int`, *optional*): Where to. Defaults to where the code is. A
                `torch.dtype` is taken as `dtype`.
            dtype (`torch.dtype`, *optional*): Taken for all codes alike; indices stay int64.
            non_blocking (`bool`, defaults to `False`): Whether the host does not wait for the copy.

        Returns:
            [`IndexCode`]: The code.
        """
        device = None if isinstance(device, torch.dtype) else device
        return replace(self, indices=self.indices.to(device=device, non_blocking=non_blocking))

    def usage_counts(self) -> torch.Tensor:
        """Occurrences of each index over all slots, `(max(levels),)` int64."""
        return _counts(self.indices, max(self.levels))
