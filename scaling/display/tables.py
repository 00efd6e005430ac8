"""Base class of results: text, HTML and JSON made from one :class:`View` of each result."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

from shapelaw.scaling.display.documents import json_ready
from shapelaw.scaling.display.printable import printable

if TYPE_CHECKING:
    import pandas as pd

MISSING = "–"
MIN_FOUR_DECIMALS = 1e-3  # a smaller loss, such as a standard error, has four digits instead


@dataclass(frozen=True, kw_only=True)
class View:
    """The readable content of a result.

    ``title`` is one line with the task and its outcome. ``tables`` maps titles to data frames
    with units in the column names. ``notes`` are sentences that a reader needs to judge the tables.
    """

    title: str
    tables: Mapping[str, "pd.DataFrame"] = field(default_factory=dict)
    notes: Sequence[str] = ()


class Result:
    """The base class of result dataclasses.

    A subclass defines :meth:`view`, and defines :meth:`document` only where its JSON document
    differs from its fields.
    """

    def view(self) -> View:
        """Return title, tables and notes."""
        raise NotImplementedError

    def document(self) -> dict[str, Any]:
        """Return the content of the JSON document, before conversion to plain values."""
        names = [each.name for each in fields(self)]  # type: ignore[arg-type]
        return {name: getattr(self, name) for name in names}

    def frame(self) -> "pd.DataFrame":
        """Return the main table, by default the first of the view."""
        return next(iter(self.view().tables.values()))

    def summary(self) -> str:
        """Return the view as text for a terminal."""
        from shapelaw.scaling.display.text import view_text

        return view_text(self.view())

    def as_json(self) -> dict[str, Any]:
        """Return the stable JSON document, with None for missing values."""
        return dict(json_ready(self))

    def __repr__(self) -> str:
        return self.summary()

    def _repr_html_(self) -> str:
        """Return the view as HTML for a notebook."""
        from shapelaw.scaling.display.html import view_html

        return view_html(self.view())


def cell_text(value: object, column: str = "") -> str:
    """Format a table's cell: losses with four decimals, other numbers with four digits.

    Parameters
    ----------
    value
        A number, text, list or mapping, or None.
    column
        The name of the column; a name with ``loss`` is that of a loss.

    Examples
    --------
    >>> cell_text(2.8231467, "loss"), cell_text(0.5, "loss"), cell_text(0.0123456), cell_text(None)
    ('2.8231', '0.5000', '0.01235', '–')
    """
    value = json_ready(value) if not isinstance(value, float) else float(value)
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return MISSING
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        decimals = "loss" in column and abs(value) >= MIN_FOUR_DECIMALS
        return f"{value:.4f}" if decimals else f"{value:.4g}"
    if isinstance(value, Mapping):
        return ", ".join(
            f"{printable(name)} {cell_text(item, name)}" for name, item in value.items()
        )
    if isinstance(value, list):
        return ", ".join(map(cell_text, value))
    return printable(str(value), keep="\n")


def text_cells(frame: "pd.DataFrame") -> "pd.DataFrame":
    """Format every cell of a data frame."""
    import pandas as pd

    columns = {
        name: [cell_text(value, str(name)) for value in column] for name, column in frame.items()
    }
    return pd.DataFrame(columns, dtype=object)


def counted(count: int, noun: str, plural: str = "") -> str:
    """Write a number with its noun in the singular or the plural.

    Examples
    --------
    >>> counted(1, "size"), counted(2, "size"), counted(2, "batch", "batches")
    ('1 size', '2 sizes', '2 batches')
    """
    return f"{count} {noun if count == 1 else plural or noun + 's'}"
