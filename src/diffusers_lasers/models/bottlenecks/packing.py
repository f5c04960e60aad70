"""Packed codes of a bottleneck: header, payload, fingerprint of the weights that decode them, and what is refused."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from ...coding import (
    MAX_SITES,
    CodeHeader,
    IndexCode,
    SparseCode,
    check_sites,
    fingerprint,
    pack_container,
    unpack_container,
)
from ...functional.images.patch_signals import patch_grid


if TYPE_CHECKING:
    from .base import Bottleneck


_FREE_SITES = 2**16  # where a site costs no bits, so that a header alone may ask a decoder for an image
_TRAINING_STATE = ("counts", "sums", "scale_steps")  # buffers that decoding does not read


def _fingerprint(bottleneck: Bottleneck) -> int:
    """32 bits of all that decoding reads: class, patches, weights."""
    names = ("patch_size", *bottleneck._decoding_config)
    facts = (type(bottleneck).__name__, [bottleneck.config.get(name) for name in names])
    state = bottleneck.state_dict()
    return fingerprint(facts, {name: state[name] for name in state if name not in _TRAINING_STATE})


def check_code(bottleneck: Bottleneck, code: SparseCode | IndexCode) -> None:
    """
    Raises a `ValueError` where `code` is none of this bottleneck's. Values are looked at on the CPU only, where
    nothing has to wait for them, and not in a compiled graph.
    """
    bottleneck._check_kind(code)
    grid = patch_grid(*code.latent_size, bottleneck.patch_size)
    if tuple(code.indices.shape[1:3]) != grid:
        raise ValueError(
            f"`code` must have {grid[0]} × {grid[1]} sites for latents of {tuple(code.latent_size)}, got {tuple(code.indices.shape[1:3])}."
        )
    if code.indices.device.type != "cpu" or torch.compiler.is_compiling() or not code.indices.numel():
        return
    if isinstance(code, IndexCode):
        low, limits = 0, torch.tensor(code.levels)
    else:
        low, limits = -1, code.num_atoms
    if bool(((code.indices < low) | (code.indices >= limits)).any()):
        found = (int(code.indices.min()), int(code.indices.max()))
        raise ValueError(
            f"`code` must have indices from {low} to below its {bottleneck.num_symbols} symbols, got {found[0]} to "
            f"{found[1]}."
        )
    if isinstance(code, SparseCode) and not bool(torch.isfinite(code.coefficients).all()):
        raise ValueError("`code` must have finite coefficients, got NaN or infinity.")


def pack_code(bottleneck: Bottleneck, code: SparseCode | IndexCode) -> bytes:
    """See [`Bottleneck.pack`]."""
    if not isinstance(code, (SparseCode, IndexCode)):
        raise ValueError(f"`code` must be a SparseCode or an IndexCode, got {type(code).__name__}.")
    payload, bits = bottleneck._pack_payload(code)
    check_code(bottleneck, code)
    header = CodeHeader(
        kind=bottleneck._kind,
        fingerprint=_fingerprint(bottleneck),
        batch=code.indices.shape[0],
        latent_size=code.latent_size,
        image_size=code.image_size,
        slots=code.indices.shape[-1],
        coefficient_bits=bits,
    )
    return pack_container(header, payload)


def unpack_code(bottleneck: Bottleneck, data: bytes, max_sites: int | None) -> SparseCode | IndexCode:
    """See [`Bottleneck.unpack`]."""
    header, payload = unpack_container(data)
    name = type(bottleneck).__name__
    if header.kind != bottleneck._kind:
        raise ValueError(
            f"`data` must hold the {bottleneck._kind} code of a {name}, it holds a code of kind {header.kind!r}."
        )
    if header.fingerprint != _fingerprint(bottleneck):
        raise ValueError(f"`data` must be packed by this {name}, it is of one with other weights.")
    most = bottleneck._max_slots
    least = 1 if bottleneck._nested else most
    if not least <= header.slots <= most:
        allowed = f"{least} to {most}" if least < most else str(most)
        raise ValueError(f"`data` must have {allowed} slots a site for this {name}, its header names {header.slots}.")
    if max_sites is None:
        max_sites = MAX_SITES if bottleneck.bits_per_site > 0 else _FREE_SITES
    check_sites(header.batch, patch_grid(*header.latent_size, bottleneck.patch_size), max_sites)
    return bottleneck._unpack_payload(header, payload).to(bottleneck.latent_shift.device)
