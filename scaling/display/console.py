"""Output of commands: one JSON document, or tables and lines for people."""

import json
import sys
import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from shapelaw.scaling.display.printable import one_line, printable

if TYPE_CHECKING:
    import pandas as pd
    from rich.console import Console

    from shapelaw.scaling.display.tables import Result


def print_json(value: object) -> None:
    """Print a result or a mapping as one JSON object with a schema version."""
    from shapelaw.scaling.display.documents import printed_document

    sys.stdout.write(json.dumps(printed_document(value), indent=1, allow_nan=False) + "\n")


def print_result(result: "Result", *, json: bool = False) -> None:
    """Print the JSON document of a result, or its title, tables and notes."""
    if json:
        print_json(result)
        return
    from shapelaw.scaling.display.text import write_view

    write_view(result.view(), _console())


def print_table(frame: "pd.DataFrame", title: str = "") -> None:
    """Print a data frame as a table that fits the terminal."""
    from shapelaw.scaling.display.text import write_table

    write_table(frame, title, _console())


def print_fields(values: Mapping[str, Any], *, json: bool = False) -> None:
    """Print named values, as a JSON object or one per line."""
    if json:
        print_json(values)
        return
    from shapelaw.scaling.display.tables import cell_text

    width = max(map(len, values), default=0)
    echo("\n".join(f"{name:<{width}}  {cell_text(value, name)}" for name, value in values.items()))


def note(text: str) -> None:
    """Print one line of at most 300 characters to standard error, beside the output."""
    sys.stderr.write(one_line(text) + "\n")


def hide_warnings() -> None:
    """Hide Python warnings of libraries, which would stand between the lines for people.

    ``python -W`` and PYTHONWARNINGS show them.
    """
    if not sys.warnoptions:
        warnings.simplefilter("ignore")


def echo(text: object) -> None:
    """Print lines to standard output, without the terminal sequences that names may hold."""
    sys.stdout.write(printable(str(text), keep="\n\t") + "\n")


def _console() -> "Console":
    from rich.console import Console

    from shapelaw.scaling.display.text import console_width

    return Console(width=console_width())
