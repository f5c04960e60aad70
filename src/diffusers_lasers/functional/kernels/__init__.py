"""Compiled kernels in C behind custom operators of torch, and the choice between them and tensor operations.

Nothing here imports from the folders that use it: mathematics calls kernels, kernels call nothing above them.
"""

from .operators import get_backend, set_backend


__all__ = ["get_backend", "set_backend"]
