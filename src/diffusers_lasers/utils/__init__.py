"""Helpers without mathematics: files, the Hub, registration in diffusers, ranks, optional packages."""

from .command_line import CommandParser, hide_token, recorded_arguments
from .distributed import all_gather, all_reduce_max, all_reduce_sum, broadcast, rank_and_world_size, settle
from .files import atomic_file, fill_folder, image_format, save_image, write_bytes, write_json, write_text
from .hub import LasersHubMixin, create_repository, push_folder, write_model_card
from .import_utils import requires
from .model_loading import LasersModelMixin


__all__ = [
    "CommandParser",
    "LasersHubMixin",
    "LasersModelMixin",
    "all_gather",
    "all_reduce_max",
    "all_reduce_sum",
    "atomic_file",
    "broadcast",
    "create_repository",
    "fill_folder",
    "hide_token",
    "image_format",
    "push_folder",
    "rank_and_world_size",
    "recorded_arguments",
    "requires",
    "save_image",
    "settle",
    "write_bytes",
    "write_json",
    "write_model_card",
    "write_text",
]
