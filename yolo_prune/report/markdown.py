"""Rows of Markdown tables, in which a name may hold what separates the cells."""

from __future__ import annotations

from collections.abc import Iterable


def cell(text: str) -> str:
    r"""Return a text for one cell: on one line, with its vertical bars escaped.

    Example:
        >>> cell("a|b")
        'a\\|b'
    """
    return " ".join(text.split("\n")).replace("|", r"\|")


def table_row(cells: Iterable[str]) -> str:
    """Return one row of a table."""
    return f"| {' | '.join(cell(text) for text in cells)} |"
