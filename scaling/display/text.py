"""Text of results: tables that fit the terminal, or ``COLUMNS``, or 80 columns in a pipe."""

import shutil
from collections.abc import Callable, Iterator
from io import StringIO
from typing import TYPE_CHECKING

from shapelaw.scaling.display.tables import View, text_cells

if TYPE_CHECKING:
    import pandas as pd
    from rich.console import Console
    from rich.table import Table

WIDTH = 80
LINES = (30, 24, 18, 12)  # lengths at which the words of a cell are wrapped, the first that fits
GAP = 2  # spaces between columns


def console_width() -> int:
    """Return the width to print at: ``COLUMNS``, else the terminal's, else 80."""
    return shutil.get_terminal_size((WIDTH, 0)).columns


def write_view(view: View, console: "Console") -> None:
    """Write title, tables and notes to a console."""
    console.out(view.title, highlight=False)
    for title, frame in view.tables.items():
        if len(frame):
            write_table(frame, title, console)
    if view.tables and view.notes:
        console.out()
    for line in view.notes:
        console.out(f"- {line}", highlight=False)


def write_table(frame: "pd.DataFrame", title: str, console: "Console") -> None:
    """Write a data frame to a console.

    A table too wide for the console is cut into several below each other, each with the first
    column; a single row becomes a list of names and values.
    """
    if title:
        console.out(f"\n{title}", highlight=False)
    with console.capture() as captured:
        for number, table in enumerate(_tables(frame, console.width)):
            if number:
                console.print()
            console.print(table)
    lines = captured.get().splitlines()
    console.file.write("".join(line.rstrip() + "\n" for line in lines))  # rich pads them


def view_text(view: View, width: int | None = None) -> str:
    """Return a view as plain text."""
    return _captured(width, lambda console: write_view(view, console))


def table_text(frame: "pd.DataFrame", width: int | None = None) -> str:
    """Return a data frame as plain text."""
    return _captured(width, lambda console: write_table(frame, "", console))


def _captured(width: int | None, write: "Callable[[Console], None]") -> str:
    from rich.console import Console

    file = StringIO()
    write(Console(file=file, width=width or console_width(), color_system=None))
    return file.getvalue().rstrip("\n")


def _tables(frame: "pd.DataFrame", width: int) -> "Iterator[Table]":
    """Cut a data frame into tables of at most a width."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    texts = text_cells(frame)
    texts.columns = texts.columns.map(str)
    texts = texts.loc[:, (texts != "").any()]  # a column of empty texts says nothing
    numeric = set(frame.select_dtypes("number").columns.map(str))
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
            table.add_row(*map(Text, row))  # a name in brackets is no markup
        yield table


def _blocks(texts: "pd.DataFrame", width: int) -> Iterator[list[str]]:
    """Names of the columns that fit beside each other, the first column in every block."""
    names = list(texts.columns)
    for limit in LINES:
        needs = {name: _needed(name, texts[name], limit) for name in names}
        if sum(needs.values()) + GAP * (len(names) - 1) <= width:
            yield names
            return
    needs = {name: _needed(name, texts[name], LINES[0]) for name in names}
    block, used = names[:1], needs[names[0]]
    for name in names[1:]:
        if used + GAP + needs[name] > width and len(block) > 1:
            yield block
            block, used = names[:1], needs[names[0]]
        block = [*block, name]
        used += GAP + needs[name]
    yield block


def _needed(name: str, cells: "pd.Series[str]", limit: int) -> int:
    """The width of a column in which words stay whole and lines up to a limit do too."""
    lines = [line for cell in (name, *cells) for line in cell.splitlines()]
    words = [word for line in lines for word in line.split()]
    longest = max(map(len, lines), default=0)
    return min(longest, max(limit, max(map(len, words), default=0)))
