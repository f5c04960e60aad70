"""Dictionaries: atoms on the unit sphere, their similarity, and their update from statistics of codes."""

from .atoms import (
    dictionary_from_signals,
    draw_signals,
    draw_subset,
    mutual_coherence,
    normalize_atoms,
    project_to_tangent,
    random_dictionary,
    revive_atoms,
)
from .coherence import similar_atoms, welch_bound
from .online_learning import accumulate_statistics, block_coordinate_update, forgetting_factor


__all__ = [
    "accumulate_statistics",
    "block_coordinate_update",
    "dictionary_from_signals",
    "draw_signals",
    "draw_subset",
    "forgetting_factor",
    "mutual_coherence",
    "normalize_atoms",
    "project_to_tangent",
    "random_dictionary",
    "revive_atoms",
    "similar_atoms",
    "welch_bound",
]
