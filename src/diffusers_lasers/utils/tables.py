"""Figures as Markdown tables: text in the first column, numbers to the right in the others."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any


MISSING = "–"


def markdown_table(headers: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table with the titles of the columns and the cells of each row; no line break at its end."""
    lines = ["| " + " | ".join(headers) + " |", "| --- |" + " ---: |" * (len(headers) - 1)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def figure_table(
    first: str, columns: Sequence[tuple[str, str, str]], rows: Iterable[tuple[str, Mapping[str, Any]]]
) -> str:
    """
    A Markdown table of figures; no line break at its end.

    Args:
        first (`str`): Title of the first column.
        columns (`Sequence[tuple[str, str, str]]`): Key, title and format, such as `"{:.2f}"`, of each other column.
        rows (`Iterable[tuple[str, Mapping]]`): Text of the first column, and figures by key; `None` is a dash.
    """

    def cell(value: Any, form: str) -> str:
        return MISSING if value is None else form.format(value)

    cells = [[name, *(cell(figures.get(key), form) for key, _, form in columns)] for name, figures in rows]
    return markdown_table([first, *(title for _, title, _ in columns)], cells)
