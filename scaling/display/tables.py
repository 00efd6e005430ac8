"""How results show themselves: one text for a terminal, HTML for a notebook, JSON without NaN."""

from collections.abc import Mapping
from html import escape
from typing import Any

import numpy as np
import pandas as pd

MISSING = "–"


class Shown:
    """A result made of a headline, notes and tables; its classes say what these are."""

    def headline(self) -> str:
        """One line: what was done and what came out."""
        raise NotImplementedError

    def tables(self) -> dict[str, pd.DataFrame]:
        """Title to table; units stand in the column names."""
        raise NotImplementedError

    def notes(self) -> list[str]:
        """What a reader must know to judge the tables, one sentence each."""
        return []

    def summary(self) -> str:
        """The headline, the tables and the notes as text for a terminal."""
        parts = [self.headline()]
        parts += [f"\n{title}\n{table_text(frame)}" for title, frame in self.tables().items()]
        parts += ["", *(f"note: {line}" for line in self.notes())] if self.notes() else []
        return "\n".join(parts)

    def __repr__(self) -> str:
        return self.summary()

    def _repr_html_(self) -> str:
        """The same in a notebook."""
        parts = [f"<p><b>{escape(self.headline())}</b></p>"]
        for title, frame in self.tables().items():
            cells = frame.map(cell_text).to_html(index=False, border=0)
            parts.append(f"<p>{escape(title)}</p>{cells}")
        if self.notes():
            items = "".join(f"<li>{escape(line)}</li>" for line in self.notes())
            parts.append(f"<ul>{items}</ul>")
        return "\n".join(parts)


def cell_text(value: object) -> str:
    """A table's cell in words: four digits, a dash for what is missing."""
    if value is None or (isinstance(value, float) and np.isnan(value)):
        return MISSING
    if isinstance(value, bool | np.bool_):
        return "yes" if value else "no"
    if isinstance(value, float | np.floating):
        return f"{value:.4g}"
    return str(value)


def table_text(frame: pd.DataFrame) -> str:
    """A table as text without an index."""
    if frame.empty:
        return "(no rows)"
    return frame.astype(object).map(cell_text).to_string(index=False)


def plain(value: Any) -> Any:
    """A value as JSON holds it: Python's own numbers, lists, dicts; null for NaN and infinity."""
    if isinstance(value, Mapping):
        return {str(name): plain(one) for name, one in value.items()}
    if isinstance(value, pd.DataFrame):
        return [plain(row) for row in value.to_dict("records")]
    if isinstance(value, list | tuple | np.ndarray):
        return [plain(one) for one in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not np.isfinite(value):
        return None
    return value
