"""The arguments of a learner, checked and as values that JSON can hold."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from ..functional.pursuit.by_name import PURSUITS
from ..utils.config_checks import Integer, Number, Optional, Word, check_fields, described


_USES_OF_A_WINDOW = 64  # how often an atom of average use is used within a window
_SHORTEST_WINDOW = 10  # steps
_ALLOWED = {
    **dict.fromkeys(("num_atoms", "sparsity", "batch_size"), Integer()),
    "pursuit": Word(*PURSUITS),
    "tolerance": Optional(Number(0.0, math.inf)),
    "forgetting": Number(low=0.0),
    "revive_every": Optional(Integer(low=0)),
    "revive_fraction": Number(0.0, 1.0),
    "seed": Integer(0, 2**63 - 1),
}
_FLOATING = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


@dataclass(frozen=True)
class LearnerConfig:
    """
    The arguments of [`OnlineDictionaryLearner`] that JSON can hold. If a dictionary was given, `init` is `"given"`.

    Raises:
        ValueError: If an argument is out of range.
    """

    num_atoms: int
    sparsity: int
    batch_size: int
    pursuit: str
    tolerance: float | None
    init: str
    forgetting: float
    revive_every: int | None
    revive_fraction: float
    seed: int
    dtype: str

    def __post_init__(self):
        check_fields(_ALLOWED, vars(self))
        if self.sparsity > self.num_atoms:
            raise ValueError(f"`sparsity` must be at most `num_atoms` ({self.num_atoms}), got {self.sparsity}.")
        if not isinstance(self.init, str) or self.init not in ("signals", "random", "given"):
            raise ValueError(f"`init` must be 'signals', 'random' or a tensor, got {self.init!r}.")
        if self.dtype not in ("float32", "float64"):
            raise ValueError(f"`dtype` must be torch.float32 or torch.float64, got torch.{self.dtype}.")

    def window(self, ranks: int) -> int:
        """
        Number of steps over which the use of atoms is counted.

        Args:
            ranks (`int`): Number of ranks that share a minibatch.

        Returns:
            `int`: `revive_every` if it is given. Otherwise the number of steps in which an atom of average use is used
            64 times, at least 10.
        """
        if self.revive_every is not None:
            return self.revive_every
        uses = self.sparsity * self.batch_size * ranks / self.num_atoms  # of an average atom in one step
        return max(_SHORTEST_WINDOW, math.ceil(_USES_OF_A_WINDOW / uses))


def check_init(init: torch.Tensor, atoms: int) -> None:
    """
    Checks a given first dictionary.

    Args:
        init (`torch.Tensor` of shape `(features, atoms)`): The dictionary.
        atoms (`int`): Number of atoms that it must have.

    Raises:
        ValueError: If it has another shape or type, or is not finite.
    """
    fitting = isinstance(init, torch.Tensor) and init.ndim == 2 and init.shape[0] > 0 and init.shape[1] == atoms
    if not fitting or init.dtype not in _FLOATING or not init.isfinite().all():
        raise ValueError(
            f"`init` must be finite and floating point of shape (features, {atoms}), got {described(init)}."
        )
