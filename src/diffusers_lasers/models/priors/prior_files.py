"""Codes as files at their prior's rate: streams of images, each of which is read alone, and what is refused."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import torch

from ...coding import Code
from ...coding.code import joined
from ...coding.container import MAX_SITES, check_sites
from ...coding.streams import StreamHeader, pack_streams, unpack_streams
from ...coding.symbol_streams import ReadingStream, WritingStream
from ...functional.images.patch_signals import patch_grid
from .prior_symbols import PriorSymbols


_STREAM_BITS = 2**19  # of a stream, about: shorter ones are read alone sooner, but all together three times slower
_FREE_SITES = 2**16  # where a site may cost no bits


class PriorFiles(PriorSymbols):
    """Base of [`FactorizedPrior`]: its files."""

    @torch.no_grad()
    def compress(self, code: Code) -> bytes:
        """
        A code as bytes, at its [`bits`]. Needs constriction (extra `entropy`).

        Args:
            code ([`SparseCode`] or [`IndexCode`]): A code of the prior's model.

        Returns:
            `bytes`: What [`decompress`] reads: a header of 43, and for each 64 kB or image, whichever is more, a
            stream with at most 12 bytes beyond its bits.

        Raises:
            ValueError: If the code does not fit, a coefficient is not finite or no point of the quantiser, or the prior
                is not fitted.
            ImportError: If constriction is not installed.
        """
        self._check_code(code, exact=True)
        tables, mark = self._tables()
        per_image = max(1, math.prod(code.grid) * int(self.site_bits))
        images = min(max(1, len(code)), -(-_STREAM_BITS // per_image))
        streams = []
        for first in range(0, len(code), images):
            stream = WritingStream(tables)
            self._walk(stream, code[first : first + images])
            streams.append(stream.words())
        header = StreamHeader(
            int(self.coder_fingerprint), mark, len(code), code.latent_size, code.image_size, code.slots, images
        )
        return pack_streams(header, streams)

    @torch.no_grad()
    def decompress(self, data: bytes, images: slice | None = None, max_sites: int | None = None) -> Code:
        """
        The code of bytes. Of a set of atoms the slots come back by falling magnitude of their coefficients, as
        [`Bottleneck.unpack`] gives them; every other code comes back as it was.

        Args:
            data (`bytes`): What [`compress`] gave. It is not trusted: sizes are compared with its length before memory
                is taken.
            images (`slice`, *optional*): Images to read, e.g. `slice(2, 5)`; streams without them are not decoded.
                Defaults to all.
            max_sites (`int`, *optional*): Most sites of all images together. Defaults to 2²⁴, and to 2¹⁶ where a site
                may cost no bits.

        Returns:
            [`SparseCode`] or [`IndexCode`]: The code, on the prior's device.

        Raises:
            ValueError: If the bytes are cut off, changed, something else, of another model or prior, or have more
                sites; or the prior is not fitted.
            ImportError: If constriction is not installed.
        """
        header, streams = unpack_streams(data)
        tables, mark = self._tables()
        if header.prior != mark:
            raise ValueError("`data` must be compressed by this prior, it is of another.")
        if header.coder != int(self.coder_fingerprint):
            raise ValueError("`data` must hold a code of this prior's model, it is of another.")
        slots = len(self.config.levels)
        if header.slots > slots:
            raise ValueError(f"`data` must have at most {slots} slots a site, its header names {header.slots}.")
        if images is not None and not isinstance(images, slice):
            raise ValueError(f"`images` must be a slice, e.g. slice(2, 5), got {images!r}.")
        grid = patch_grid(*header.latent_size, self.config.patch_size)
        check_sites(header.batch, grid, MAX_SITES if max_sites is None else max_sites)
        least = self.symbol_model.least_bits(tables, header.slots)
        if least == 0 and max_sites is None:  # a header alone may ask for any number of sites
            check_sites(header.batch, grid, _FREE_SITES)
        for number, words in enumerate(streams):
            held = min(header.stream_images, header.batch - number * header.stream_images) * math.prod(grid)
            if held * least > 32 * len(words) + 64:
                raise ValueError(f"`data` must have the bits of {held} sites in a stream, it has fewer.")
        wanted = list(range(header.batch)[slice(None) if images is None else images])
        parts, rows = [], {}  # decoded streams, and the row in them of each of their images
        for number in sorted({image // header.stream_images for image in wanted}):
            first = number * header.stream_images
            count = min(header.stream_images, header.batch - first)
            rows.update(zip(range(first, first + count), range(len(rows), len(rows) + count)))
            stream = ReadingStream(tables, streams[number])
            sizes = (header.latent_size, header.image_size)
            parts.append(self._found(stream, (count, *grid), header.slots, *sizes))
            stream.check_end()
        if not parts:
            stream = ReadingStream(tables, np.zeros(0, dtype=np.uint32))
            parts.append(self._found(stream, (0, *grid), header.slots, header.latent_size, header.image_size))
        found, chosen = joined(parts), [rows[image] for image in wanted]
        return replace(found, **{name: getattr(found, name)[chosen] for name in found.tensors}).to(self.device)
