"""Figures without a display, their colours, and their files.

Figures are made with matplotlib's objects and not with pyplot. So nothing has to be closed, threads do not share a
current figure, and no display is needed. The colours are those of Okabe and Ito (2008), which colour-blind readers can
distinguish. Each comes with its own mark and line style, so that curves also differ in grey.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from ..utils.files import atomic_file
from ..utils.import_utils import requires


if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


__all__ = ["new_figure", "save_figure"]

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
ACCENT, MUTED = "#D55E00", "#666666"
_MARKS = "osD^vPX"
_LINES = ("-", "--", "-.", ":")
# Without dates, so that equal figures give equal files.
_METADATA = {".pdf": {"CreationDate": None}, ".svg": {"Date": None}, ".png": {}}


def new_figure(rows: int = 1, columns: int = 1, width: float = 6.0, height: float = 4.0) -> tuple[Figure, list[Axes]]:
    """
    Makes a figure outside pyplot, with panels in the style of this package.

    Args:
        rows (`int`, defaults to 1): Rows of panels.
        columns (`int`, defaults to 1): Panels in a row.
        width (`float`, defaults to 6.0): Width of a panel in inches.
        height (`float`, defaults to 4.0): Height of a panel in inches.

    Returns:
        `tuple[matplotlib.figure.Figure, list[matplotlib.axes.Axes]]`: The figure, for [`save_figure`], and its panels,
        row by row.

    Raises:
        ImportError: If matplotlib is missing (`pip install diffusers_lasers[visualization]`).
    """
    figure = requires("matplotlib.figure", extra="visualization").Figure(
        figsize=(columns * width, rows * height), layout="constrained"
    )
    axes = figure.subplots(rows, columns, squeeze=False)
    for axis in axes.flat:
        axis.grid(alpha=0.3)
        axis.set_axisbelow(True)
        axis.spines[["top", "right"]].set_visible(False)
    return figure, list(axes.flat)


def style(number: int) -> dict[str, str]:
    """Colour, mark and line style of the n-th series."""
    return {
        "color": COLOURS[number % len(COLOURS)],
        "marker": _MARKS[(number + number // len(COLOURS)) % len(_MARKS)],
        "linestyle": _LINES[number // len(COLOURS) % len(_LINES)],
    }


def save_figure(figure: Figure, path: str | os.PathLike, dpi: int = 120) -> None:
    """
    Writes a figure.

    Args:
        figure (`matplotlib.figure.Figure`): The figure.
        path (`str` or `os.PathLike`): The file, `.png`, `.pdf` or `.svg`, in an existing folder. It is written by
            [`utils.files.atomic_file`].
        dpi (`int`, defaults to 120): Pixels per inch of a PNG, at least 1.

    Raises:
        ValueError: If the suffix is another one, `dpi` is below 1, or `path` exists and is not a regular file.
        OSError: If the file cannot be written.
    """
    path = Path(path)
    if path.suffix.lower() not in _METADATA:
        raise ValueError(f"`path` must end with one of {sorted(_METADATA)}, got {path.name!r}.")
    if dpi < 1:
        raise ValueError(f"`dpi` must be at least 1, got {dpi}.")
    suffix = path.suffix.lower()
    with atomic_file(path) as file:
        figure.savefig(file, format=suffix[1:], dpi=dpi, metadata=_METADATA[suffix])
