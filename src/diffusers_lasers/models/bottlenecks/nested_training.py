"""Training for nested codes: with a stated probability a step decodes only the first slots of its codes.

The decoder then sees codes of every length, so that a code that is cut later decodes better (stage dropout of
SoundStream, 2021, section III-C). The number of slots is a function of a counter of steps. The counter is saved with
the model: all ranks draw the same number, and a resumed training draws the same numbers as one that was not stopped.
"""

from __future__ import annotations

import random

import torch

from ...utils.distributed import broadcast


class NestedTraining:
    """Base of bottlenecks with nested codes, beside [`Bottleneck`]."""

    def _set_dropout(self, probability: float) -> None:
        """Registers the counter `dropout_steps` `()`, where `probability` is not 0."""
        self._dropout = probability
        if probability:
            self.register_buffer("dropout_steps", torch.zeros((), dtype=torch.int64))

    def _start_dropout(self, generator: torch.Generator | None) -> None:
        """Draws where the counter starts; the same on all ranks."""
        if self._dropout:
            device = "cpu" if generator is None else generator.device
            start = torch.randint(2**31, (), generator=generator, device=device)
            self.dropout_steps.copy_(broadcast(start.to(self.dropout_steps.device)))

    def _kept_slots(self) -> int | None:
        """First slots that this forward pass decodes; `None` for all, as always in evaluation."""
        if not (self.training and self._dropout):
            return None
        draw = random.Random(int(self.dropout_steps))
        self.dropout_steps += 1
        return draw.randint(1, len(self.levels)) if draw.random() < self._dropout else None
