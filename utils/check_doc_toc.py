"""Checks that the table of contents of the docs names every page once, and no page that is not there.

    python utils/check_doc_toc.py [--root .]

Exit code 0: clean; 1: what is wrong, one a line.
"""

import argparse
import sys
from collections import Counter
from pathlib import Path

import yaml


def toc_pages(sections: list[dict]) -> list[str]:
    """All `local` entries of a `_toctree.yml`, in order."""
    pages = []
    for section in sections:
        pages += [section["local"]] if "local" in section else []
        pages += toc_pages(section.get("sections", []))
    return pages


def violations(root: Path) -> list[str]:
    """
    What the table of contents and the folder disagree on.

    Args:
        root (`Path`): Root of the repository.

    Returns:
        `list[str]`: One line each.
    """
    folder = root / "docs/source/en"
    listed = Counter(toc_pages(yaml.safe_load((folder / "_toctree.yml").read_text(encoding="utf-8"))))
    there = {path.relative_to(folder).with_suffix("").as_posix() for path in folder.rglob("*.md")}
    return (
        [f"_toctree.yml names `{page}` {count} times" for page, count in listed.items() if count > 1]
        + [f"_toctree.yml names `{page}`, which is not there" for page in sorted(set(listed) - there)]
        + [f"docs/source/en/{page}.md is not in _toctree.yml" for page in sorted(there - set(listed))]
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--root", type=Path, default=Path(__file__).resolve().parents[1], help="root of the repository"
    )
    found = violations(parser.parse_args().root)
    print("\n".join(found) if found else "table of contents: complete")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
