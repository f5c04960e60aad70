r"""Minibatches of fixed signals, in an order that depends on (seed, position) only.

Signals come as items, which are matrices `(n, features)`. A tensor is one item, an iterable gives many. The n signals
of item i in pass p are visited in the order of a permutation π, which is seeded by (seed, p, i). Minibatch j holds the
ξ signals π(jξ), …, π((j + 1)ξ − 1). So a run only has to store the position (p, i, j), and no state of a generator, to
continue where it stopped.

With several ranks, all ranks reduce their minibatches j together. A rank with fewer minibatches or items gives empty
ones, since a reduction waits for every rank.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch

from ..functional.operands import as_tensor
from ..utils.distributed import all_reduce_max
from ..utils.seeding import seeded_generator


_ORDER = 0  # first counter of the generators that order signals; draws for other purposes use other numbers


@dataclass
class Position:
    """
    The position of a run in its signals.

    Args:
        passes (`int`, defaults to 0): Passes completed.
        item (`int`, defaults to 0): Items completed in this pass.
        batch (`int`, defaults to 0): Minibatches completed in this item.
    """

    passes: int = 0
    item: int = 0
    batch: int = 0


def as_signals(signals: torch.Tensor | np.ndarray, features: int | None = None) -> torch.Tensor:
    """
    Checks signals and returns them as a tensor.

    Args:
        signals (`torch.Tensor` or `numpy.ndarray` of shape `(N, features)`): Signals; floating point.
        features (`int`, *optional*): Number of features that they must have.

    Returns:
        `torch.Tensor` of shape `(N, features)`: The signals. If they came as an array, its memory is shared.

    Raises:
        ValueError: If they are not a floating-point matrix, or have another number of features.
    """
    if isinstance(signals, np.ndarray):
        signals = as_tensor("signals", signals)
    if not isinstance(signals, torch.Tensor):
        raise ValueError(
            f"`signals` must be a floating-point tensor of shape (N, features) or an iterable of such tensors, got "
            f"{type(signals).__name__}."
        )
    if signals.ndim != 2 or not signals.is_floating_point() or signals.shape[1] == 0:
        raise ValueError(
            f"`signals` must be floating point of shape (N, features), got {signals.dtype} of shape "
            f"{tuple(signals.shape)}."
        )
    if features is not None and signals.shape[1] != features:
        raise ValueError(f"`signals` must have {features} features like the dictionary, got {signals.shape[1]}.")
    return signals


def leading_signals(
    signals: torch.Tensor | Iterable[torch.Tensor], amount: int, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor | Iterable[torch.Tensor]]:
    """
    Signals for the first dictionary: random ones of a tensor, or the first ones of an iterable.

    Args:
        signals (`torch.Tensor` of shape `(N, features)`, or an iterable of such tensors): All signals.
        amount (`int`): Number of signals. All signals are taken if there are fewer. From an iterable, entire items are
            taken, so that the result may have more.
        generator (`torch.Generator`): Source of randomness for a tensor.

    Returns:
        `tuple[torch.Tensor, torch.Tensor or Iterable]`: The chosen signals `(n, features)`, and all signals. The second
        is `signals`, unless that is an iterator, which can be read only once; then it is one with the same items.

    Raises:
        ValueError: If there is no signal.
    """
    if isinstance(signals, (torch.Tensor, np.ndarray)):
        signals = as_signals(signals)
        order = torch.randperm(len(signals), generator=generator, dtype=torch.int32)[:amount].long()
        head = signals[order.to(signals.device)]
    else:
        if not isinstance(signals, Iterable):
            as_signals(signals)
        iterator, items, count = iter(signals), [], 0
        while count < amount and (item := next(iterator, None)) is not None:
            item = as_signals(item, items[0].shape[1] if items else None)
            items.append(item)
            count += len(item)
        head = torch.cat(items) if items else torch.empty(0, 0)
        if iterator is signals:
            signals = itertools.chain(items, iterator)
    if len(head) == 0:
        raise ValueError("`signals` must hold at least one signal, got none.")
    return head, signals


def minibatches(
    signals: torch.Tensor | Iterable[torch.Tensor],
    batch_size: int,
    seed: int,
    position: Position,
    passes: int | None,
    features: int,
    device: torch.device,
) -> Iterator[torch.Tensor]:
    """
    Yields the minibatches from a position on.

    The caller adds 1 to `position.batch` after each minibatch. `position.item` and `position.passes` are updated here.

    Args:
        signals (`torch.Tensor` of shape `(N, features)`, or an iterable of such tensors): The signals, which must be
            the same in every pass.
        batch_size (`int`): Number ξ of signals in a minibatch. The last one of an item may have fewer.
        seed (`int`): Seed of the order.
        position ([`Position`]): Where to start. It is changed in place.
        passes (`int` or `None`): Number of passes after which the minibatches end. `None` means that they never end.
        features (`int`): Length of a signal.
        device (`torch.device`): Device for reductions over ranks.

    Yields:
        `torch.Tensor` of shape `(n, features)`: Signals on their own device and in their own dtype, `n <= batch_size`.

    Raises:
        ValueError: If an item is not a matrix of such signals, or if a pass has no item.
    """
    while passes is None or position.passes < passes:
        items = iter([signals] if isinstance(signals, (torch.Tensor, np.ndarray)) else signals)
        for _ in range(position.item):
            if next(items, None) is None:
                break
        while True:
            item = next(items, None)
            if item is not None:
                item = as_signals(item, features)
            count = -1 if item is None else math.ceil(len(item) / batch_size)
            count = int(all_reduce_max(torch.tensor(count, device=device)))
            if count < 0:  # no rank has an item left
                break
            item = torch.empty(0, features) if item is None else item
            order = None
            for start in range(position.batch * batch_size, count * batch_size, batch_size):
                if order is None:
                    generator = seeded_generator(seed, _ORDER, position.passes, position.item)
                    order = torch.randperm(len(item), generator=generator, dtype=torch.int32)
                yield item[order[start : start + batch_size].to(item.device, torch.int64)]
            position.item, position.batch = position.item + 1, 0
        if position.item == 0:
            raise ValueError(
                f"`signals` must give the same items in every pass, got none in pass {position.passes + 1}."
            )
        position.passes, position.item = position.passes + 1, 0
