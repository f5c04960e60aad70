"""Sparse codes of signals, and signals from sparse codes.

`greedy.py` (OMP, OLS) and `thresholding.py` (IHT, FISTA) are what a user calls, by name in `by_name.py`. Which
implementation of a greedy pursuit runs, compiled or in tensor operations, is decided in `greedy.py` and nowhere else.
"""

from .by_name import PURSUITS, get_pursuit
from .greedy import ols, omp
from .synthesis import projection_synthesis, synthesize
from .thresholding import fista, iht


__all__ = ["PURSUITS", "fista", "get_pursuit", "iht", "ols", "omp", "projection_synthesis", "synthesize"]
