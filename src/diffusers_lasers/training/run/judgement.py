"""Evaluation of what is already saved: a metric that fails is reported, and the saved model is kept."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ...utils.command_line import hide_token, one_line


_logger = logging.getLogger(__name__)


class Judgement:
    """
    Creates the end of a run, after its model is on the disk.

    Args:
        folder (`str` or `os.PathLike`): Where the model is; the report names it.
        num_processes (`int`, defaults to 1): Processes that judge together. If there are several, one that fails ends
            at once, since the others would wait for its share.
        saved (`str`, defaults to `"What is saved is"`): How the report begins to say where everything else is.
        secret (`str`, *optional*): A token that no reason may show.
    """

    def __init__(
        self,
        folder: str | Path,
        num_processes: int = 1,
        saved: str = "What is saved is",
        secret: str | None = None,
    ):
        self.folder, self.num_processes, self.saved, self.secret = folder, num_processes, saved, secret
        self.failures: list[str] = []

    @contextmanager
    def of(self, what: str) -> Iterator[None]:
        """
        Whatever fails in this context is a warning with its reason.

        Args:
            what (`str`): What is done in it, e.g. `"the held-out images"`.
        """
        try:
            yield
        except Exception as error:  # whatever it was: the model is saved, and its user has to hear of both
            reason = hide_token([one_line(error).rstrip(".")], self.secret)[0]
            self.failures.append(f"{what}: {reason}")
            _logger.warning(f"Not everything was done: {what}: {reason}. {self.saved} in {self.folder}.")
            if self.num_processes > 1:
                raise SystemExit(1) from error

    def end(self) -> None:
        """
        Ends the program with exit code 1 if something failed.

        Raises:
            SystemExit: If something failed.
        """
        if self.failures:
            raise SystemExit(1)
