"""Random numbers of a run: a function of its seed and of what they are for, in any process and after a resume."""

from __future__ import annotations

import numpy as np
import torch


def mixed_seed(seed: int, *counters: int) -> int:
    """
    A seed of its own for each draw, well mixed (`numpy.random.SeedSequence`).

    Args:
        seed (`int`): Seed of the run, at least 0.
        counters (`int`): What the draw is for and where it happens, e.g. an epoch; each at least 0.

    Returns:
        `int`: A seed for `torch.Generator.manual_seed`, from 0 to 2⁶³ − 1.
    """
    return int(np.random.SeedSequence([seed, *counters]).generate_state(1, np.uint64)[0] >> np.uint64(1))


def seeded_generator(seed: int, *counters: int, device: torch.device | str = "cpu") -> torch.Generator:
    """
    A generator for one draw; the global one is not touched.

    Args:
        seed (`int`): Seed of the run, at least 0.
        counters (`int`): As those of [`mixed_seed`].
        device (`torch.device`, defaults to `"cpu"`): Where the numbers are drawn.

    Returns:
        `torch.Generator`: Seeded by all of them.
    """
    return torch.Generator(device).manual_seed(mixed_seed(seed, *counters))
