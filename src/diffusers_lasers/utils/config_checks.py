r"""Checks of the arguments in a configuration, before anything is built.

A class with a configuration has `_config_fields`, which maps each argument to a [`Field`]: its type, range or allowed
words. `LasersHubMixin` checks all values that are registered in a configuration against them, before a tensor is
allocated. So values from a file, from a script and from a later change are checked alike. Conditions on several
arguments are checked in `__init__`. [`check_size`] checks the products that decide how much memory a model takes.
"""

from __future__ import annotations

import reprlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np


#: Largest number of values in all tensors of one model, 4 GiB in float32. It can be raised:
#: `config_checks.MAX_VALUES = …`.
MAX_VALUES = 2**30
_FLOAT32_MAX = 3.4028234663852886e38

_shorten = reprlib.Repr()
_shorten.maxstring = _shorten.maxother = 80


def shown(value: Any) -> str:
    """A value for an error message, shortened and in one line."""
    try:
        return " ".join(_shorten.repr(value).split())
    except ValueError:  # Python does not print integers of thousands of digits
        return f"a {type(value).__name__} too long to show"


def described(value: Any) -> str:
    """A value in place of a tensor, for an error message: dtype and shape of a tensor or array, otherwise the type."""
    if hasattr(value, "dtype") and hasattr(value, "shape"):
        return f"{value.dtype} of shape {tuple(value.shape)}"
    return type(value).__name__


class Field:
    """
    The allowed values of an argument. `fits` tells whether a value is allowed. `words` and `plural` describe the
    allowed values in an error message.
    """

    words = plural = ""

    def fits(self, value: Any) -> bool:
        raise NotImplementedError


@dataclass(frozen=True)
class Integer(Field):
    """
    An integer that is not a bool.

    Args:
        low (`int`, defaults to 1): Smallest allowed value.
        high (`int`, defaults to 2³¹ − 1): Largest allowed value.
    """

    low: int = 1
    high: int = 2**31 - 1

    def fits(self, value: Any) -> bool:
        return isinstance(value, int) and not isinstance(value, bool) and self.low <= value <= self.high

    @property
    def _range(self) -> str:
        return f"from {self.low} to {self.high}"

    @property
    def words(self) -> str:
        return f"an integer {self._range}"

    @property
    def plural(self) -> str:
        return f"integers {self._range}"


@dataclass(frozen=True)
class Number(Field):
    """
    A finite number that is not a bool.

    Args:
        low (`float`): Smallest allowed value. Defaults to that of float32.
        high (`float`): Largest allowed value. Defaults to that of float32.
        above (`bool`, defaults to `False`): Whether `low` itself is excluded.
        below (`bool`, defaults to `False`): Whether `high` itself is excluded.
    """

    low: float = -_FLOAT32_MAX
    high: float = _FLOAT32_MAX
    above: bool = False
    below: bool = False

    def fits(self, value: Any) -> bool:
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            return False
        if isinstance(value, int) and abs(value) >= 2**63:  # too large for a tensor
            return False
        # false for NaN too
        return self.low <= value <= self.high and not (
            (self.above and value == self.low) or (self.below and value == self.high)
        )

    @property
    def _range(self) -> str:
        if self.high < _FLOAT32_MAX:
            return f" in {'(' if self.above else '['}{self.low:g}, {self.high:g}{')' if self.below else ']'}"
        if self.low > -_FLOAT32_MAX:
            return f" {'above' if self.above else 'of at least'} {self.low:g}"
        return ""

    @property
    def words(self) -> str:
        return f"a finite number{self._range}"

    @property
    def plural(self) -> str:
        return f"finite numbers{self._range}"


@dataclass(frozen=True)
class Flag(Field):
    """`True` or `False`."""

    words = "True or False"

    def fits(self, value: Any) -> bool:
        return isinstance(value, bool)


class Word(Field):
    """
    One of some words.

    Args:
        *choices (`str`): The words.
    """

    def __init__(self, *choices: str):
        self.choices = choices

    def fits(self, value: Any) -> bool:
        return isinstance(value, str) and value in self.choices

    @property
    def words(self) -> str:
        *most, last = map(repr, self.choices)
        return f"{', '.join(most)} or {last}" if len(most) == 1 else f"one of {', '.join(map(repr, self.choices))}"


@dataclass(frozen=True)
class Sequence(Field):
    """
    A tuple, a list or an array of one dimension.

    Args:
        of (`Field`): The field of each entry.
        least (`int`, defaults to 1): Smallest number of entries.
        most (`int`, defaults to 16): Largest number of entries.
    """

    of: Field
    least: int = 1
    most: int = 16

    def fits(self, value: Any) -> bool:
        if isinstance(value, np.ndarray):
            value = value.tolist()
        if not isinstance(value, (list, tuple)) or not self.least <= len(value) <= self.most:
            return False
        return all(self.of.fits(entry) for entry in value)

    @property
    def words(self) -> str:
        many = "one or more" if self.least == 1 else f"{self.least} or more"
        if self.least == self.most:
            return f"a list of {self.least} {self.of.plural}"
        return f"{many} {self.of.plural}, at most {self.most} of them"


@dataclass(frozen=True)
class OneOrEach(Field):
    """
    One value for all, or a list with a value for each.

    Args:
        one (`Field`): Field of the one value.
        each (`Field`): Field of the entries of a list.
        most (`int`): Largest number of entries.
    """

    one: Field
    each: Field
    most: int

    def fits(self, value: Any) -> bool:
        return self.one.fits(value) or Sequence(self.each, most=self.most).fits(value)

    @property
    def words(self) -> str:
        return f"{self.one.words}, or {Sequence(self.each, most=self.most).words}"


@dataclass(frozen=True)
class Arguments(Field):
    """A dictionary with strings as keys. The class that receives its values as arguments checks them."""

    words = "a dictionary of arguments"

    def fits(self, value: Any) -> bool:
        return isinstance(value, Mapping) and all(isinstance(key, str) for key in value)


@dataclass(frozen=True)
class Optional(Field):
    """
    `None`, or a value that another field allows.

    Args:
        field (`Field`): The other field.
    """

    field: Field

    def fits(self, value: Any) -> bool:
        return value is None or self.field.fits(value)

    @property
    def words(self) -> str:
        return f"{self.field.words} or None"


CHANNELS = Integer(1, 2**16)
WEIGHT = Number(low=0.0)


def check_fields(fields: Mapping[str, Field], values: Mapping[str, Any]) -> None:
    """
    Raises an error for a value that its field does not allow.

    Args:
        fields (`dict[str, Field]`): Field of each argument.
        values (`dict[str, Any]`): Value of each argument. Arguments without a field are not checked.

    Raises:
        ValueError: If a value is not allowed. The error names the first such argument, its value and what is allowed.
    """
    for name, value in values.items():
        field = fields.get(name)
        if field is not None and not field.fits(value):
            raise ValueError(f"`{name}` must be {field.words}, got {shown(value)}.")


def check_size(*counts: int, **arguments: Any) -> None:
    """
    Raises an error for a model that would need more memory than is reasonable, before it is allocated.

    Args:
        *counts (`int`): Numbers of values in its tensors, which are added up.
        **arguments: The arguments that decide the size, for the error.

    Raises:
        ValueError: If there are more than `MAX_VALUES`.
    """
    total = sum(counts)
    if total > MAX_VALUES:
        names = " and ".join(f"`{name}`" for name in arguments)
        given = " and ".join(shown(value) for value in arguments.values())
        raise ValueError(
            f"{names} must give a model of at most {MAX_VALUES} values (`utils.config_checks.MAX_VALUES`), got "
            f"{given}, which give {total}."
        )


def check_groups(norm_num_groups: int, block_out_channels: tuple[int, ...]) -> None:
    """
    Raises an error unless the number of groups of a normalisation divides all its channels.

    Args:
        norm_num_groups (`int`): Number of groups.
        block_out_channels (`tuple[int, ...]`): Channels of the stages.

    Raises:
        ValueError: If the number of channels of a stage is not a multiple of the number of groups.
    """
    if any(channels % norm_num_groups for channels in block_out_channels):
        raise ValueError(
            f"`norm_num_groups` must divide all `block_out_channels`, got {norm_num_groups} and "
            f"{shown(block_out_channels)}."
        )


def unet_values(
    block_out_channels: tuple[int, ...], layers_per_block: int, in_channels: int, out_channels: int
) -> int:
    """
    Estimates the number of weights of a convolutional U-Net, or of an encoder and a decoder, of residual blocks.

    Args:
        block_out_channels (`tuple[int, ...]`): Channels of the stages.
        layers_per_block (`int`): Residual blocks of a stage on the way down. The way up has one more.
        in_channels (`int`): Channels of the input.
        out_channels (`int`): Channels of the output.

    Returns:
        `int`: Number of weights of the 3 × 3 convolutions.
    """
    stages = sum((18 * layers_per_block + 27 * (layers_per_block + 1)) * width**2 for width in block_out_channels)
    return stages + 36 * block_out_channels[-1] ** 2 + 9 * block_out_channels[0] * (in_channels + out_channels)
