"""Dictionaries and codebooks fitted to fixed signals. Nothing here is an `nn.Module`."""

from .codebooks import fit_quantizer
from .online_dictionary import OnlineDictionaryLearner


__all__ = [
    "OnlineDictionaryLearner",
    "fit_quantizer",
]
