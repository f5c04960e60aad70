"""The pursuits by name, and when to take which.

All take `(signals, dictionary, sparsity, tolerance=None, *, check_finite=True)` and return `(indices, coefficients)`,
least-squares coefficients on a support of at most `sparsity` atoms; they differ in how they find it. Mean relative
residual ‖y − Dγ‖ / ‖y‖ of 256 signals with the default options, measured by `pytest tests/functional/test_pursuits.py
-k relative_residuals`; random dictionaries; 32 bits a coefficient and `support_bits`:

    features, atoms, S   bits   signals       omp     ols     iht     fista
    16, 512, 5            198   Gaussian     0.137   0.127   0.239   0.294
    16, 512, 5            198   sparse       0.100   0.092   0.213   0.230
    64, 1024, 8           321   sparse       0.097   0.097   0.109   0.116
    128, 512, 24          904   sparse       0.087   0.086   0.091   0.107
    128, 512, 24          904   signs        0.256   0.256   0.131   0.095

(sparse: S atoms with normal weights, and noise of a tenth of their length; signs: the weights are ±1).

* `omp` is the default: nested codes, S products with the dictionary, a compiled kernel.
* `ols` leaves a shorter residual where features are few and atoms many, as in a latent space, and costs up to twice as
  much.
* `iht` and `fista` are for signals that are known to be sums of atoms of the dictionary with weights of like magnitude,
  where the first choices of a greedy pursuit are often wrong ones; with tens of atoms a signal `fista` finds nearly
  all. Elsewhere they are worse and many times slower: about `iterations` products with the dictionary, and for `fista`
  twice that.

Plain matching pursuit, without the fit, is not among them: it saves time beside tensor operations only, none beside the
kernel, and its residuals at the same S, hence the same bits, are longer.
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
    The pursuit of that name.

    Args:
        name (`str`): A key of `PURSUITS`: `"omp"`, `"ols"`, `"iht"` or `"fista"`.

    Returns:
        `Callable`: [`omp`], [`ols`], [`iht`] or [`fista`].

    Raises:
        ValueError: If there is no such pursuit.
    """
    if name not in PURSUITS:
        raise ValueError(f"`name` must be one of {', '.join(map(repr, PURSUITS))}, got {name!r}.")
    return PURSUITS[name]
