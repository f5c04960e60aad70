"""Checks that lines of Markdown have at most 120 columns.

    python utils/check_lines.py [--root .]

Longer may be rows of tables, and lines that cannot be broken: beside their list marker they hold one link, image,
formula or piece of code. Lines of code blocks count like others. It looks at the root's Markdown files and at those
under docs, examples and benchmarks. Exit code 0: clean; 1: what is too long, one a line.
"""

import re
import sys
from pathlib import Path


sys.path.append(str(Path(__file__).resolve().parents[1] / "src/diffusers_lasers/utils"))  # the file, not the package

from command_line import CommandParser  # noqa: E402


COLUMNS = 120
FOLDERS = ("docs", "examples", "benchmarks")
# What a line break would tear apart: an image or a link with its text, and code.
WHOLE = re.compile(r"!?\[[^\]]*\]\([^)]*\)|`[^`]+`")


def too_long(text: str) -> list[int]:
    """
    Lines of a Markdown text that are too long and could be broken.

    Args:
        text (`str`): The text.

    Returns:
        `list[int]`: Their numbers, from 1 on.
    """
    found = []
    for number, line in enumerate(text.splitlines(), start=1):
        words = WHOLE.sub(lambda match: "x" * len(match[0]), line.strip()).split()
        words = words[1:] if words and re.fullmatch(r"[-*>#]+|\d+\.", words[0]) else words
        if len(line) > COLUMNS and len(words) > 1 and not line.lstrip().startswith("|"):
            found.append(number)
    return found


def violations(root: Path) -> list[str]:
    """
    Lines of the repository's Markdown files that are too long.

    Args:
        root (`Path`): Root of the repository.

    Returns:
        `list[str]`: One line each.
    """
    pages = [*sorted(root.glob("*.md")), *(page for name in FOLDERS for page in sorted((root / name).rglob("*.md")))]
    return [
        f"{page.relative_to(root).as_posix()}:{number} has more than {COLUMNS} columns"
        for page in pages
        for number in too_long(page.read_text(encoding="utf-8"))
    ]


def main() -> int:
    parser = CommandParser(description=__doc__)
    parser.add_argument(
        "--root", type=Path, default=Path(__file__).resolve().parents[1], help="root of the repository"
    )
    found = violations(parser.parse_args().root)
    print("\n".join(found) if found else f"Markdown: no line of more than {COLUMNS} columns")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
