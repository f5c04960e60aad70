"""Helpers without mathematics: the Hub, registration in diffusers, ranks, optional imports."""

from .distributed import all_gather, all_reduce_max, all_reduce_sum, broadcast, rank_and_world_size
from .hub import LasersHubMixin, write_model_card
from .import_utils import requires


__all__ = [
    "LasersHubMixin",
    "all_gather",
    "all_reduce_max",
    "all_reduce_sum",
    "broadcast",
    "rank_and_world_size",
    "requires",
    "write_model_card",
]
