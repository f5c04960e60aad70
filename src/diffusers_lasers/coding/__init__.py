"""Codes as values, and what turns them into symbols and bytes."""

from .code import Code
from .coder import Coder
from .codes import IndexCode, SparseCode


__all__ = [
    "Code",
    "Coder",
    "IndexCode",
    "SparseCode",
]
