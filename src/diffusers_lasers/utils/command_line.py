"""What every command line of this package shares: a parser that takes only whole names, and records without secrets.

An abbreviated option (`--hub_tok`) would reach the program but not what looks for the option's name, and so an option
has one spelling. A token is hidden by its value, wherever it stands.
"""

from __future__ import annotations

import argparse
import sys
from typing import Any, NoReturn


__all__ = ["CommandParser", "hide_token", "recorded_arguments"]

HIDDEN = "***"


class CommandParser(argparse.ArgumentParser):
    """
    Creates an `argparse.ArgumentParser` that refuses abbreviated options, in its subcommands too, and keeps the line
    breaks of its description. An option that it does not know is named without its value, which may be a secret
    (`--hub_tok hf_…`). A `--hub_token` in `sys.argv` is hidden there once it is read, since trackers record and upload
    the command line.

    Args:
        *args, **kwargs: Arguments of `argparse.ArgumentParser`.
    """

    def __init__(self, *args: Any, **kwargs: Any):
        kwargs.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(*args, **{**kwargs, "allow_abbrev": False})

    def parse_args(self, args: Any = None, namespace: Any = None) -> argparse.Namespace:
        """As in argparse, but for the token in `sys.argv`."""
        parsed = super().parse_args(args, namespace)
        if args is None:
            sys.argv[:] = hide_token(sys.argv, getattr(parsed, "hub_token", None))
        return parsed

    def error(self, message: str) -> NoReturn:
        """As in argparse, but for [`without_values`]."""
        super().error(without_values(message))


def without_values(message: str) -> str:
    """A message of argparse in which options that are not known are named without their values."""
    said, mark, rest = message.partition("unrecognized arguments: ")
    options = [word.split("=")[0] for word in rest.split() if word.startswith("-")]
    return said + mark + (" ".join(options) or rest)


def one_line(error: BaseException) -> str:
    """What an error says, in one line; its type where it says nothing."""
    return " ".join(str(error).split()) or type(error).__name__


def hide_token(words: list[str], token: str | None) -> list[str]:
    """
    A command line for records.

    Args:
        words (`list[str]`): The words.
        token (`str`, *optional*): The secret. `None` or empty hides nothing.

    Returns:
        `list[str]`: The words, with `***` in the place of the token, also inside a word.
    """
    return [word.replace(token, HIDDEN) if token else word for word in words]


def recorded_arguments(args: argparse.Namespace) -> dict[str, Any]:
    """
    The arguments for records.

    Args:
        args (`argparse.Namespace`): What a parser gave; `hub_token`, where it has one, is the secret.

    Returns:
        `dict[str, Any]`: All of them but the token, whose value is hidden in the others too.
    """
    token = getattr(args, "hub_token", None)

    def hidden(value: Any) -> Any:
        if isinstance(value, (list, tuple)):
            return [hidden(entry) for entry in value]
        return hide_token([value], token)[0] if isinstance(value, str) else value

    return {name: hidden(value) for name, value in vars(args).items() if name != "hub_token"}
