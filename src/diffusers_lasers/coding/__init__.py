"""Codes as values, and what turns them into symbols."""

from .codes import IndexCode, SparseCode
from .coefficients import coefficient_scale, dequantize_coefficients, quantize_coefficients


__all__ = ["IndexCode", "SparseCode", "coefficient_scale", "dequantize_coefficients", "quantize_coefficients"]
