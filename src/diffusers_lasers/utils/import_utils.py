"""Optional dependencies: imported where they are needed, and missed with the name of the extra that installs them."""

from __future__ import annotations

import importlib
from types import ModuleType


__all__ = ["requires"]


def requires(package: str, extra: str) -> ModuleType:
    """
    Imports an optional dependency, or says which extra of this package installs it.

    Args:
        package (`str`): Name that is imported, e.g. `"torchmetrics"` or `"torchmetrics.image"`.
        extra (`str`): Extra of `diffusers_lasers` that has it, e.g. `"metrics"`.

    Returns:
        `ModuleType`: The imported module.

    Raises:
        ImportError: If the package is not installed. An error that happens *inside* an installed package is passed on.
    """
    try:
        return importlib.import_module(package)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] != package.split(".")[0]:
            raise
        raise ImportError(
            f"`{package}` is not installed, and this function needs it: `pip install diffusers_lasers[{extra}]` "
            "brings it."
        ) from error
