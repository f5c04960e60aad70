"""A flag that holds the configuration of a part of a model, `--bottleneck_config num_atoms=512 sparsity=5`.

The names are the arguments of the part's class, so that a new class needs no new flag. A value is read as JSON where it
is JSON, and as text otherwise: `levels=[8,8,8,5]`, `coefficient_bits=null`, `pursuit=ols`. The flag may be given
several times; the last value of a name counts.
"""

from __future__ import annotations

import argparse
import inspect
import json
from collections.abc import Mapping
from typing import Any


def _assignment(word: str) -> tuple[str, Any]:
    name, equals, value = word.partition("=")
    if not (name and equals):
        raise argparse.ArgumentTypeError(f"must be NAME=VALUE, got {word!r}.")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


class _Collect(argparse.Action):
    """Gathers all assignments of a flag in one dictionary."""

    def __call__(self, parser, namespace, values, option_string=None):
        setattr(namespace, self.dest, {**(getattr(namespace, self.dest) or {}), **dict(values)})


class _Replaced(argparse.Action):
    """Refuses a flag that there was once, and says what has its place."""

    def __call__(self, parser, namespace, values, option_string=None):
        parser.error(f"{option_string} is replaced by {self.metavar}.")


def add_config_flag(parser: argparse.ArgumentParser | Any, name: str, help: str) -> None:
    """Adds a flag of assignments, whose value is a dictionary, or `None` where it is not given."""
    parser.add_argument(f"--{name}", nargs="+", type=_assignment, action=_Collect, metavar="NAME=VALUE", help=help)


def add_replaced_flags(parser: argparse.ArgumentParser | Any, replaced: Mapping[str, str]) -> None:
    """
    Adds flags that `--help` does not show and that end the program with a sentence; `replaced` maps their names to what
    replaces them, e.g. `--discriminator_config num_layers=VALUE`.
    """
    hidden = {"dest": argparse.SUPPRESS, "default": argparse.SUPPRESS, "help": argparse.SUPPRESS}
    for name, instead in replaced.items():
        parser.add_argument(f"--{name}", nargs="*", action=_Replaced, metavar=instead, **hidden)


def check_config(flag: str, config: Mapping[str, Any] | None, kind: type, of: str = "") -> None:
    """
    Raises a `ValueError` for a name that is no argument of a class, or that is `latent_channels`, which is the model's;
    `of` is part of its sentence.
    """
    names = [name for name in inspect.signature(kind.__init__).parameters if name not in ("self", "latent_channels")]
    unknown = [name for name in config or {} if name not in names]
    if unknown:
        raise ValueError(f"{flag}{of} takes {', '.join(names) or 'no names'}, got {unknown[0]}.")
