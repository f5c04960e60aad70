"""Imports of optional packages. If one is missing, the error names the extra that installs it."""

from __future__ import annotations

import importlib
from types import ModuleType


__all__ = ["requires"]


def requires(package: str, extra: str) -> ModuleType:
    """
    Imports an optional package.

    Args:
        package (`str`): Name of the module, e.g. `"torchmetrics"` or `"torchmetrics.image"`.
        extra (`str`): Extra of `diffusers_lasers` that installs it, e.g. `"metrics"`.

    Returns:
        `ModuleType`: The imported module.

    Raises:
        ImportError: If the package is not installed; the error names the extra. An error *inside* an installed package
            is not changed.
    """
    try:
        return importlib.import_module(package)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] != package.split(".")[0]:
            raise
        raise ImportError(
            f"`{package}` is not installed, and this function needs it: install it with "
            f"`pip install diffusers_lasers[{extra}]`."
        ) from error
