"""Errors of the subcommands: which are the user's, how they are printed, and why one bad file does not stop the rest.

A file that fails is one line on stderr; the rest are done, and the exit code is 2. File names need not be printable:
what a terminal cannot show is written as `\\xe9` or `\\udcff`.
"""

from __future__ import annotations

import argparse
import contextlib
import stat
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from ..utils.command_line import one_line


PROGRAM = "diffusers-lasers"
# What is wrong with files, arguments, packages, memory or devices; anything else is a fault of ours and keeps its
# traceback.
USER_ERRORS = (ValueError, OSError, ImportError, RuntimeError, MemoryError)


class SomeFailed(ValueError):
    """Some of several files or models failed, and have been reported."""


@contextlib.contextmanager
def printable() -> Iterator[None]:
    """Lets stdout and stderr print any text, whatever their encoding."""
    streams = [stream for stream in (sys.stdout, sys.stderr) if hasattr(stream, "reconfigure")]
    before = [stream.errors for stream in streams]
    for stream in streams:
        stream.reconfigure(errors="backslashreplace")
    try:
        yield
    finally:
        for stream, errors in zip(streams, before):
            if not stream.closed:
                stream.reconfigure(errors=errors)


def report(args: argparse.Namespace, error: BaseException) -> None:
    """Says an error of the user on stderr: one line, with `--debug` its traceback."""
    if args.debug:
        traceback.print_exception(error)
    else:
        print(f"{PROGRAM} {args.command.name}: error: {one_line(error)}", file=sys.stderr)


def for_each(args: argparse.Namespace, items: Iterable[Any], work: Callable[[Any], None], what: str) -> None:
    """
    Does a work for each of several things; errors of the user stop one of them.

    Args:
        args (`argparse.Namespace`): The command line.
        items (`Iterable`): The things.
        work (`Callable`): Takes one of them.
        what (`str`): What several of them are called.

    Raises:
        ValueError: After the last one, if one has failed. A single thing's error is passed on as it is.
    """
    items = list(items)
    failed = 0
    for item in items:
        try:
            work(item)
        except BrokenPipeError:  # of stdout, nobody reads any more
            raise
        except USER_ERRORS as error:
            if len(items) == 1:
                raise
            report(args, error)
            failed += 1
    if failed:
        raise SomeFailed(f"{failed} of {len(items)} {what} failed.")


@contextlib.contextmanager
def about(name: str) -> Iterator[None]:
    """Puts the name of a file before errors that do not tell it."""
    try:
        yield
    except BrokenPipeError:
        raise
    except USER_ERRORS as error:
        if name in str(error):
            raise
        raise ValueError(f"{name}: {one_line(error)}") from error


def check_targets(paths: Iterable[Path]) -> None:
    """
    Refuses, before any work, what is there and no regular file.

    Raises:
        ValueError: If one is a folder, a pipe or a device; links are followed.
    """
    for path in paths:
        if path.exists() and not stat.S_ISREG(path.stat().st_mode):
            raise ValueError(f"{path} must be a regular file or new to be written, it is something else.")
