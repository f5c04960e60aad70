"""Mathematics as free functions on tensors: no state, no configuration, no files."""

from .categorical import (
    absorb,
    expected_number,
    gumbel_noise,
    gumbel_softmax,
    index_to_number,
    number_to_index,
    sample_categorical,
    scramble,
    uniform_noise,
)
from .codebook import codeword_statistics, kmeans, nearest_codewords, update_codebook
from .coherence import similar_atoms, welch_bound
from .color import rgb_to_ycbcr, ycbcr_to_rgb
from .degradations import center_mask, hide, random_masks, reduce_bicubic, upscale_bicubic
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
from .diffusion import (
    BETA_SCHEDULES,
    PREDICTION_TYPES,
    add_gaussian_noise,
    implied_noise,
    make_betas,
    min_snr_weights,
    posterior_mean_variance,
    signal_to_noise,
)
from .greedy import ols, omp
from .kernels import get_backend, set_backend
from .ordering import ORDERS, OrderScore, codebook_order, score_order
from .patches import latents_to_signals, patch_grid, signals_to_latents
from .pursuits import PURSUITS, get_pursuit
from .rates import count_supports, entropy, perplexity, support_bits
from .subquantizers import decode_channels, decode_product, decode_residual, encode_product, encode_residual
from .synthesis import projection_synthesis, synthesize
from .thresholding import fista, iht


__all__ = [
    "BETA_SCHEDULES",
    "ORDERS",
    "OrderScore",
    "PREDICTION_TYPES",
    "PURSUITS",
    "absorb",
    "accumulate_statistics",
    "add_gaussian_noise",
    "block_coordinate_update",
    "center_mask",
    "codebook_order",
    "codeword_statistics",
    "count_supports",
    "decode_channels",
    "decode_product",
    "decode_residual",
    "dictionary_from_signals",
    "encode_product",
    "encode_residual",
    "entropy",
    "expected_number",
    "fista",
    "forgetting_factor",
    "get_backend",
    "get_pursuit",
    "gumbel_noise",
    "gumbel_softmax",
    "hide",
    "iht",
    "implied_noise",
    "index_to_number",
    "kmeans",
    "latents_to_signals",
    "make_betas",
    "min_snr_weights",
    "mutual_coherence",
    "nearest_codewords",
    "normalize_atoms",
    "number_to_index",
    "ols",
    "omp",
    "patch_grid",
    "perplexity",
    "posterior_mean_variance",
    "project_to_tangent",
    "projection_synthesis",
    "random_dictionary",
    "random_masks",
    "reduce_bicubic",
    "revive_atoms",
    "rgb_to_ycbcr",
    "sample_categorical",
    "score_order",
    "scramble",
    "set_backend",
    "signal_to_noise",
    "signals_to_latents",
    "similar_atoms",
    "support_bits",
    "synthesize",
    "uniform_noise",
    "update_codebook",
    "upscale_bicubic",
    "welch_bound",
    "ycbcr_to_rgb",
]
