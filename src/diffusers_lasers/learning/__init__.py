"""Fitting dictionaries to fixed signals: state, but no `nn.Module`."""

from .online_dictionary import OnlineDictionaryLearner


__all__ = ["OnlineDictionaryLearner"]
