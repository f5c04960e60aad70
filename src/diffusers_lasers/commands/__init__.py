"""The command line, `diffusers-lasers` or `python -m diffusers_lasers`: one file a subcommand."""

from .cli import main


__all__ = ["main"]
