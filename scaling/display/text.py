"""Text of results, as wide as ``COLUMNS``, else as the terminal, else 80 columns."""

import shutil
from collections.abc import Iterator
from io import StringIO
from typing import TYPE_CHECKING

from shapelaw.scaling.display.printable import printable
from shapelaw.scaling.display.tables import View, text_cells

if TYPE_CHECKING:
    import pandas as pd
    from rich.console import Console
    from rich.table import Table

DEFAULT_WIDTH = 80
WRAP_LENGTHS = (30, 24, 18, 12)  # line lengths of wrapped cells; the first that fits is used
GAP = 2  # spaces between columns
ROW = "row"  # heading of the numbers of rows in a table that is split


def console_width() -> int:
    """Return the width to print at: ``COLUMNS``, else the terminal's, else 80."""
    return shutil.get_terminal_size((DEFAULT_WIDTH, 0)).columns


def write_view(view: View, console: "Console") -> None:
    """Write title, tables and notes to a console."""
    console.out(printable(view.title), highlight=False)
    for title, frame in view.tables.items():
        if len(frame):
            write_table(frame, title, console)
    if view.tables and view.notes:
        console.out()
    for line in view.notes:
        console.out(f"- {printable(line)}", highlight=False)


def write_table(frame: "pd.DataFrame", title: str, console: "Console") -> None:
    """Write a data frame to a console.

    A table that is too wide for the console is split into several tables, each with the first
    column, or with numbers of the rows where the first column does not tell them apart; a single
    row becomes a list of names and values.

    Parameters
    ----------
    frame
        The table.
    title
        A line above the table; empty for none.
    console
        The console, whose width limits the table.
    """
    if title:
        console.out(f"\n{printable(title)}", highlight=False)
    with console.capture() as captured:
        for number, table in enumerate(_tables(frame, console.width)):
            if number:
                console.print()
            console.print(table)
    lines = captured.get().splitlines()
    console.file.write("".join(line.rstrip() + "\n" for line in lines))  # without rich's padding


def view_text(view: View, width: int | None = None) -> str:
    """Return a view as plain text."""
    from rich.console import Console

    file = StringIO()
    # In a notebook rich would display every line as an output of its own.
    console = Console(
        file=file, width=width or console_width(), color_system=None, force_jupyter=False
    )
    write_view(view, console)
    return file.getvalue().rstrip("\n")


def _tables(frame: "pd.DataFrame", width: int) -> "Iterator[Table]":
    """Split a data frame into tables of at most ``width`` characters."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    texts = text_cells(frame)
    texts.columns = [printable(str(name)) for name in texts.columns]
    texts = texts.loc[:, (texts != "").any()]  # columns of empty texts are omitted
    numeric = {printable(str(name)) for name in frame.select_dtypes("number").columns}
    blocks = list(_blocks(texts, width))
    if len(blocks) > 1 and texts.iloc[:, 0].duplicated().any() and ROW not in texts:
        texts.insert(0, ROW, [str(row) for row in range(1, len(texts) + 1)])
        numeric.add(ROW)
        blocks = list(_blocks(texts, width))
    header = len(blocks) == 1 or len(texts) > 1
    if not header:
        texts = texts.T.reset_index()
        texts.columns, blocks = ["name", "value"], [["name", "value"]]
    for block in blocks:
        table = Table(
            box=SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, GAP - 1, 0, 0),
            header_style="bold", show_header=header,
        )  # fmt: skip
        for name in block:
            table.add_column(
                Text(name), justify="right" if name in numeric else "left", overflow="fold"
            )
        for row in texts[block].itertuples(index=False):
            table.add_row(*map(Text, row))  # Text, so that rich does not read brackets as markup
        yield table


def _blocks(texts: "pd.DataFrame", width: int) -> Iterator[list[str]]:
    """Group the names of columns that fit beside each other, with the first in every group."""
    names = list(texts.columns)
    for limit in WRAP_LENGTHS:
        needs = {name: _needed(name, texts[name], limit) for name in names}
        if sum(needs.values()) + GAP * (len(names) - 1) <= width:
            yield names
            return
    needs = {name: _needed(name, texts[name], WRAP_LENGTHS[0]) for name in names}
    block, used = names[:1], needs[names[0]]
    for name in names[1:]:
        if used + GAP + needs[name] > width and len(block) > 1:
            yield block
            block, used = names[:1], needs[names[0]]
        block = [*block, name]
        used += GAP + needs[name]
    yield block


def _needed(name: str, cells: "pd.Series[str]", limit: int) -> int:
    """Compute the width of a column that wraps no word, and no line up to a limit."""
    lines = [line for cell in (name, *cells) for line in cell.splitlines()]
    words = [word for line in lines for word in line.split()]
    longest = max(map(len, lines), default=0)
    return min(longest, max(limit, max(map(len, words), default=0)))
