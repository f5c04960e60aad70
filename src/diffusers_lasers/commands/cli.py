"""The entry of the command line: parses, runs one subcommand, and says what went wrong in one line.

Exit codes: 0; 2 for what a user can mend (with `--debug`, after its traceback), also where others of several files
were done; 130 after Ctrl-C. Subcommands import models when they run, so that `--help` waits for the package's own
import and no more.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import warnings
from collections.abc import Iterator, Sequence

from ..utils.command_line import CommandParser, without_values
from .batch import PROGRAM, USER_ERRORS, printable, report
from .cache import CacheCommand, CacheExportCommand
from .decode import DecodeCommand
from .encode import EncodeCommand
from .env import EnvironmentCommand
from .evaluate import EvaluateCommand
from .fit_prior import FitPriorCommand
from .inspect import InspectCommand


COMMANDS = (
    EnvironmentCommand,
    EncodeCommand,
    DecodeCommand,
    EvaluateCommand,
    FitPriorCommand,
    InspectCommand,
    CacheCommand,
    CacheExportCommand,
)


class _Parser(CommandParser):
    """A parser whose errors are one line."""

    def error(self, message: str):
        self.exit(2, f"{self.prog}: error: {without_values(message)}; see {self.prog} --help\n")


def build_parser() -> argparse.ArgumentParser:
    """The parser of all subcommands; the chosen one's class is `args.command`."""
    parser = _Parser(
        prog=PROGRAM, description="Structured latent codes: images to bytes and back, measured and shown."
    )
    commands = parser.add_subparsers(title="commands", metavar="command")
    for command in COMMANDS:
        command.register_subcommand(commands)
    for sub in commands.choices.values():
        sub.add_argument("--debug", action="store_true", help="on an error, show where it comes from")
    return parser


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """
    Leaves stderr to errors: libraries warn of packages that no subcommand needs, of arguments of their own, of each new
    attempt to reach the Hub.
    """
    from diffusers.utils import logging
    from huggingface_hub.utils import logging as hub_logging

    variable, libraries = "TRANSFORMERS_VERBOSITY", (logging, hub_logging)
    unset, before = variable not in os.environ, [library.get_verbosity() for library in libraries]
    os.environ.setdefault(variable, "error")  # read when diffusers' models import it
    for library in libraries:
        library.set_verbosity_error()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for library, verbosity in zip(libraries, before):
            library.set_verbosity(verbosity)
        if unset:
            os.environ.pop(variable, None)


def main(argv: Sequence[str] | None = None) -> int:
    """
    Runs a command line.

    Args:
        argv (`Sequence[str]`, *optional*): The words after the program's name. Defaults to those of the process.

    Returns:
        `int`: Exit code: 0, 2 for an error, 130 after an interruption.

    Raises:
        SystemExit: After `--help`, and with code 2 on words that are no such command line.
    """
    with printable():
        return _run(argv)


def _run(argv: Sequence[str] | None) -> int:
    parser = build_parser()
    args = parser.parse_args(argv)
    if not hasattr(args, "command"):
        parser.error("name a command: " + ", ".join(command.name for command in COMMANDS))
    try:
        with contextlib.nullcontext() if args.debug else quiet():
            args.command(args).run()
        sys.stdout.flush()
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # `| head` has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except USER_ERRORS as error:
        report(args, error)
        return 2
    return 0
