"""Checks that the table of contents of the docs names every page once, and no page that is not there; and that links
lead somewhere.

    python utils/check_doc_toc.py [--root .]

A link between pages, or to an image, is relative, names a file inside docs/source/en (a page with or without `.md`),
and a heading of it where it has a `#`. README.md and CONTRIBUTING.md are checked too; they may link to any file. Links
to other sites are not looked at. Exit code 0: clean; 1: what is wrong, one a line.
"""

import re
import sys
from collections import Counter
from pathlib import Path

import yaml


sys.path.append(str(Path(__file__).resolve().parents[1] / "src/diffusers_lasers/utils"))  # the file, not the package

from command_line import CommandParser  # noqa: E402


def toc_pages(sections: list[dict]) -> list[str]:
    """All `local` entries of a `_toctree.yml`, in order."""
    pages = []
    for section in sections:
        pages += [section["local"]] if "local" in section else []
        pages += toc_pages(section.get("sections", []))
    return pages


def without_code(text: str) -> str:
    """A page without its code, in which brackets are no links."""
    return re.sub(r"`[^`\n]*`", "", re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE))


def anchors(text: str) -> set[str]:
    """What a `#` may name on a page: its headings in small letters, without punctuation, with hyphens for spaces."""
    text = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    headings = re.findall(r"^#+ +(.+?) *$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def broken_links(root: Path) -> list[str]:
    """
    Links of the docs and of the root's Markdown files that lead nowhere.

    Args:
        root (`Path`): Root of the repository.

    Returns:
        `list[str]`: One line each.
    """
    folder, found = (root / "docs/source/en").resolve(), []
    outside = [path for name in ("README.md", "CONTRIBUTING.md") if (path := root.resolve() / name).is_file()]
    for page in [*outside, *sorted(folder.rglob("*.md"))]:
        where = page.relative_to(root.resolve()).as_posix()
        for link in re.findall(r"\]\(([^)\s]+)\)", without_code(page.read_text(encoding="utf-8"))):
            if re.match(r"[a-z]+:", link):
                continue
            name, _, anchor = link.partition("#")
            target = (page.parent / name).resolve() if name else page
            target = target if target.exists() else target.with_name(target.name + ".md")
            if not target.exists():
                found.append(f"{where} links to `{link}`, which is not there")
            elif page not in outside and not target.is_relative_to(folder):
                found.append(f"{where} links to `{link}`, which is outside the docs")
            elif anchor and anchor not in anchors(target.read_text(encoding="utf-8")):
                found.append(f"{where} links to `{link}`, which has no such heading")
    return found


def violations(root: Path) -> list[str]:
    """
    What the table of contents and the folder disagree on, and links that lead nowhere.

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
        + broken_links(root)
    )


def main() -> int:
    parser = CommandParser(description=__doc__)
    parser.add_argument(
        "--root", type=Path, default=Path(__file__).resolve().parents[1], help="root of the repository"
    )
    found = violations(parser.parse_args().root)
    print("\n".join(found) if found else "table of contents: complete; links: whole")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
