"""Dictionaries and codebooks fitted to fixed signals. Nothing here is an `nn.Module`."""

from .codebooks import QUANTIZERS, fit_quantizer
from .online_dictionary import OnlineDictionaryLearner
from .patch_sampling import sample_patches


__all__ = [
    "OnlineDictionaryLearner",
    "fit_quantizer",
]
