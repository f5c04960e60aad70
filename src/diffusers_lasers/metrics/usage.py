r"""How many symbols of a dictionary or a codebook are used.

Let n_k be the number of support slots that hold symbol k, over an entire evaluation set and all ranks, and p = n / Σn:

    H(p) = −Σ_k p_k log₂ p_k  bits for each slot,      perplexity = 2^H,      active = |{k : n_k > 0}| / K.

Perplexity is the number of equally used symbols with the same entropy. It is at most K. A collapsed code that always
takes the same S atoms has perplexity S. Equation 17 of LASERS (2024) is not defined for several atoms at a site. The
quantity in its released code, the entropy of a softmax over γ, gives 507 of 512 for such a collapsed code. Sparse codes
also have an energy-weighted perplexity, where p_k is the share of Σγ² that atom k has. There, atoms that are chosen
often but with small coefficients count little.

In an index code with several codebooks (residual VQ, FSQ), each codebook is counted separately. The entropy is the mean
over codebooks, and the perplexity is 2 to that mean. Pooled counts would treat index 3 of one codebook and index 3 of
another as the same symbol.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from ..coding import Code
from ..functional.rates import entropy
from ..utils.import_utils import requires
from .states import keep_apart


requires("torchmetrics", extra="metrics")

from torchmetrics import Metric  # noqa: E402


__all__ = ["AtomUsage"]


class AtomUsage(Metric):
    r"""
    Creates a streaming usage metric of sparse codes and index codes.

    `update(code)` takes a [`SparseCode`] or an [`IndexCode`]. `compute()` returns a dict of 0-dim float64 tensors:
    `perplexity` (0 if no slot is used), `active` (share of symbols that are used at least once, in [0, 1]),
    `entropy_bits` (bits for each slot), and `energy_perplexity` for sparse codes. Counts are int64 and summed over
    ranks.

    Args:
        num_atoms (`int` or `Sequence[int]`): Size K of the dictionary or codebook that all slots share. For index codes
            with several codebooks, one size for each slot: `code.codebook_sizes`.
        kwargs: Passed on to `torchmetrics.Metric`.

    Raises:
        ValueError: If a size is below 1.

    Example:

    ```python
    >>> import torch
    >>> from diffusers_lasers import IndexCode
    >>> from diffusers_lasers.metrics import AtomUsage

    >>> usage = AtomUsage(num_atoms=4)
    >>> usage.update(IndexCode(torch.tensor([[[[0], [1]], [[1], [0]]]]), levels=(4,), latent_size=(2, 2)))
    >>> {name: value.item() for name, value in usage.compute().items()}
    {'perplexity': 2.0, 'active': 0.5, 'entropy_bits': 1.0}

    ```
    """

    full_state_update = False
    is_differentiable = False
    higher_is_better = True

    def __init__(self, num_atoms: int | Sequence[int], **kwargs: Any):
        super().__init__(**kwargs)
        keep_apart(self)
        self.levels = (num_atoms,) if isinstance(num_atoms, int) else tuple(num_atoms)
        if not self.levels or min(self.levels) < 1:
            raise ValueError(f"`num_atoms` must be a positive integer or a sequence of them, got {num_atoms!r}.")
        shape = (len(self.levels), max(self.levels))
        self.add_state("counts", torch.zeros(shape, dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("energy", torch.zeros(shape[1], dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, code: Code) -> None:
        """
        Adds the codes of a batch.

        Args:
            code ([`SparseCode`] or [`IndexCode`]): Codes with `num_atoms` symbols.

        Raises:
            ValueError: If the code has another alphabet.
        """
        if code.codebook_sizes != self.levels:
            raise ValueError(
                f"`code` must have symbols {self.levels}, as `num_atoms` declared, got {code.codebook_sizes}."
            )
        self.counts += code.usage_counts().to(self.counts.device)
        if code.coefficients is not None:
            used = code.indices >= 0
            squares = code.coefficients[used].double().square()
            self.energy.index_add_(0, code.indices[used].to(self.energy.device), squares.to(self.energy.device))

    def compute(self) -> dict[str, torch.Tensor]:
        """Usage of all codes seen by all ranks."""
        bits = torch.stack([entropy(row) for row in self.counts]).mean()
        used = self.counts.sum() > 0
        result = {
            "perplexity": torch.where(used, torch.exp2(bits), 0.0),
            "active": (self.counts > 0).sum().double() / sum(self.levels),
            "entropy_bits": bits,
        }
        if self.energy.sum() > 0:
            result["energy_perplexity"] = torch.exp2(entropy(self.energy))
        return result
