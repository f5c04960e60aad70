"""`python -m diffusers_lasers`: the command line."""

import sys

from diffusers_lasers.commands.cli import main


if __name__ == "__main__":
    sys.exit(main())
