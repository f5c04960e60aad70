"""Helpers without mathematics: files, the Hub, registration in diffusers, ranks, optional imports."""

from .distributed import all_gather, all_reduce_max, all_reduce_sum, broadcast, rank_and_world_size, settle
from .files import save_image, write_bytes, write_json, write_text
from .hub import LasersHubMixin, hide_token, push_folder, write_model_card
from .import_utils import requires


__all__ = [
    "LasersHubMixin",
    "all_gather",
    "all_reduce_max",
    "all_reduce_sum",
    "broadcast",
    "hide_token",
    "push_folder",
    "rank_and_world_size",
    "requires",
    "save_image",
    "settle",
    "write_bytes",
    "write_json",
    "write_model_card",
    "write_text",
]
