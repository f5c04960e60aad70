"""Checks of a learner's saved state before it is used. A file with a correct hash may still hold wrong values.

All sizes follow from the dictionary in the state. So no memory is allocated for a size that a file only claims.
"""

from __future__ import annotations

import math
from dataclasses import fields
from typing import Any

import torch

from ..utils.config_checks import Integer, Number, Optional, Sequence, described, shown
from .learner_config import LearnerConfig, check_init


_COUNT = Integer(0, 2**62 - 1)
_NUMBERS = {
    "step": _COUNT,
    "position": Sequence(_COUNT, least=3, most=3),
    "change": Optional(Number(0.0, math.inf, below=True)),
}
_SCALE = Number(0.0, math.inf, above=True, below=True)


def check_state(state: dict[str, Any]) -> LearnerConfig:
    """
    Raises an error for a state that no learner can have saved.

    Args:
        state (`dict`): A result of `OnlineDictionaryLearner.state_dict`, perhaps read from a file.

    Returns:
        [`LearnerConfig`]: The learner's arguments.

    Raises:
        ValueError: If an entry is missing, of another type, size or device, out of range or not finite.
    """
    config = _config(state.get("config"))
    given = config.init == "given"
    if given != ("init" in state):
        _refuse("init", state.get("init"), "a tensor if the `init` of `config` is 'given', and none otherwise")
    if given:
        check_init(state["init"], config.num_atoms)
    for name, field in _NUMBERS.items():
        if not field.fits(state.get(name)):
            _refuse(name, state.get(name), field.words)
    tensors = ("code_statistics", "signal_statistics", "counts", "revived")
    if "dictionary" not in state:
        if state["step"] or any(name in state for name in (*tensors, "scale")):
            _refuse("dictionary", None, "after the first step")
        return config
    if not _SCALE.fits(state.get("scale")):
        _refuse("scale", state.get("scale"), _SCALE.words)
    atoms, dtype = config.num_atoms, getattr(torch, config.dtype)
    dictionary = state["dictionary"]
    if not isinstance(dictionary, torch.Tensor) or dictionary.ndim != 2 or dictionary.shape[0] < 1:
        _refuse("dictionary", dictionary, f"a tensor of shape (features, {atoms})")
    features = dictionary.shape[0]
    for name, shape, kind in (
        ("dictionary", (features, atoms), dtype),
        ("code_statistics", (atoms, atoms), dtype),
        ("signal_statistics", (atoms, features), dtype),
        ("counts", (atoms,), torch.int64),
        ("revived", (), torch.int64),
    ):
        value = state.get(name)
        if not isinstance(value, torch.Tensor) or value.shape != shape or value.dtype != kind:
            _refuse(name, value, f"{kind} of shape {shape}")
        if not (value.isfinite() if kind.is_floating_point else value >= 0).all():
            _refuse(name, value, "of finite numbers" if kind.is_floating_point else "of integers of at least 0")
    return config


def _config(entries: Any) -> LearnerConfig:
    names = [field.name for field in fields(LearnerConfig)]
    if not isinstance(entries, dict) or sorted(entries) != sorted(names):
        _refuse("config", entries, f"a dictionary of {', '.join(names)}")
    return LearnerConfig(**entries)


def _refuse(name: str, value: Any, allowed: str) -> None:
    got = described(value) if isinstance(value, torch.Tensor) else shown(value)
    raise ValueError(f"`state` must have `{name}` {allowed}, got {got}.")
