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
    """Return lines as an HTML list, escaped; nothing where there are none."""
    items = "".join(f"<li>{escape(line)}</li>" for line in lines)
    return f"<ul>{items}</ul>" if items else ""


def view_html(view: View) -> str:
    """Return title, tables and notes as HTML."""
    tables = (
        f"<p>{escape(name)}</p>{table_html(one)}" for name, one in view.tables.items() if len(one)
    )
    return "\n".join([f"<p><b>{escape(view.title)}</b></p>", *tables, list_html(view.notes)])


def details_html(title: str, text: str) -> str:
    """Return text that is folded under its title."""
    return f"<details><summary>{escape(title)}</summary><pre>{escape(text)}</pre></details>"
