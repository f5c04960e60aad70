"""Fitting dictionaries and codebooks to fixed signals: state, but no `nn.Module`."""

from .online_dictionary import OnlineDictionaryLearner
from .patches import sample_patches
from .quantizers import QUANTIZERS, fit_quantizer


__all__ = ["OnlineDictionaryLearner", "QUANTIZERS", "fit_quantizer", "sample_patches"]
