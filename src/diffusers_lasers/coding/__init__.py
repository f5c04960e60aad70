"""Codes as values, and what turns them into symbols."""

from .codes import IndexCode, SparseCode
from .coefficients import coefficient_scale, dequantize_coefficients, quantize_coefficients
from .packing import pack_indices, unpack_indices


__all__ = [
    "IndexCode",
    "SparseCode",
    "coefficient_scale",
    "dequantize_coefficients",
    "pack_indices",
    "quantize_coefficients",
    "unpack_indices",
]
