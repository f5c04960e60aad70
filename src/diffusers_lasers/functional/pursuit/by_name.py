"""The pursuits by name, and when to take which.

All take `(signals, dictionary, sparsity, tolerance=None, *, check_finite=True)` and return `(indices, coefficients)`.
The coefficients are a least-squares fit on a support of at most `sparsity` atoms. The pursuits differ in how they find
the support. The table shows the mean relative residual ‖y − Dγ‖ / ‖y‖ of 256 signals, with random dictionaries and the
default options. A code's bits are `support_bits` and 32 bits for each coefficient. The command is
`pytest tests/functional/test_pursuits.py -k relative_residuals`.

    features, atoms, S   bits   signals       omp     ols     iht     fista
    16, 512, 5            198   Gaussian     0.137   0.127   0.239   0.294
    16, 512, 5            198   sparse       0.100   0.092   0.213   0.230
    64, 1024, 8           321   sparse       0.097   0.097   0.109   0.116
    128, 512, 24          904   sparse       0.087   0.086   0.091   0.107
    128, 512, 24          904   signs        0.256   0.256   0.131   0.095

Sparse signals are sums of S atoms with normal weights, plus noise of a tenth of their length. Signs means that the
weights are ±1.

* `omp` is the default. Its supports are nested, it needs S products with the dictionary, and it has a compiled kernel.
* `ols` leaves a shorter residual where there are few features and many atoms, as in a latent space. It costs up to
  twice as much.
* `iht` and `fista` are for signals that are known to be sums of atoms with weights of similar magnitude. There, the
  first choices of a greedy pursuit are often wrong. With tens of atoms in each signal, `fista` finds nearly all of
  them. For other signals, both are worse and many times slower: `iht` needs about `iterations` products with the
  dictionary, and `fista` twice as many.

Matching pursuit without the least-squares fit is not offered. It is faster than OMP in tensor operations, but not
faster than OMP's kernel, and its residuals are longer at the same S and so at the same bits.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from .greedy import ols, omp
from .thresholding import fista, iht


__all__ = ["PURSUITS", "get_pursuit"]

PURSUITS: dict[str, Callable[..., tuple[torch.Tensor, torch.Tensor]]] = {
    "omp": omp,
    "ols": ols,
    "iht": iht,
    "fista": fista,
}


def get_pursuit(name: str) -> Callable[..., tuple[torch.Tensor, torch.Tensor]]:
    """
    Returns the pursuit with the given name.

    Args:
        name (`str`): A key of `PURSUITS`: `"omp"`, `"ols"`, `"iht"` or `"fista"`.

    Returns:
        `Callable`: [`omp`], [`ols`], [`iht`] or [`fista`].

    Raises:
        ValueError: If no pursuit has this name.
    """
    if name not in PURSUITS:
        raise ValueError(f"`name` must be one of {', '.join(map(repr, PURSUITS))}, got {name!r}.")
    return PURSUITS[name]
