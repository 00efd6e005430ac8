"""What commands print: one JSON document, or tables and lines for people."""

import json
import sys
from collections.abc import Hashable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

    from shapelaw.scaling.display.tables import Shown


def print_json(document: object) -> None:
    """Print one JSON document to standard output."""
    sys.stdout.write(json.dumps(document, indent=1, allow_nan=False) + "\n")


def print_table(frame: "pd.DataFrame", title: str = "") -> None:
    """Print a data frame of texts as a table that fits the terminal."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title or None, title_justify="left", header_style="bold")
    for column in frame.columns:
        table.add_column(str(column), overflow="fold")
    for row in frame.itertuples(index=False):
        table.add_row(*(str(value) for value in row))
    console = Console()
    # A pipe has no width: do not fold there.
    Console(width=console.width if console.is_terminal else 200).print(table)


def print_shown(found: "Shown") -> None:
    """Print a result: its headline and notes, and its tables."""
    from shapelaw.scaling.display.tables import cell_text

    sys.stdout.write(found.headline() + "\n")
    for title, frame in found.tables().items():
        if not frame.empty:
            print_table(frame.astype(object).map(cell_text), title)
    sys.stdout.write("".join(f"note: {line}\n" for line in found.notes()))


def note(text: str) -> None:
    """Print a line to standard error, where it does not mix with a document."""
    sys.stderr.write(text + "\n")


def json_row(row: Mapping[Hashable, Any]) -> dict[str, Any]:
    """A table's row as JSON holds it: Python's own numbers, null for what is missing."""
    plain = {str(name): getattr(value, "item", lambda v=value: v)() for name, value in row.items()}
    return {name: None if value != value else value for name, value in plain.items()}
