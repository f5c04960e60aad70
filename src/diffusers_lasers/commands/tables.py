"""Figures as Markdown tables: text in the first column, numbers to the right in the others."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any


MISSING = "–"


def markdown_table(headers: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """
    A Markdown table.

    Args:
        headers (`Sequence[str]`): Titles of the columns.
        rows (`Iterable[Sequence[str]]`): Their cells.

    Returns:
        `str`: The lines, without a line break after the last one.
    """
    lines = ["| " + " | ".join(headers) + " |", "| --- |" + " ---: |" * (len(headers) - 1)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def figure_table(
    first: str, columns: Sequence[tuple[str, str, str]], rows: Iterable[tuple[str, Mapping[str, Any]]]
) -> str:
    """
    A Markdown table of figures.

    Args:
        first (`str`): Title of the first column.
        columns (`Sequence[tuple[str, str, str]]`): For each other column the key of its figure, its title and a format
            such as `"{:.2f}"`.
        rows (`Iterable[tuple[str, Mapping]]`): Text of the first column, and the figures by key. One that is `None` or
            not there is a dash.

    Returns:
        `str`: The lines, without a line break after the last one.
    """

    def cell(value: Any, form: str) -> str:
        return MISSING if value is None else form.format(value)

    cells = [[name, *(cell(figures.get(key), form) for key, _, form in columns)] for name, figures in rows]
    return markdown_table([first, *(title for _, title, _ in columns)], cells)
