"""Priors over codes: what a code's symbols cost in bits, files of that size, and random codes."""

from .factorized_prior import FactorizedPrior, PriorOutput


__all__ = ["FactorizedPrior", "PriorOutput"]
