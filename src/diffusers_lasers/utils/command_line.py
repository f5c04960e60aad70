"""What every command line of this package shares: a parser that takes only whole names, and records without secrets.

An abbreviated option (`--hub_tok`) would reach the program but not what looks for the option's name, and so an option has one spelling. A
token is hidden by its value, wherever it stands.
"""

from __future__ import annotations

import argparse
import sys
from typing import Any


__all__ = ["CommandParser", "hide_token", "recorded_arguments"]

HIDDEN = "***"


class CommandParser(argparse.ArgumentParser):
    """
    Creates an `argparse.ArgumentParser` that refuses abbreviated options, in its subcommands too, and keeps the line breaks of its description.
    An option that it does not know is named without its value, which may be a secret (`--hub_tok hf_…`). A `--hub_token` that stands in `sys.argv` is
    hidden there once it is read, since trackers record and upload the command line.

    Args:
        *args, **kwargs: Arguments of `argparse.ArgumentParser`.
    """

    def __init__(self, *args: Any, **kwargs: Any):
        kwargs.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(*args, **{**kwargs, "allow_abbrev": False})

    def parse_args(self, args: Any = None, namespace: Any = None) -> argparse.Namespace:
        """As in argparse, but for the message about what is left over, and for the token in `sys.argv`."""
        parsed, extra = self.parse_known_args(args, namespace)
        if extra:
            options = [word.split("=")[0] for word in extra if word.startswith("-")]
            self.error(f"unrecognized arguments: {' '.join(options or extra)}")
        if args is None:
            sys.argv[:] = hide_token(sys.argv, getattr(parsed, "hub_token", None))
        return parsed


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
