r"""Finds the image files of a split in a folder or by a pattern, and reports which files were left out and why.

Names of folders and files have no meaning, except for two conventions that divide a folder into splits. *Folders*: the
top has a folder `train` and one of `validation`, `valid`, `val` or `test`, or it holds only such folders. *Shards*:
parquet files that are named after a split, or after a split and a number, such as `train-00000-of-00003.parquet`, as
`datasets` writes them. The matches of a pattern are not divided.
"""

from __future__ import annotations

import glob
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from .image_decoding import picture_formats


__all__ = ["ImageFiles", "find_image_files"]

_HELD_OUT = ("validation", "valid", "val", "test")
# folders that archivers and systems put beside pictures; they are hidden like names with a dot
_HIDDEN = {"__macosx", "@eadir", "$recycle.bin"}
_SHARD = re.compile(r"(train|validation|valid|val|test)([-_.]?\d.*)?\.parquet", re.IGNORECASE)


@dataclass(frozen=True)
class ImageFiles:
    """
    The image files or parquet files that were found. Its `str` is a sentence for the user.

    Args:
        paths (`list[str]`): The files, in the order of their names.
        location (`str`): The place that was searched.
        decided (`str`): What was taken, such as `"all, no splits"` or `"split 'train', folder train/"`.
        skipped (`Counter[str]`): Number of files that were left out, for each reason.
    """

    paths: list[str]
    location: str
    decided: str
    skipped: Counter[str]

    @property
    def are_parquet(self) -> bool:
        """Whether the files are parquet files. Raises a `ValueError` if there are both kinds."""
        kinds = {_is_parquet(path) for path in self.paths}
        if len(kinds) > 1:
            raise ValueError(f"{self.location!r} mixes parquet files with images: give only one kind.")
        return kinds == {True}

    def __str__(self) -> str:
        count, kind = len(self.paths), "parquet file" if self.are_parquet else "image"
        return f"{self.location!r}: {count} {kind}{'' if count == 1 else 's'} found ({self.decided}), {self.left_out}."

    @property
    def left_out(self) -> str:
        """The number of files that were left out and the reasons, in words."""
        reasons = "; ".join(f"{number} {reason}" for reason, number in sorted(self.skipped.items()))
        return f"left out: {reasons}" if reasons else "nothing left out"


def find_image_files(location: str, split: str) -> ImageFiles:
    """
    Finds image files, or parquet files, on this machine. Linked folders are followed, but each folder is read once.

    Args:
        location (`str`):
            A folder (searched recursively), a file, or a pattern of files or folders with `*`, `?`, `[…]` or `**`. An
            existing path is not treated as a pattern, and neither is an existing folder before the first pattern.
        split (`str`):
            The split to take from a folder that has splits. `"validation"` is the first of `validation`, `valid`,
            `val` and `test` that exists.

    Returns:
        `ImageFiles`: The files. There may be none.

    Raises:
        ValueError: If the folder has splits, but not this one.
    """
    skipped: Counter[str] = Counter()
    if os.path.isdir(location):
        paths = _kept(_walk(location, skipped), location, skipped)
        paths, decided = _of_split(paths, location, split, skipped)
    elif os.path.isfile(location):
        paths, decided = [location], "the file"
    else:
        paths = _kept(dict.fromkeys(_matched(location, skipped)), _root(location), skipped)
        decided = "all that match"
    return ImageFiles(paths, location, decided, skipped)


def _is_parquet(path: str) -> bool:
    return Path(path).suffix.lower() == ".parquet"


def _walk(folder: str, skipped: Counter[str]) -> Iterator[str]:
    """All regular files below a folder, in the order of their names. Links are followed, but no folder is read
    twice."""

    def failed(error: OSError) -> None:
        skipped[f"in folders that cannot be opened ({os.path.basename(error.filename)})"] += 1

    seen = set()
    for parent, folders, names in os.walk(folder, followlinks=True, onerror=failed):
        place = os.stat(parent)
        if (place.st_dev, place.st_ino) in seen:  # a link led to a folder that was already read
            folders.clear()
            skipped["folders that were already read"] += 1
            continue
        seen.add((place.st_dev, place.st_ino))
        # real folders before links, so that a picture is listed under its real path
        folders.sort(key=lambda name: (os.path.islink(os.path.join(parent, name)), name))
        for name in names:
            path = os.path.join(parent, name)
            if os.path.isfile(path):
                yield path
            else:
                skipped["broken links" if os.path.islink(path) else "not regular files"] += 1


def _kept(paths: Iterable[str], root: str, skipped: Counter[str]) -> list[str]:
    """The image and parquet files that are not hidden, sorted."""
    known = {".parquet"}.union(*picture_formats().values())
    kept = []
    for path in paths:
        suffix = Path(path).suffix.lower()
        if any(part.startswith(".") or part.lower() in _HIDDEN for part in Path(os.path.relpath(path, root)).parts):
            skipped["hidden"] += 1
        elif suffix not in known:
            skipped[f"not images ({suffix or 'without a suffix'})"] += 1
        else:
            kept.append(path)
    return sorted(kept)


def _names_of(split: str) -> tuple[str, ...]:
    return _HELD_OUT if split == "validation" else (split,)


def _of_split(paths: list[str], root: str, split: str, skipped: Counter[str]) -> tuple[list[str], str]:
    """The files of one split by the two conventions, or all files; and words for what was taken."""
    tops = [Path(os.path.relpath(path, root)).parts for path in paths]
    folders = {parts[0] for parts in tops if len(parts) > 1}
    known = {name for name in folders if name.lower() in ("train", *_HELD_OUT, split)}
    both = {"train"} < {name.lower() for name in known}
    if both or (known and all(parts[0] in known for parts in tops)):
        labels = [parts[0].lower() if parts[0] in known else None for parts in tops]
        kind, end = "folder", "/"
    elif any(_SHARD.fullmatch(parts[-1]) for parts in tops):
        found = [_SHARD.fullmatch(parts[-1]) for parts in tops]
        labels = [match[1].lower() if match else None for match in found]
        kind, end = "shards", ""
    else:
        return paths, "all, no splits"
    chosen = next((name for name in _names_of(split) if name in labels), None)
    if chosen is None:
        there = ", ".join(sorted({label for label in labels if label}))
        raise ValueError(
            f"{root!r} has splits ({there}) and not split {split!r}: to take all its files, give "
            f"{os.path.join(glob.escape(root), '*')!r}."
        )
    for label in labels:
        if label != chosen:
            skipped[f"of {label}{end}" if label else "of no split"] += 1
    return [path for path, label in zip(paths, labels) if label == chosen], f"split {split!r}, {kind} {chosen}{end}"


def _root(pattern: str) -> str:
    """The folder in which a pattern is searched: its parts before the first one with `*`, `?` or `[…]` that is not an
    existing folder."""
    root, parts = "", Path(pattern).parts
    for part in parts[:-1]:
        if glob.has_magic(part) and not os.path.isdir(os.path.join(root, part)):
            break
        root = os.path.join(root, part)
    return root or os.curdir


def _matched(pattern: str, skipped: Counter[str]) -> list[str]:
    """The files that a pattern matches, and all files below the folders that it matches."""
    root = _root(pattern)
    wanted = Path(pattern).parts[0 if root == os.curdir else len(Path(root).parts) :]
    if "**" in wanted:  # `glob` would follow a cycle of links forty times
        return [p for p in _walk(root, skipped) if _matches(Path(os.path.relpath(p, root)).parts, wanted)]
    found: list[str] = []
    for match in sorted(glob.glob(os.path.join("" if root == os.curdir else glob.escape(root), *wanted))):
        found.extend(_walk(match, skipped) if os.path.isdir(match) else [match] if os.path.isfile(match) else [])
    return found


def _matches(parts: tuple[str, ...], pattern: tuple[str, ...]) -> bool:
    """Whether the parts of a path match those of a pattern. `**` stands for any number of folders, and at the end for
    any path."""
    if not pattern:
        return not parts
    if pattern[0] == "**":
        return pattern == ("**",) or any(_matches(parts[n:], pattern[1:]) for n in range(len(parts) + 1))
    return bool(parts) and fnmatchcase(parts[0], pattern[0]) and _matches(parts[1:], pattern[1:])
