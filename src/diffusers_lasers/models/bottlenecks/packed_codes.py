"""Packed codes of a bottleneck: header, payload, fingerprint of the weights that decode them, and what is refused."""

from __future__ import annotations

import math
import weakref

from ...coding import Code, Coder
from ...coding.checks import check_values
from ...coding.container import MAX_SITES, CodeHeader, check_sites, fingerprint, pack_container, unpack_container
from ...functional.images.patch_signals import patch_grid


_FINGERPRINTS: weakref.WeakKeyDictionary[PackedCodes, tuple] = weakref.WeakKeyDictionary()  # of unchanged tensors
_FREE_SITES = 2**16  # where a site costs no bits, so that a header alone may ask a decoder for an image
# buffers that decoding does not read
_TRAINING_STATE = ("counts", "sums", "scale_steps", "dropout_steps")
_TRAINING_STATE += tuple(f"tables.{name}" for name in ("symbols", "cells", "sizes", "variance"))


class PackedCodes(Coder):
    """
    Base of [`Bottleneck`]. A subclass gives the kind of its codes and how they become a payload and back:
    `_check_kind`, `_check_packable`, `_pack_payload` and `_unpack_payload`.
    """

    _decoding_config: tuple[str, ...] = ()  # what decoding reads beside the weights and the patch size
    _kind = "index"  # of its codes, in a file
    _nested = False  # whether the first slots of a code are a code

    def pack(self, code: Code) -> bytes:
        """
        A code as bytes: a header of 37, and the nominal bits (`bits_per_site` for each site; less where slots of a
        sparse code are unused) rounded up to whole bytes, two at most beyond them.

        Args:
            code ([`SparseCode`] or [`IndexCode`]): A code of this bottleneck.

        Returns:
            `bytes`: What [`unpack`] reads, with the same weights.

        Raises:
            ValueError: If the code is of another bottleneck or damaged, has no such indices or a coefficient that is
                not finite, or the bottleneck makes none.
        """
        self._check_packable(code)
        payload = self._pack_payload(code)
        self._check_code(code)
        header = CodeHeader(
            kind=self._kind,
            fingerprint=self._fingerprint(),
            batch=len(code),
            latent_size=code.latent_size,
            image_size=code.image_size,
            slots=code.slots,
            coefficient_bits=self.coefficient_bits,
        )
        return pack_container(header, payload)

    def unpack(self, data: bytes, max_sites: int | None = None) -> Code:
        """
        The code of packed bytes. It decodes to the same latents, bit for bit. Where a support is a set (coefficients
        of float32, or with one scale for all) its slots come back by falling magnitude of their coefficients: cut such
        a code to fewer atoms before packing it.

        Args:
            data (`bytes`): What [`pack`] gave. It is not trusted: sizes are compared with its length before memory
                is taken.
            max_sites (`int`, *optional*): Most sites of all images together. Defaults to 2²⁴, an image of 16384 × 16384
                pixels where a site has 4 × 4 of them, and to 2¹⁶ where a site costs no bits, with one codeword.

        Returns:
            [`SparseCode`] or [`IndexCode`]: The code, on the bottleneck's device.

        Raises:
            ValueError: If the bytes are cut off, changed, something else, packed by a bottleneck with other weights,
                no code of this one, or have more sites.
        """
        header, payload = unpack_container(data)
        name, most = type(self).__name__, len(self.levels)
        if header.kind != self._kind:
            raise ValueError(
                f"`data` must hold the {self._kind} code of a {name}, it holds a code of kind {header.kind!r}."
            )
        if header.fingerprint != self._fingerprint():
            raise ValueError(f"`data` must be packed by this {name}, it is of one with other weights.")
        least = 1 if self._nested else most
        if not least <= header.slots <= most:
            allowed = f"{least} to {most}" if least < most else str(most)
            raise ValueError(
                f"`data` must have {allowed} slots a site for this {name}, its header names {header.slots}."
            )
        if max_sites is None:
            max_sites = MAX_SITES if self.bits_per_site > 0 else _FREE_SITES
        grid = patch_grid(*header.latent_size, self.patch_size)
        check_sites(header.batch, grid, max_sites)
        code = self._unpack_payload(
            header, payload, header.batch * math.prod(grid), (header.batch, *grid, header.slots)
        )
        return code.to(self.latent_shift.device)

    def _fingerprint(self) -> int:
        """32 bits of all that decoding reads: class, patches, weights."""
        names = ("patch_size", *self._decoding_config)
        facts = (type(self).__name__, [self.config.get(name) for name in names])
        state = {name: part for name, part in self.state_dict(keep_vars=True).items() if name not in _TRAINING_STATE}
        key = (
            repr(facts),
            tuple(
                (name, id(part), part.data_ptr(), part.dtype, None if part.is_inference() else part._version)
                for name, part in state.items()
            ),
        )
        found = _FINGERPRINTS.get(self)
        if found is None or found[0] != key:
            found = _FINGERPRINTS[self] = key, fingerprint(facts, state)
        return found[1]

    def _check_code(self, code: Code) -> None:
        """Raises a `ValueError` where `code` is none of this bottleneck's; see [`coding.checks.check_values`]."""
        self._check_kind(code)
        check_values(code, patch_grid(*code.latent_size, self.patch_size))

    def _check_kind(self, code: Code) -> None:
        """Raises a `ValueError` where `code` is not a code, or has other slots; reads no tensor's values."""
        raise NotImplementedError

    def _check_packable(self, code: Code) -> None:
        """The same, of what a file can hold."""
        self._check_kind(code)

    def _pack_payload(self, code: Code) -> bytes:
        """Bytes of a code without header."""
        raise NotImplementedError

    def _unpack_payload(self, header: CodeHeader, payload: bytes, rows: int, shape: tuple[int, ...]) -> Code:
        """The inverse of `_pack_payload`, of a header with this bottleneck's fingerprint."""
        raise NotImplementedError
