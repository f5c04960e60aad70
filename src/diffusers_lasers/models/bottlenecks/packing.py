"""Packed codes of a bottleneck: header, payload, and the fingerprint that ties them to the weights that decode them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...coding import CodeHeader, IndexCode, SparseCode, fingerprint, pack_container, unpack_container
from ...functional.patches import patch_grid


if TYPE_CHECKING:
    from .base import Bottleneck


_TRAINING_STATE = ("counts", "sums", "scale_steps")  # buffers that decoding does not read


def _fingerprint(bottleneck: Bottleneck) -> int:
    """32 bits of all that decoding reads: class, patches, weights."""
    names = ("patch_size", *bottleneck._decoding_config)
    facts = (type(bottleneck).__name__, [bottleneck.config.get(name) for name in names])
    state = bottleneck.state_dict()
    return fingerprint(facts, {name: state[name] for name in state if name not in _TRAINING_STATE})


def pack_code(bottleneck: Bottleneck, code: SparseCode | IndexCode) -> bytes:
    """See [`Bottleneck.pack`]."""
    if not isinstance(code, (SparseCode, IndexCode)):
        raise ValueError(f"`code` must be a SparseCode or an IndexCode, got {type(code).__name__}.")
    grid = patch_grid(*code.latent_size, bottleneck.patch_size)
    if tuple(code.indices.shape[1:3]) != grid:
        raise ValueError(
            f"`code` must have {grid[0]} × {grid[1]} sites for latents of {tuple(code.latent_size)}, got {tuple(code.indices.shape[1:3])}."
        )
    payload, bits = bottleneck._pack_payload(code)
    header = CodeHeader(
        kind="sparse" if isinstance(code, SparseCode) else "index",
        fingerprint=_fingerprint(bottleneck),
        batch=code.indices.shape[0],
        latent_size=tuple(code.latent_size),
        image_size=code.image_size,
        slots=code.indices.shape[-1],
        coefficient_bits=bits,
    )
    return pack_container(header, payload)


def unpack_code(bottleneck: Bottleneck, data: bytes) -> SparseCode | IndexCode:
    """See [`Bottleneck.unpack`]."""
    header, payload = unpack_container(data)
    if header.fingerprint != _fingerprint(bottleneck):
        raise ValueError(
            f"`data` must be packed by this {type(bottleneck).__name__}, it is of one with other weights."
        )
    return bottleneck._unpack_payload(header, payload).to(bottleneck.latent_shift.device)
