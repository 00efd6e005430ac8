"""HTML of results for notebooks and pages."""

from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING

from shapelaw.scaling.display.tables import View, text_cells

if TYPE_CHECKING:
    import pandas as pd


def table_html(frame: "pd.DataFrame") -> str:
    """Return a data frame as an HTML table; every cell is formatted and escaped."""
    return text_cells(frame).to_html(index=False, border=0, escape=True)


def list_html(lines: Sequence[str]) -> str:
    """Return lines as an escaped HTML list; an empty text for no lines."""
    items = "".join(f"<li>{escape(line)}</li>" for line in lines)
    return f"<ul>{items}</ul>" if items else ""


def view_html(view: View) -> str:
    """Return the title, tables and notes of a view as HTML; tables without rows are omitted."""
    tables = (
        f"<p>{escape(title)}</p>{table_html(frame)}"
        for title, frame in view.tables.items()
        if len(frame)
    )
    return "\n".join([f"<p><b>{escape(view.title)}</b></p>", *tables, list_html(view.notes)])


def details_html(title: str, text: str) -> str:
    """Return a text as an HTML block that is collapsed under its title."""
    return f"<details><summary>{escape(title)}</summary><pre>{escape(text)}</pre></details>"
