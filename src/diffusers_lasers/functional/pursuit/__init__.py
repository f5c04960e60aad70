"""Sparse codes of signals, and signals from sparse codes.

Users call `greedy.py` (OMP, OLS) and `thresholding.py` (IHT, FISTA), or choose by name with `by_name.py`. Only
`greedy.py` decides whether a greedy pursuit runs compiled or in tensor operations.
"""

from .by_name import PURSUITS, get_pursuit
from .greedy import ols, omp
from .synthesis import projection_synthesis, synthesize
from .thresholding import fista, iht


__all__ = ["PURSUITS", "fista", "get_pursuit", "iht", "ols", "omp", "projection_synthesis", "synthesize"]
