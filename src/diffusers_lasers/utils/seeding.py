"""Random numbers of a run. They depend only on its seed and their purpose, in any process and after a resumption."""

from __future__ import annotations

import numpy as np
import torch


def mixed_seed(seed: int, *counters: int) -> int:
    """
    An independent seed for each draw, mixed by `numpy.random.SeedSequence`.

    Args:
        seed (`int`): Seed of the run, at least 0.
        counters (`int`): Numbers for the purpose and the position of the draw, e.g. an epoch; each at least 0.

    Returns:
        `int`: A seed for `torch.Generator.manual_seed`, from 0 to 2⁶³ − 1.
    """
    return int(np.random.SeedSequence([seed, *counters]).generate_state(1, np.uint64)[0] >> np.uint64(1))


def seeded_generator(seed: int, *counters: int, device: torch.device | str = "cpu") -> torch.Generator:
    """
    A generator for one draw. The global generator is not used.

    Args:
        seed (`int`): Seed of the run, at least 0.
        counters (`int`): Numbers for the purpose and the position of the draw, as in [`mixed_seed`].
        device (`torch.device`, defaults to `"cpu"`): Device of the generator.

    Returns:
        `torch.Generator`: A generator seeded by all of them.
    """
    return torch.Generator(device).manual_seed(mixed_seed(seed, *counters))
