"""Codes as values, and what turns them into symbols and bytes."""

from .bit_fields import pack_indices, unpack_indices
from .code import Code
from .coder import Coder
from .codes import IndexCode, SparseCode
from .coefficients import coefficient_scale, dequantize_coefficients, quantize_coefficients
from .container import MAX_SITES, CodeHeader, check_sites, fingerprint, pack_container, unpack_container
from .payloads import pack_levels, pack_sparse, unpack_levels, unpack_sparse
from .radix import pack_numbers, packed_size, unpack_numbers
from .supports import rank_supports, unrank_supports


__all__ = [
    "Code",
    "Coder",
    "IndexCode",
    "SparseCode",
]
