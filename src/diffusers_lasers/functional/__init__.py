"""Mathematics as free functions on tensors: no state, no configuration, no files.

Each folder holds one idea. All public names can be imported from here too.
"""

from .dictionary import mutual_coherence, normalize_atoms, random_dictionary, welch_bound
from .diffusion import gumbel_softmax, index_to_number, min_snr_weights, number_to_index
from .images import latents_to_signals, rgb_to_ycbcr, signals_to_latents, ycbcr_to_rgb
from .kernels import get_backend, set_backend
from .pursuit import fista, get_pursuit, iht, ols, omp, synthesize
from .quantisers import (
    codebook_order,
    decode_product,
    decode_residual,
    encode_product,
    encode_residual,
    kmeans,
    nearest_codewords,
)
from .rates import entropy, perplexity, support_bits


__all__ = [
    "codebook_order",
    "decode_product",
    "decode_residual",
    "encode_product",
    "encode_residual",
    "entropy",
    "fista",
    "get_backend",
    "get_pursuit",
    "gumbel_softmax",
    "iht",
    "index_to_number",
    "kmeans",
    "latents_to_signals",
    "min_snr_weights",
    "mutual_coherence",
    "nearest_codewords",
    "normalize_atoms",
    "number_to_index",
    "ols",
    "omp",
    "perplexity",
    "random_dictionary",
    "rgb_to_ycbcr",
    "set_backend",
    "signals_to_latents",
    "support_bits",
    "synthesize",
    "welch_bound",
    "ycbcr_to_rgb",
]
