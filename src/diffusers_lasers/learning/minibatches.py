r"""Minibatches of fixed signals, in an order that is a function of (seed, position) alone.

Signals come as items: matrices `(n, features)`, one (a tensor) or many (an iterable). The n signals of item i of pass p
are visited in the order of a permutation π seeded by (seed, p, i), ξ at a time: minibatch j holds π(jξ), …, π((j + 1)ξ
− 1). So the position (p, i, j) is all that a run has to remember to go on where it stopped, and no state of a
generator.

Over ranks, minibatch j of one rank meets minibatch j of the others. A rank that has fewer of them, or fewer items,
gives empty ones, since a reduction waits for every rank.
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


_ORDER = 0  # first counter of the generators that order signals; whoever draws for another purpose takes another


@dataclass
class Position:
    """
    Where a run stands in its signals.

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
    Refuses what is no matrix of signals.

    Args:
        signals (`torch.Tensor` or `numpy.ndarray` of shape `(N, features)`): Signals; floating point.
        features (`int`, *optional*): What their length has to be.

    Returns:
        `torch.Tensor` of shape `(N, features)`: The signals; those of an array share its memory.

    Raises:
        ValueError: If it is no floating-point matrix, or of another length.
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
        raise ValueError(f"`signals` must have {features} features as the dictionary, got {signals.shape[1]}.")
    return signals


def leading_signals(
    signals: torch.Tensor | Iterable[torch.Tensor], amount: int, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor | Iterable[torch.Tensor]]:
    """
    Signals to start from: random ones of a tensor, the first ones of an iterable.

    Args:
        signals (`torch.Tensor` of shape `(N, features)`, or an iterable of such tensors): All signals.
        amount (`int`): How many are wanted; as many as there are, if fewer. The last item of an iterable comes whole.
        generator (`torch.Generator`): Source of randomness for a tensor.

    Returns:
        `tuple[torch.Tensor, torch.Tensor or Iterable]`: The signals `(n, features)`, and all signals: what was given,
        or for an iterator (which can be read once) one that gives the same.

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

    The caller adds 1 to `position.batch` when it is done with a minibatch; the rest of the position is moved here.

    Args:
        signals (`torch.Tensor` of shape `(N, features)`, or an iterable of such tensors): The signals; the same in
            every pass.
        batch_size (`int`): Signals ξ of a minibatch; the last one of an item has fewer where n is not a multiple.
        seed (`int`): Seed of the order.
        position ([`Position`]): Where to start; it is moved on.
        passes (`int` or `None`): Passes after which the minibatches end; `None`: never.
        features (`int`): Length of a signal.
        device (`torch.device`): Where ranks reduce.

    Yields:
        `torch.Tensor` of shape `(n, features)`: Signals on their own device and in their own dtype, `n <= batch_size`.

    Raises:
        ValueError: If an item is no matrix of such signals, or a pass has no item.
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
