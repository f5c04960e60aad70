"""The parser of all command lines of this package, how a script ends on an error, and records of arguments without
secrets.

The parser refuses abbreviated options. Code that looks for an option by its name would miss an abbreviation such as
`--hub_tok`. A token is hidden wherever its value occurs.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn


__all__ = ["CommandParser", "hide_token", "recorded_arguments"]

HIDDEN = "***"


class CommandParser(argparse.ArgumentParser):
    """
    Creates an `argparse.ArgumentParser` that refuses abbreviated options and keeps the line breaks of its description.

    Subcommands do the same. An error for an unknown option does not show its value, which may be a secret
    (`--hub_tok hf_…`). After parsing, a `--hub_token` is hidden in `sys.argv`, since trackers record and upload the
    command line.

    Args:
        *args, **kwargs: Arguments of `argparse.ArgumentParser`.
    """

    def __init__(self, *args: Any, **kwargs: Any):
        kwargs.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(*args, **{**kwargs, "allow_abbrev": False})
        self._checks: list[tuple[Callable, tuple]] = []

    def check(self, check: Callable[..., Any], *more: Any) -> None:
        """
        Has `parse_args` call a check after it.

        Args:
            check (`Callable`): Takes the parsed arguments and `more`. Its `ValueError` is an error like argparse's.
            *more: Further arguments of `check`.
        """
        self._checks.append((check, more))

    def parse_args(self, args: Any = None, namespace: Any = None) -> argparse.Namespace:
        """Like argparse's, but checks the arguments and hides the token in `sys.argv`."""
        parsed = super().parse_args(args, namespace)
        try:
            for check, more in self._checks:
                check(parsed, *more)
        except ValueError as error:
            self.error(str(error))
        if args is None:
            sys.argv[:] = hide_token(sys.argv, getattr(parsed, "hub_token", None))
        return parsed

    def error(self, message: str) -> NoReturn:
        """Like argparse's, but hides the values of unknown options."""
        super().error(without_values(message))


def check_at_least(args: argparse.Namespace, least: float, *names: str) -> None:
    """Raises a `ValueError` if one of the named arguments is below `least`; missing ones and `None` are allowed."""
    for name in names:
        value = getattr(args, name, None)
        if value is not None and value < least:
            raise ValueError(f"--{name} must be at least {least}, got {value}.")


def error_exit(script: str, args: argparse.Namespace, sentence: str) -> SystemExit:
    """What ends a script with a sentence, which begins with the script's name and shows no token, and exit code 1."""
    return SystemExit(f"{Path(script).name}: error: {hide_token([sentence], getattr(args, 'hub_token', None))[0]}")


def without_values(message: str) -> str:
    """A message of argparse without the values of unknown options."""
    said, mark, rest = message.partition("unrecognized arguments: ")
    options = [word.split("=")[0] for word in rest.split() if word.startswith("-")]
    return said + mark + (" ".join(options) or rest)


def one_line(error: BaseException) -> str:
    """The message of an error in one line, or the name of its type if it has no message."""
    return " ".join(str(error).split()) or type(error).__name__


def hide_token(words: list[str], token: str | None) -> list[str]:
    """
    Replaces a token in a command line by `***`.

    Args:
        words (`list[str]`): The words of the command line.
        token (`str`, *optional*): The secret. `None` or an empty string hides nothing.

    Returns:
        `list[str]`: The words with `***` in place of the token, also inside a word.
    """
    return [word.replace(token, HIDDEN) if token else word for word in words]


def recorded_arguments(args: argparse.Namespace) -> dict[str, Any]:
    """
    The arguments of a script without its token.

    Args:
        args (`argparse.Namespace`): Parsed arguments. `hub_token`, if there is one, is the secret.

    Returns:
        `dict[str, Any]`: All arguments except `hub_token`. If its value occurs in another argument, it is hidden there.
    """
    token = getattr(args, "hub_token", None)

    def hidden(value: Any) -> Any:
        if isinstance(value, (list, tuple)):
            return [hidden(entry) for entry in value]
        return hide_token([value], token)[0] if isinstance(value, str) else value

    return {name: hidden(value) for name, value in vars(args).items() if name != "hub_token"}
