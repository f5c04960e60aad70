r"""Online dictionary learning from fixed signals (Mairal et al., 2010; LASERS, 2024, supplement 8).

    min_D  E_y  min_γ ½ ‖y − D γ‖²   subject to  ‖γ‖₀ ≤ S,  ‖d_k‖₂ = 1

is solved by alternation over minibatches: code a minibatch with the current atoms, add the codes to the statistics A
and B (eqs 23–26), and update the atoms one after the other (eqs 27, 28). The mathematics is in
`functional/dictionary/online_learning.py` and `statistics.py`. What we add:

* *Initialisation* from signals without the direction that they share; see `initialisation.py`.
* *Faster forgetting.* The paper's β is replaced by βᵖ with p = 4. After t minibatches, minibatch s has the weight
  (s / t)⁴ and not s / t, since its codes come from an older dictionary. A larger p is better after very many
  minibatches, and worse before.
* *Revival.* An atom that no code used for a window of steps is replaced by a signal. Signals are drawn in proportion to
  the energy of their residuals. The rows and columns of the atom in A and B are set to zero, because they describe the
  old atom, and eq 27 would pull the new one back to it. In a window, an atom of average use is used 64 times. A shorter
  window loses atoms that rare signals need, above all for large S.
* *Exact resumption.* Every draw is seeded by (seed, purpose, position). So a run that is resumed from its tensors and
  counters gives the same result as one that was never stopped.
* *Ranks.* ξ counts the signals of all ranks. Rank 0 draws the first dictionary and the revived atoms.

`benchmarks/benchmark_dictionary_learning.py --variants` measures the effect of initialisation, forgetting and revival.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import asdict
from typing import Any

import numpy as np
import torch

from ..functional.dictionary import normalize_atoms, random_dictionary
from ..functional.dictionary.online_learning import block_coordinate_update
from ..functional.operands import as_tensor
from ..functional.pursuit.by_name import PURSUITS
from ..functional.pursuit.synthesis import synthesize
from ..utils.config_checks import Integer, Number, Optional, check_fields
from ..utils.distributed import broadcast, rank_and_world_size
from ..utils.import_utils import requires
from ..utils.seeding import seeded_generator
from .initialisation import first_dictionary
from .learner_config import LearnerConfig, check_init
from .minibatches import Position, as_signals, leading_signals, minibatches
from .revival import revive_unused
from .state_checks import check_state
from .state_files import read_state, write_state
from .statistics import ScaledStatistics


__all__ = ["OnlineDictionaryLearner"]

_INITIALISATION, _REVIVAL = 1, 2  # purposes of draws; see `minibatches._ORDER`
_LEADING_SIGNALS = 10  # number of signals for each atom, from which the first dictionary is made
_JITTER = 0.05  # noise on a revived atom, relative to its norm
_BLOCK = 65536  # signals encoded at a time
_FIT = {"passes": Integer(), "steps": Optional(Integer()), "change_tolerance": Number(low=0.0)}


class OnlineDictionaryLearner:
    r"""
    Creates a learner that fits a dictionary to fixed signals, such as latents of a frozen autoencoder or image patches.

    Args:
        num_atoms (`int`): Number K of atoms of the dictionary, from 1 to 2³¹ − 1.
        sparsity (`int`): Largest number S of atoms of a signal, from 1 to `num_atoms`.
        batch_size (`int`, *optional*, defaults to 512): Number of signals in a minibatch, on each rank; at least 1.
        pursuit (`str`, *optional*, defaults to `"omp"`): Method that codes signals: `"omp"`, `"ols"`, `"iht"` or
            `"fista"`.
        tolerance (`float`, *optional*): Residual norm at which a signal takes no further atom, in the units of the
            signals; at least 0. Defaults to `None`: only rounding sets the limit.
        init (`str`, or `torch.Tensor` or `numpy.ndarray` of shape `(features, num_atoms)`, *optional*, defaults to
            `"signals"`): First atoms. `"signals"` takes random signals without the direction that they share
            (`initialisation.py`). `"random"` draws uniformly from the sphere. Given atoms are normalised.
        forgetting (`float`, *optional*, defaults to 4.0): Exponent p of the forgetting factor of eq 25, at least 0. The
            paper has 1; 0 forgets nothing.
        revive_every (`int`, *optional*): Number of steps of a window, after which unused atoms are replaced. 0 disables
            revival. Defaults to `None`: the number of steps in which an atom of average use is used 64 times, at least
            10.
        revive_fraction (`float`, *optional*, defaults to 0.05): Largest share of the atoms that are replaced at once,
            in [0, 1]; the number of atoms is rounded up.
        seed (`int`, *optional*, defaults to 0): Seed of the order of the signals, the first atoms and the revivals, at
            least 0. The global generator is not used.
        device (`torch.device` or `str`, *optional*): Device of the computation. Defaults to `None`: the device of the
            first signals.
        dtype (`torch.dtype`, *optional*, defaults to `torch.float32`): Type of all tensors of the learner,
            `torch.float32` or `torch.float64`. Signals may have any floating-point type.

    Attributes:
        dictionary (`torch.Tensor` of shape `(features, atoms)`): The atoms, unit-norm columns. All tensors are `None`
            before the first signals.
        A (`torch.Tensor` of shape `(atoms, atoms)`): Statistics of the codes (eq 23).
        B (`torch.Tensor` of shape `(features, atoms)`): Statistics of signals and codes (eq 24).
        step (`int`): Number of minibatches learned.
        position ([`Position`]): Passes, items and minibatches completed by `fit`.
        change (`float` or `None`): ‖D_t − D_{t−1}‖ / ‖D_{t−1}‖ of the last step (Frobenius norms), if `fit` had a
            `change_tolerance`.
        counts (`torch.Tensor` of shape `(atoms,)`): Number of codes that used each atom in the current window, over all
            ranks; int64. Without revival, the window is all steps so far.
        revived (`torch.Tensor`): Number of atoms replaced so far, 0-dim; int64.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        ```py
        learner = OnlineDictionaryLearner(num_atoms=512, sparsity=5).fit(signals, passes=3)
        indices, coefficients = learner.encode(signals)
        ```
    """

    def __init__(
        self,
        num_atoms: int,
        sparsity: int,
        batch_size: int = 512,
        pursuit: str = "omp",
        tolerance: float | None = None,
        init: str | torch.Tensor = "signals",
        forgetting: float = 4.0,
        revive_every: int | None = None,
        revive_fraction: float = 0.05,
        seed: int = 0,
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float32,
    ):
        init = as_tensor("init", init) if isinstance(init, np.ndarray) else init
        given = isinstance(init, torch.Tensor)
        if isinstance(init, str) and init == "given":  # the word of a configuration for a tensor
            raise ValueError("`init` must be 'signals', 'random' or a tensor, got 'given'.")
        self.config = LearnerConfig(
            num_atoms=num_atoms,
            sparsity=sparsity,
            batch_size=batch_size,
            pursuit=pursuit,
            tolerance=tolerance,
            init="given" if given else init,
            forgetting=forgetting,
            revive_every=revive_every,
            revive_fraction=revive_fraction,
            seed=seed,
            dtype=str(dtype).removeprefix("torch."),
        )
        if given:
            check_init(init, num_atoms)
        self.init = init.detach().clone() if given else init
        self.device, self.dtype = None if device is None else torch.device(device), dtype
        self.reset()

    def reset(self) -> None:
        """Forgets everything that was learned."""
        self.step, self.position, self.change = 0, Position(), None
        self.dictionary = self.revived = self._statistics = None

    @property
    def A(self) -> torch.Tensor | None:
        """Statistics of the codes (eq 23), `(atoms, atoms)`."""
        return None if self._statistics is None else self._statistics.A * self._statistics.scale

    @property
    def B(self) -> torch.Tensor | None:
        """Statistics of signals and codes (eq 24), `(features, atoms)`."""
        return None if self._statistics is None else self._statistics.B * self._statistics.scale

    @property
    def counts(self) -> torch.Tensor | None:
        """Number of codes that used each atom in the current window, `(atoms,)`."""
        return None if self._statistics is None else self._statistics.counts

    def fit(
        self,
        signals: torch.Tensor | np.ndarray | Iterable[torch.Tensor | np.ndarray],
        passes: int = 1,
        steps: int | None = None,
        *,
        change_tolerance: float = 0.0,
        resume: bool = False,
        progress: bool = True,
        callback: Callable[[OnlineDictionaryLearner], Any] | None = None,
    ) -> OnlineDictionaryLearner:
        """
        Learns from all signals, in minibatches in random order.

        Args:
            signals (`torch.Tensor` or `numpy.ndarray` of shape `(N, features)`, or an iterable of such): The signals,
                on any device. Those on the CPU may be mapped from a file. The minibatches of an iterable are drawn from
                one item after the other; items with many signals in random order are best. With several ranks, each
                rank gives its own signals.
            passes (`int`, *optional*, defaults to 1): Number of passes over the signals, at least 1.
            steps (`int`, *optional*): Number of minibatches, at least 1. If it is given, `passes` is ignored.
            change_tolerance (`float`, *optional*, defaults to 0.0): The fit ends early after a step with a relative
                change ‖D_t − D_{t−1}‖ / ‖D_{t−1}‖ of at most this, like `tol` of scikit-learn's
                `MiniBatchDictionaryLearning`. With 0 it never ends early, and the change is not computed, for which the
                host would have to wait.
            resume (`bool`, *optional*, defaults to `False`): Whether to continue from the current state until `passes`
                or `steps` are reached, both counted from the first step. An iterable must give the same items again.
                Otherwise the learner is reset first.
            progress (`bool`, *optional*, defaults to `True`): Whether to show a progress bar with the objective of a
                recent minibatch.
            callback (`Callable`, *optional*): Called with the learner after each minibatch, e.g. to save it. A learner
                saved in such a call can be resumed, also if the call raised an exception.

        Returns:
            [`OnlineDictionaryLearner`]: The learner.

        Raises:
            ValueError: If the signals are not finite floating-point matrices of one length, if there are none, if
                `passes` or `steps` is below 1, or if `change_tolerance` is not a finite number of at least 0.
        """
        check_fields(_FIT, {"passes": passes, "steps": steps, "change_tolerance": change_tolerance})
        if isinstance(signals, np.ndarray):
            signals = as_signals(signals)
        if not resume:
            self.reset()
        if self.dictionary is None:
            generator = seeded_generator(self.config.seed, _INITIALISATION)
            head, signals = leading_signals(signals, _LEADING_SIGNALS * self.config.num_atoms, generator)
            self._initialise(head, generator)
        batches = minibatches(
            signals,
            self.config.batch_size,
            self.config.seed,
            self.position,
            passes if steps is None else None,
            self.dictionary.shape[0],
            self.device,
        )
        with self._bar(signals, passes, steps) if progress else nullcontext() as bar:
            while (steps is None or self.step < steps) and not self._converged(change_tolerance):
                batch = next(batches, None)
                if batch is None:
                    break
                before = self.dictionary
                self._learn(batch.to(self.device, self.dtype))
                self.change = self._change_from(before) if change_tolerance else None
                self.position.batch += 1
                if bar is not None and bar.update():
                    bar.set_postfix(objective=f"{self.objective(batch):.4g}" if len(batch) else "–", refresh=False)
                if callback is not None:
                    callback(self)
        return self

    def _change_from(self, before: torch.Tensor) -> float:
        """The relative change of the dictionary. All ranks get the same number, since they have to end together."""
        change = (self.dictionary - before).norm() / before.norm().clamp_min(1e-30)
        return float(broadcast(change))

    def _converged(self, change_tolerance: float) -> bool:
        return bool(change_tolerance) and self.change is not None and self.change <= change_tolerance

    def partial_fit(self, batch: torch.Tensor | np.ndarray) -> OnlineDictionaryLearner:
        """
        Learns from one given minibatch. The first minibatch also initialises the dictionary.

        Args:
            batch (`torch.Tensor` or `numpy.ndarray` of shape `(n, features)`): Signals. The weight of a minibatch is
                proportional to n.

        Returns:
            [`OnlineDictionaryLearner`]: The learner.

        Raises:
            ValueError: If `batch` is not a finite floating-point matrix that fits the dictionary, or if the first one
                has no signal.
        """
        batch = as_signals(batch, None if self.dictionary is None else self.dictionary.shape[0])
        if self.dictionary is None:
            generator = seeded_generator(self.config.seed, _INITIALISATION)
            self._initialise(leading_signals(batch, _LEADING_SIGNALS * self.config.num_atoms, generator)[0], generator)
        self._learn(batch.to(self.device, self.dtype))
        self.change = None
        return self

    def encode(self, signals: torch.Tensor | np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Codes signals with the atoms learned so far.

        Args:
            signals (`torch.Tensor` or `numpy.ndarray` of shape `(N, features)`): Signals, on any device.

        Returns:
            `tuple[torch.Tensor, torch.Tensor]`: Indices `(N, sparsity)`, int64, −1 in unused slots; and coefficients
            `(N, sparsity)`. Both are on the learner's device.

        Raises:
            ValueError: If the signals do not fit the dictionary, or if there is no dictionary yet.
        """
        if self.dictionary is None:
            raise ValueError("The learner has no dictionary before `fit` or `partial_fit`.")
        signals = as_signals(signals, self.dictionary.shape[0])
        codes = [self._pursue(block.to(self.device, self.dtype)) for block in signals.split(_BLOCK)]
        return torch.cat([indices for indices, _ in codes]), torch.cat([coefficients for _, coefficients in codes])

    @torch.no_grad()
    def objective(self, signals: torch.Tensor | np.ndarray | Iterable[torch.Tensor | np.ndarray]) -> float:
        """
        Mean of ½ ‖y − D γ‖² over signals, which are coded with the atoms learned so far. Ranks are not combined.

        Args:
            signals (`torch.Tensor` or `numpy.ndarray` of shape `(N, features)`, or an iterable of such): Signals.

        Returns:
            `float`: The mean, in squared units of the signals.

        Raises:
            ValueError: If the signals do not fit the dictionary, if there is no signal, or if there is no dictionary.
        """
        total, count = 0.0, 0
        for item in [signals] if isinstance(signals, (torch.Tensor, np.ndarray)) else signals:
            item = as_signals(item)
            for block in item.split(_BLOCK):
                indices, coefficients = self.encode(block)
                residual = block.to(self.device, self.dtype) - synthesize(indices, coefficients, self.dictionary)
                total += 0.5 * residual.square().sum().item()
                count += len(block)
        if count == 0:
            raise ValueError("`signals` must hold at least one signal, got none.")
        return total / count

    def _initialise(self, head: torch.Tensor, generator: torch.Generator) -> None:
        """Makes the first dictionary from signals `(n, features)`. All ranks take that of rank 0."""
        self.device = head.device if self.device is None else self.device
        features = head.shape[1]
        if isinstance(self.init, torch.Tensor):
            if self.init.shape[0] != features:
                raise ValueError(f"`init` must have {features} features like `signals`, got {self.init.shape[0]}.")
            dictionary = normalize_atoms(self.init.to(self.dtype))
        elif self.init == "random":
            dictionary = random_dictionary(features, self.config.num_atoms, generator, head.device, self.dtype)
        else:
            dictionary = first_dictionary(head.to(self.dtype), self.config.num_atoms, generator)
        self.dictionary = broadcast(dictionary.to(self.device, self.dtype).contiguous())
        self.revived = torch.zeros((), dtype=torch.int64, device=self.device)
        self._statistics = ScaledStatistics(
            features, self.config.num_atoms, self.device, self.dtype, self.config.forgetting
        )

    def _pursue(self, signals: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return PURSUITS[self.config.pursuit](signals, self.dictionary, self.config.sparsity, self.config.tolerance)

    def _learn(self, signals: torch.Tensor) -> None:
        """One step from a minibatch `(n, features)`."""
        indices, coefficients = self._pursue(signals)
        self.step += 1
        statistics, ranks = self._statistics, rank_and_world_size()[1]
        statistics.add(signals, indices, coefficients, self.step, self.config.batch_size * ranks)
        window = self.config.window(ranks)
        if window and self.step % window == 0:
            self._revive(signals, indices, coefficients)
        self.dictionary = block_coordinate_update(self.dictionary, statistics.A, statistics.B)

    @torch.no_grad()
    def _revive(self, signals: torch.Tensor, indices: torch.Tensor, coefficients: torch.Tensor) -> None:
        """Replaces atoms that were not used in the window by badly coded signals of the minibatch. Nothing is decided
        on the host."""
        limit = math.ceil(self.config.revive_fraction * self.config.num_atoms)
        generator = seeded_generator(self.config.seed, _REVIVAL, self.step)
        self.dictionary, dead = revive_unused(
            self.dictionary, self.counts, signals, indices, coefficients, limit, _JITTER, generator
        )
        self._statistics.forget(dead)
        self.revived += dead.sum()
        self.counts.zero_()

    def _bar(self, signals, passes: int, steps: int | None) -> Any:
        """A progress bar over the minibatches, shown on rank 0."""
        total = steps
        if steps is None and isinstance(signals, torch.Tensor):
            total = passes * -(-len(signals) // self.config.batch_size)
        disable = rank_and_world_size()[0] != 0
        tqdm = requires("tqdm.auto", "training").tqdm
        return tqdm(total=total, initial=self.step, desc="dictionary", unit="batch", mininterval=1.0, disable=disable)

    def state_dict(self) -> dict[str, Any]:
        """
        The state from which a learner with the same arguments continues exactly.

        Returns:
            `dict`: Copies of tensors, and values that JSON can hold.
        """
        state = {"config": asdict(self.config), "step": self.step, "position": list(vars(self.position).values())}
        state["change"] = self.change
        if isinstance(self.init, torch.Tensor):
            state["init"] = self.init.clone()
        if self.dictionary is not None:
            state |= {"dictionary": self.dictionary.clone(), "revived": self.revived.clone()}
            state |= self._statistics.state_dict()
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """
        Loads a saved state to the device of this learner, or to the state's device if the learner has none.

        Args:
            state (`dict`): A result of `state_dict`.

        Raises:
            ValueError: If the state comes from a learner with other arguments, or has wrong shapes or values that are
                not finite. The learner is then unchanged.
        """
        theirs = check_state(state)
        for name, value in asdict(self.config).items():
            if getattr(theirs, name) != value:
                raise ValueError(
                    f"`state` must have {name} {value!r} like this learner, got {getattr(theirs, name)!r}."
                )
        self.reset()
        self.step, self.position, self.change = state["step"], Position(*state["position"]), state.get("change")
        self.init = state.get("init", self.init)
        if "dictionary" not in state:
            return
        self.device = state["dictionary"].device if self.device is None else self.device
        self.dictionary = state["dictionary"].to(self.device, copy=True)
        self.revived = state["revived"].to(self.device, copy=True)
        self._statistics = ScaledStatistics(*self.dictionary.shape, self.device, self.dtype, self.config.forgetting)
        self._statistics.load_state_dict(state)

    def save(self, path: str | os.PathLike) -> None:
        """
        Writes the state and the arguments to one safetensors file. With several ranks, call it on one of them.

        The file is written completely or not at all.

        Args:
            path (`str` or `os.PathLike`): The file, in an existing folder. An existing file is replaced.
        """
        write_state(path, type(self).__name__, self.state_dict())

    @classmethod
    def load(cls, path: str | os.PathLike, device: torch.device | str | None = None) -> OnlineDictionaryLearner:
        """
        Reads a learner from a file.

        Args:
            path (`str` or `os.PathLike`): A file that [`~OnlineDictionaryLearner.save`] wrote.
            device (`torch.device` or `str`, *optional*): Device of the learner. Defaults to `None`: the CPU.

        Returns:
            [`OnlineDictionaryLearner`]: The learner. `fit(signals, …, resume=True)` continues its fit.

        Raises:
            FileNotFoundError: If the file does not exist.
            ValueError: If the file was cut off or changed, is another one, or holds what no learner can be.
        """
        state = read_state(path, cls.__name__)
        config = check_state(state)
        special = {"init": state.get("init", config.init), "dtype": getattr(torch, config.dtype)}
        learner = cls(**asdict(config) | special, device=device)
        learner.load_state_dict(state)
        return learner
