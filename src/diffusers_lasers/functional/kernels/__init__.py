"""Compiled kernels in C as custom operators of torch, and the choice between them and tensor operations.

The other folders of `functional` import from here, and nothing here imports from them.
"""

from .operators import get_backend, set_backend


__all__ = ["get_backend", "set_backend"]
