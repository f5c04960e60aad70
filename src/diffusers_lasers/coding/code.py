r"""What all codes are: symbols `(B, h, w, slots)` of sites, and the sizes that a decoder needs beside the model.

A code is a value. It holds one entry a site (a patch of p × p latent positions), the size of the latents and, where it
came from an image, the size of the image. Each slot has an alphabet; the slots of a sparse code share one dictionary.
The bits that a code costs follow from the model that made it ([`Coder.bits`]).

Codes are nodes of `torch.utils._pytree`: `tree_map`, `torch.export` and DDP find their tensors, accelerate moves them
by `to`. Constructors look at shapes and types only, never at values, which would make a device wait; `pack` and
`decode` of a bottleneck look at those.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import fields, replace
from functools import partial
from typing import Any, ClassVar, TypeVar

import torch
from torch.utils import _pytree as pytree

from ..utils.config_checks import described


__all__ = ["Code"]

_Kind = TypeVar("_Kind", bound="Code")


class Code:
    """
    Base of [`SparseCode`] and [`IndexCode`]. Codes compare by content: kind, sizes, device and values.

    Attributes:
        indices (`torch.Tensor` of shape `(B, h, w, slots)`): Symbol of each slot, int64.
        coefficients (`torch.Tensor` of the same shape, *optional*): Coefficients of a sparse code, else `None`.
        levels (`tuple[int, ...]`): Size of the alphabet of each slot.
        codebook_sizes (`tuple[int, ...]`): The same of each codebook: one for each slot, or one that all slots share.
        latent_size (`tuple[int, int]`): Height and width of the coded latents, before padding to whole patches.
        image_size (`tuple[int, int]`, *optional*): Height and width of the image that the latents came from.
    """

    _tensors: ClassVar[tuple[str, ...]] = ("indices",)
    _lowest: ClassVar[int] = 0  # index; −1 where a slot may be unused

    @property
    def tensors(self) -> tuple[str, ...]:
        """Names of its tensors: `indices`, and of a sparse code `coefficients`."""
        return self._tensors

    @property
    def device(self) -> torch.device:
        """Where the tensors are."""
        return self.indices.device

    @property
    def slots(self) -> int:
        """Slots a site."""
        return self.indices.shape[-1]

    @property
    def grid(self) -> tuple[int, int]:
        """Sites down and across."""
        return tuple(self.indices.shape[1:3])

    @property
    def num_sites(self) -> int:
        """Sites of all images."""
        return math.prod(self.indices.shape[:3])

    def __len__(self) -> int:
        """Images, B."""
        return self.indices.shape[0]

    def __getitem__(self: _Kind, images: slice) -> _Kind:
        """The code of some images of the batch, e.g. `code[2:5]`; a `ValueError` where `images` is not a slice."""
        if not isinstance(images, slice):
            raise ValueError(f"A code must be cut by a slice of images, as code[2:5], got {images!r}.")
        return replace(self, **{name: getattr(self, name)[images] for name in self._tensors})

    def __eq__(self, other: object) -> bool:
        """Whether the other is a code of the same kind, sizes, device and values; a GPU has to wait for those."""
        if type(other) is not type(self):
            return NotImplemented
        (mine, facts), (theirs, other_facts) = _flatten(self), _flatten(other)
        return facts == other_facts and all(map(_same, mine, theirs))

    __hash__ = None  # as a list, whose content may change

    def to(
        self: _Kind,
        device: torch.device | str | int | torch.dtype | None = None,
        dtype: torch.dtype | None = None,
        non_blocking: bool = False,
    ) -> _Kind:
        """
        The code on another device, or with coefficients of another type; as `torch.Tensor.to`.

        Args:
            device (`torch.device`, `str` or `int`, *optional*): Where to. Defaults to where the code is. A
                `torch.dtype` is taken as `dtype`.
            dtype (`torch.dtype`, *optional*): Floating-point type of the coefficients; indices stay int64. Defaults to
                what they have.
            non_blocking (`bool`, defaults to `False`): Whether the host does not wait for the copy.

        Returns:
            [`Code`]: The code, of the same kind.

        Raises:
            ValueError: If there are coefficients and `dtype` is not a floating-point type.
        """
        if isinstance(device, torch.dtype):
            device, dtype = None, device
        moved = {}
        for name in self._tensors:
            kept = None if name == "indices" else dtype
            moved[name] = getattr(self, name).to(device=device, dtype=kept, non_blocking=non_blocking)
        return replace(self, **moved)

    def usage_counts(self) -> torch.Tensor:
        """
        Uses of each symbol of each codebook, `(codebooks, symbols)` int64, computed without waiting for the device.
        Unused slots are not counted, and symbols beyond a smaller codebook count 0.
        """
        books, columns = len(self.codebook_sizes), max(self.codebook_sizes, default=0) + 1  # column 0: unused
        flat = (self.indices + (1 + columns * torch.arange(books, device=self.device))).flatten()
        counts = flat.new_zeros(books * columns).index_add_(0, flat, torch.ones_like(flat))
        return counts.view(books, columns)[:, 1:]


def joined(codes: Sequence[_Kind]) -> _Kind:
    """Codes of images of one size, at least one, as a code of all their images in turn."""
    return replace(codes[0], **{name: torch.cat([getattr(code, name) for code in codes]) for name in codes[0].tensors})


def _same(first: torch.Tensor, second: torch.Tensor) -> bool:
    return (first.device, first.dtype) == (second.device, second.dtype) and torch.equal(first, second)


def _flatten(code: Code) -> tuple[list[torch.Tensor], tuple]:
    """Tensors of a code, and everything else, in the order of its fields."""
    names = [field.name for field in fields(code)]
    facts = tuple(getattr(code, name) for name in names if name not in code._tensors)
    return [getattr(code, name) for name in code._tensors], facts


def _flatten_with_keys(code: Code) -> tuple[list[tuple[pytree.KeyEntry, torch.Tensor]], tuple]:
    tensors, facts = _flatten(code)
    return [(pytree.GetAttrKey(name), tensor) for name, tensor in zip(code._tensors, tensors)], facts


def _unflatten(kind: type[Code], tensors: Any, facts: tuple) -> Code:
    """A code with other values in place of its tensors; unchecked, since `tree_map` may put anything there."""
    code, facts = object.__new__(kind), iter(facts)
    found = dict(zip(kind._tensors, tensors))
    for field in fields(kind):
        object.__setattr__(code, field.name, found[field.name] if field.name in found else next(facts))
    return code


def _tuples(value: Any) -> Any:
    """Lists, which JSON makes of tuples, as tuples again."""
    return tuple(map(_tuples, value)) if isinstance(value, (list, tuple)) else value


def register(kind: type[Code]) -> type[Code]:
    """A decorator: makes a kind of code a node of `torch.utils._pytree`."""
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


def check_indices(indices: torch.Tensor) -> None:
    """Raises a `ValueError` where indices have another type or number of dimensions."""
    if not torch.is_tensor(indices) or indices.ndim != 4 or indices.dtype != torch.int64:
        raise ValueError(f"`indices` must be int64 of shape (B, h, w, slots), got {described(indices)}.")


def is_count(value: Any) -> bool:
    """Whether a value is a positive integer, also one that a compiler only knows by name."""
    return isinstance(value, (int, torch.SymInt)) and not isinstance(value, bool) and value >= 1


def check_sizes(code: Code) -> None:
    """Sizes are two positive integers each; lists become tuples, by which codes compare."""
    for name in ("latent_size", "image_size"):
        size = getattr(code, name)
        if size is None and name == "image_size":
            continue
        if not isinstance(size, (tuple, list)) or len(size) != 2 or not all(map(is_count, size)):
            raise ValueError(f"`{name}` must be two positive integers, height and width, got {size!r}.")
        if not isinstance(size, tuple):
            object.__setattr__(code, name, tuple(size))
