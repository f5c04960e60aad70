"""Mathematics as free functions on tensors: no state, no configuration, no files."""

from .codebook import codeword_statistics, kmeans, nearest_codewords, update_codebook
from .dictionary import (
    accumulate_statistics,
    block_coordinate_update,
    dictionary_from_signals,
    forgetting_factor,
    mutual_coherence,
    normalize_atoms,
    project_to_tangent,
    random_dictionary,
    revive_atoms,
)
from .omp import omp
from .patches import latents_to_signals, patch_grid, signals_to_latents
from .rates import entropy, perplexity, support_bits
from .synthesis import projection_synthesis, synthesize


__all__ = [
    "accumulate_statistics",
    "block_coordinate_update",
    "codeword_statistics",
    "dictionary_from_signals",
    "entropy",
    "forgetting_factor",
    "kmeans",
    "latents_to_signals",
    "mutual_coherence",
    "nearest_codewords",
    "normalize_atoms",
    "omp",
    "patch_grid",
    "perplexity",
    "project_to_tangent",
    "projection_synthesis",
    "random_dictionary",
    "revive_atoms",
    "signals_to_latents",
    "support_bits",
    "synthesize",
    "update_codebook",
]
