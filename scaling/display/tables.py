"""Results that people read: each offers one :class:`View`, and text, HTML and JSON follow."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

from shapelaw.scaling.display.documents import json_ready

if TYPE_CHECKING:
    import pandas as pd

MISSING = "–"


@dataclass(frozen=True, kw_only=True)
class View:
    """The readable content of a result.

    ``title`` is one line: what was done and what came out. ``tables`` maps titles to data frames
    with units in the column names. ``notes`` say, a sentence each, what a reader must know to
    judge the tables.
    """

    title: str
    tables: Mapping[str, "pd.DataFrame"] = field(default_factory=dict)
    notes: Sequence[str] = ()


class Result:
    """The base of the result dataclasses.

    A class defines :meth:`view`, and :meth:`document` only where its JSON document is not simply
    its fields.
    """

    def view(self) -> View:
        """Return title, tables and notes."""
        raise NotImplementedError

    def document(self) -> dict[str, Any]:
        """Return the content of the JSON document; values need not be plain yet."""
        return {one.name: getattr(self, one.name) for one in fields(self)}  # type: ignore[arg-type]

    def frame(self) -> "pd.DataFrame":
        """Return the main table, by default the first of the view."""
        return next(iter(self.view().tables.values()))

    def summary(self) -> str:
        """Return the view as text for a terminal."""
        from shapelaw.scaling.display.text import view_text

        return view_text(self.view())

    def as_json(self) -> dict[str, Any]:
        """Return the stable JSON document; what is not known is None."""
        return dict(json_ready(self))

    def __repr__(self) -> str:
        return self.summary()

    def _repr_html_(self) -> str:
        """Return the view as HTML for a notebook."""
        from shapelaw.scaling.display.html import view_html

        return view_html(self.view())


def cell_text(value: object, column: str = "") -> str:
    """Format a table's cell: losses with 4 decimals, other numbers with 4 digits.

    Examples
    --------
    >>> cell_text(2.8231467, "loss"), cell_text(0.0123456), cell_text(True), cell_text(None)
    ('2.8231', '0.01235', 'yes', '–')
    """
    value = json_ready(value) if not isinstance(value, float) else float(value)
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return MISSING
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4f}" if "loss" in column and abs(value) >= 1 else f"{value:.4g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {cell_text(one, name)}" for name, one in value.items())
    return ", ".join(map(cell_text, value)) if isinstance(value, list) else str(value)


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
