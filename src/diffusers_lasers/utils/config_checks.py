r"""What the arguments in a configuration may be, said once for each class and looked at before anything is built.

A class with a configuration has `_config_fields`: argument → [`Field`], its type, range or words. `LasersHubMixin`
checks what is registered in a configuration against them, so that a value from a file, from a script and from a later
change pass the same gate, before a tensor is allocated. What concerns several arguments stays in `__init__`;
[`check_size`] is for their products, which decide how much memory a model takes.
"""

from __future__ import annotations

import reprlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np


#: Values that the tensors of one model may have in all, 4 GiB in float32. Whoever needs more sets it:
#: `config_checks.MAX_VALUES = …`.
MAX_VALUES = 2**30
_FLOAT32_MAX = 3.4028234663852886e38

_shorten = reprlib.Repr()
_shorten.maxstring = _shorten.maxother = 80


def shown(value: Any) -> str:
    """A value for a sentence: one line, shortened."""
    try:
        return " ".join(_shorten.repr(value).split())
    except ValueError:  # Python writes no integers of thousands of digits
        return f"a {type(value).__name__} too long to show"


def described(value: Any) -> str:
    """What stands where a tensor was wanted: its type, and of tensors and arrays the shape."""
    if hasattr(value, "dtype") and hasattr(value, "shape"):
        return f"{value.dtype} of shape {tuple(value.shape)}"
    return type(value).__name__


class Field:
    """
    What an argument may be: `fits` says whether a value is, `words` and `plural` how a sentence names what is allowed.
    """

    words = plural = ""

    def fits(self, value: Any) -> bool:
        raise NotImplementedError


@dataclass(frozen=True)
class Integer(Field):
    """
    An integer, no bool.

    Args:
        low (`int`, defaults to 1): The least.
        high (`int`, defaults to 2³¹ − 1): The largest.
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
    A finite number, no bool.

    Args:
        low (`float`): The least; defaults to that of float32.
        high (`float`): The largest; defaults to that of float32.
        above (`bool`, defaults to `False`): Whether `low` itself is out.
        below (`bool`, defaults to `False`): Whether `high` itself is out.
    """

    low: float = -_FLOAT32_MAX
    high: float = _FLOAT32_MAX
    above: bool = False
    below: bool = False

    def fits(self, value: Any) -> bool:
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            return False
        if isinstance(value, int) and abs(value) >= 2**63:  # no tensor takes it
            return False
        # NaN is in no range
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
        of (`Field`): What each entry may be.
        least (`int`, defaults to 1): Fewest entries.
        most (`int`, defaults to 16): Most entries.
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
class Arguments(Field):
    """A dictionary with strings as keys; who takes its values as arguments checks them."""

    words = "a dictionary of arguments"

    def fits(self, value: Any) -> bool:
        return isinstance(value, Mapping) and all(isinstance(key, str) for key in value)


@dataclass(frozen=True)
class Optional(Field):
    """
    `None`, or what another field allows.

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
    Refuses values that their fields do not allow.

    Args:
        fields (`dict[str, Field]`): Argument → what it may be.
        values (`dict[str, Any]`): Argument → value. Names without a field pass.

    Raises:
        ValueError: Names the first argument that does not fit, its value and what is allowed.
    """
    for name, value in values.items():
        field = fields.get(name)
        if field is not None and not field.fits(value):
            raise ValueError(f"`{name}` must be {field.words}, got {shown(value)}.")


def check_size(*counts: int, **arguments: Any) -> None:
    """
    Refuses a model that would take more memory than anybody meant, before it takes any.

    Args:
        *counts (`int`): Values of its tensors, which are added up.
        **arguments: The arguments that decide it, for the sentence.

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
    Refuses groups of a normalisation that do not divide its channels.

    Args:
        norm_num_groups (`int`): Groups.
        block_out_channels (`tuple[int, ...]`): Channels of the stages.

    Raises:
        ValueError: If one of them is no multiple.
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
    About how many weights a convolutional U-Net, or an encoder and a decoder, of residual blocks have.

    Args:
        block_out_channels (`tuple[int, ...]`): Channels of the stages.
        layers_per_block (`int`): Residual blocks of a stage on the way down; one more on the way up.
        in_channels (`int`): Channels of the input.
        out_channels (`int`): Channels of the output.

    Returns:
        `int`: Weights of the 3 × 3 convolutions.
    """
    stages = sum((18 * layers_per_block + 27 * (layers_per_block + 1)) * width**2 for width in block_out_channels)
    return stages + 36 * block_out_channels[-1] ** 2 + 9 * block_out_channels[0] * (in_channels + out_channels)
