"""Helpers without mathematics: files, the Hub, registration in diffusers, ranks, optional packages."""

from .hub import LasersHubMixin
from .model_loading import LasersModelMixin


__all__ = [
    "LasersHubMixin",
    "LasersModelMixin",
]
