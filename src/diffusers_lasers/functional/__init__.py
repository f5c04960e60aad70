"""Mathematics as free functions on tensors: no state, no configuration, no files."""

from .codebook import codeword_statistics, kmeans, nearest_codewords, update_codebook
from .color import rgb_to_ycbcr, ycbcr_to_rgb
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
from .greedy import ols, omp
from .kernels import get_backend, set_backend
from .ordering import ORDERS, OrderScore, codebook_order, score_order
from .patches import latents_to_signals, patch_grid, signals_to_latents
from .pursuits import PURSUITS, get_pursuit
from .rates import entropy, perplexity, support_bits
from .subquantizers import decode_product, decode_residual, encode_product, encode_residual
from .synthesis import projection_synthesis, synthesize
from .thresholding import fista, iht


__all__ = [
    "ORDERS",
    "OrderScore",
    "PURSUITS",
    "accumulate_statistics",
    "block_coordinate_update",
    "codebook_order",
    "codeword_statistics",
    "decode_product",
    "decode_residual",
    "dictionary_from_signals",
    "encode_product",
    "encode_residual",
    "entropy",
    "fista",
    "forgetting_factor",
    "get_backend",
    "get_pursuit",
    "iht",
    "kmeans",
    "latents_to_signals",
    "mutual_coherence",
    "nearest_codewords",
    "normalize_atoms",
    "ols",
    "omp",
    "patch_grid",
    "perplexity",
    "project_to_tangent",
    "projection_synthesis",
    "random_dictionary",
    "revive_atoms",
    "rgb_to_ycbcr",
    "score_order",
    "set_backend",
    "signals_to_latents",
    "support_bits",
    "synthesize",
    "update_codebook",
    "ycbcr_to_rgb",
]
