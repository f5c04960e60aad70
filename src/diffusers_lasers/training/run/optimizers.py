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
    """
    A learning rate, with `--scale_lr` times the images of a step.

    Args:
        args (`argparse.Namespace`): With `learning_rate`, `scale_lr`, `train_batch_size` and, where there is one,
            `gradient_accumulation_steps`.
        num_processes (`int`): Processes that train together.
        rate (`float`, *optional*): Instead of `learning_rate`.

    Returns:
        `float`: The learning rate.
    """
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
    AdamW, with `--use_8bit_adam` that of bitsandbytes, whose moments have 8 bits.

    Args:
        groups (iterable of parameters or of groups): What it steps.
        args (`argparse.Namespace`): With `learning_rate`, `adam_beta1`, `adam_beta2`, `adam_epsilon`,
            `adam_weight_decay` and `use_8bit_adam`.
        learning_rate (`float`, *optional*): Instead of that of `args`.
        full_precision (`Sequence[torch.nn.Parameter]`, *optional*): Parameters whose moments stay floats: those that
            [`DictionaryUpkeep`] writes to.

    Returns:
        `torch.optim.Optimizer`: The optimiser.

    Raises:
        ImportError: If bitsandbytes is missing (`pip install diffusers_lasers[8bit]`).
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
    """
    A schedule of diffusers as a function.

    Args:
        name (`str`): Its name in `diffusers.optimization.get_scheduler`.
        warmup (`int`): Steps until the full rate.
        steps (`int`): Steps of the whole schedule.

    Returns:
        `Callable[[int], float]`: Step → factor of the learning rate.
    """
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
    The learning rates over all steps.

    Args:
        optimizer (`torch.optim.Optimizer`): The optimiser.
        args (`argparse.Namespace`): With `lr_scheduler` and `lr_warmup_steps`.
        steps (`int`): Optimiser steps of the run.
        last (`Callable[[int], float]`, *optional*): The last group's own factor, of the steps since `last_start`.
        last_start (`int`, defaults to 0): The step at which the last group's schedule begins.

    Returns:
        `torch.optim.lr_scheduler.LambdaLR`: The schedule.
    """
    factors = [learning_rate_factor(args.lr_scheduler, args.lr_warmup_steps, steps)] * len(optimizer.param_groups)
    if last is not None:
        factors[-1] = lambda step: last(max(0, step - last_start))
    return LambdaLR(optimizer, factors)
