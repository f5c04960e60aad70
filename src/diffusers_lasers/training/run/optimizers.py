"""The optimiser and the learning rates that the flags describe."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from diffusers.optimization import get_scheduler
from torch.optim.lr_scheduler import LambdaLR

from ...utils.import_utils import requires


def scaled_learning_rate(args: argparse.Namespace, num_processes: int, rate: float | None = None) -> float:
    """A learning rate (default: `--learning_rate`), with `--scale_lr` times the images of a step."""
    accumulation = getattr(args, "gradient_accumulation_steps", 1)
    rate = args.learning_rate if rate is None else rate
    return rate * (args.train_batch_size * accumulation * num_processes if args.scale_lr else 1)


def adam_optimizer(
    groups: Iterable[Any],
    args: argparse.Namespace,
    learning_rate: float | None = None,
    full_precision: Sequence[torch.nn.Parameter] = (),
) -> torch.optim.Optimizer:
    """
    AdamW, with `--use_8bit_adam` that of bitsandbytes, whose moments have 8 bits. Those of the parameters in
    `full_precision` stay floats: [`DictionaryUpkeep`] writes to them.
    """
    kind = torch.optim.AdamW
    if args.use_8bit_adam:
        eight = requires("bitsandbytes", "8bit").optim
        kind = eight.AdamW8bit
        if full_precision:
            eight.GlobalOptimManager.get_instance().override_config(list(full_precision), "optim_bits", 32)
    return kind(
        groups,
        lr=args.learning_rate if learning_rate is None else learning_rate,
        betas=(args.adam_beta1, args.adam_beta2),
        eps=args.adam_epsilon,
        weight_decay=args.adam_weight_decay,
    )


def learning_rate_factor(name: str, warmup: int, steps: int) -> Callable[[int], float]:
    """A schedule of diffusers as a function: step → factor of the learning rate."""
    stand_in = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    return get_scheduler(name, stand_in, num_warmup_steps=warmup, num_training_steps=steps).lr_lambdas[0]


def learning_rate_schedule(
    optimizer: torch.optim.Optimizer,
    args: argparse.Namespace,
    steps: int,
    last: Callable[[int], float] | None = None,
    last_start: int = 0,
) -> LambdaLR:
    """
    The learning rates over all steps; the last group's has a factor of its own, `last`, of the steps since
    `last_start`.
    """
    factors = [learning_rate_factor(args.lr_scheduler, args.lr_warmup_steps, steps)] * len(optimizer.param_groups)
    if last is not None:
        factors[-1] = lambda step: last(max(0, step - last_start))
    return LambdaLR(optimizer, factors)
