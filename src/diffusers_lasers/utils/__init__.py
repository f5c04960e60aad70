"""Helpers without mathematics: files, the Hub, registration in diffusers, ranks, optional packages."""

from .command_line import CommandParser, hide_token, recorded_arguments
from .distributed import (
    all_gather,
    all_reduce_max,
    all_reduce_sum,
    broadcast,
    rank_and_world_size,
    wait_after_collectives,
)
from .files import atomic_file, fill_folder, image_format, save_image, write_bytes, write_json, write_text
from .hub import LasersHubMixin, create_repository, push_folder, write_model_card
from .import_utils import requires
from .model_loading import LasersModelMixin


__all__ = [
    "LasersHubMixin",
    "LasersModelMixin",
]
