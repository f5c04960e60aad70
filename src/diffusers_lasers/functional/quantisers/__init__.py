"""Codebooks: nearest codewords and running means, several indices for one vector, and the order of the codewords."""

from .codebook import codeword_statistics, kmeans, nearest_codewords, update_codebook
from .ordering import ORDERS, OrderScore, codebook_order, score_order
from .subquantizers import decode_channels, decode_product, decode_residual, encode_product, encode_residual


__all__ = [
    "ORDERS",
    "OrderScore",
    "codebook_order",
    "codeword_statistics",
    "decode_channels",
    "decode_product",
    "decode_residual",
    "encode_product",
    "encode_residual",
    "kmeans",
    "nearest_codewords",
    "score_order",
    "update_codebook",
]
