"""Summary of a space and its table of shapes, computed in one pass over chunks."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from shapelaw.scaling.display.tables import Result, View
from shapelaw.scaling.errors import InputError
from shapelaw.scaling.files import write_whole
from shapelaw.scaling.space.constraints import Columns
from shapelaw.scaling.space.family_space import FamilySpace
from shapelaw.scaling.space.family_table import FamilyColumns
from shapelaw.scaling.space.space import Space
from shapelaw.scaling.units import format_bytes, format_count

if TYPE_CHECKING:
    import pandas as pd

CONSTANT_FIELDS = ("vocab_size", "tie_word_embeddings", "qk_norm", "rope_theta")
ENDINGS = (".csv", ".parquet")
Write = Callable[["pd.DataFrame"], None]


@dataclass(frozen=True, kw_only=True, repr=False)
class Survey(Result):
    """A summary of a space.

    Attributes
    ----------
    shapes
        Number of shapes.
    left
        Combinations or shapes that each limit leaves, in the order of application.
    ranges
        Smallest and largest value of each field and derived column.
    """

    shapes: int
    left: dict[str, int]
    ranges: dict[str, tuple[float, float]]

    def view(self) -> View:
        """Return the counts that the limits leave, and the ranges of the columns."""
        import pandas as pd

        ranges = [
            {"column": name, "least": _range_end(name, low), "greatest": _range_end(name, high)}
            for name, (low, high) in self.ranges.items()
        ]
        return View(
            title=f"{self.shapes:,} {'shape' if self.shapes == 1 else 'shapes'}",
            tables={
                "what each limit leaves": pd.DataFrame(self._limits()).assign(
                    left=[f"{number:,}" for number in self.left.values()]
                ),
                "ranges": pd.DataFrame(ranges),
            },
        )

    def document(self) -> dict[str, Any]:
        """Return the document that ``space --json`` prints."""
        return {"shapes": self.shapes, "left": self._limits(), "ranges": self.ranges}

    def _limits(self) -> list[dict[str, Any]]:
        return [{"limit": name, "left": number} for name, number in self.left.items()]


def _range_end(column: str, value: float) -> str:
    """Format a value: bytes and parameter counts with a unit, ratios with four digits."""
    if column.endswith("bytes"):
        return format_bytes(value)
    if column.startswith("n_"):
        return format_count(value)
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:.4g}"


def survey(space: Space | FamilySpace, out: Path | None = None) -> Survey:
    """Summarise a space, and optionally write its shapes to a table.

    The table has the fields of a shape, its counts, ratios and bytes, and one row for each shape in
    the order of :meth:`shapelaw.scaling.space.space.Space.enumerate`, or the fields of the config
    of a family.

    Parameters
    ----------
    space
        The space.
    out
        File of the table (.csv or .parquet); None writes no table.

    Raises
    ------
    shapelaw.scaling.errors.InputError
        The space is empty or too large, or the file has another ending.
    shapelaw.scaling.errors.WorkError
        The file cannot be written; an incomplete file is removed.
    """
    if out is None:
        return _enumerate(space, None)
    if out.suffix.lower() not in ENDINGS:
        raise InputError(f"`--out` must end in {' or '.join(ENDINGS)}, but got {out}; rename it")
    surveys: list[Survey] = []

    def write(target: Path) -> None:
        with _table_file(target) as write_chunk:
            surveys.append(_enumerate(space, write_chunk))

    write_whole(out, write)
    return surveys[0]


def _enumerate(space: Space | FamilySpace, write_chunk: Write | None) -> Survey:
    import pandas as pd

    left: dict[str, int] = {}
    ranges: dict[str, tuple[float, float]] = {}
    shapes = 0
    for columns in space.column_chunks(left):
        shapes += len(columns.table)
        ranges = _widened(ranges, columns)
        if write_chunk is not None:
            write_chunk(pd.DataFrame({name: columns[name] for name in columns}))
    return Survey(shapes=shapes, left=left, ranges=ranges)


def _varying(columns: Columns | FamilyColumns) -> list[str]:
    return [name for name in columns if name not in CONSTANT_FIELDS]


def _widened(
    ranges: dict[str, tuple[float, float]], columns: Columns | FamilyColumns
) -> dict[str, tuple[float, float]]:
    """Widen the ranges by the numbers of some rows; texts and missing numbers have no range."""
    widened = dict(ranges)
    for name in _varying(columns):
        values = columns[name]
        if values.dtype.kind not in "ifu":
            continue
        values = values[np.isfinite(values)]
        if len(values):
            ends = (values.min().item(), values.max().item())
            low, high = ranges.get(name, ends)
            widened[name] = (min(low, ends[0]), max(high, ends[1]))
    return widened


@contextmanager
def _table_file(target: Path) -> Iterator[Write]:
    """Open a table file; yield a function that appends a data frame of the same columns."""
    if target.suffix.lower() == ".csv":
        with target.open("w", encoding="utf-8", newline="") as file:
            yield lambda frame: frame.to_csv(file, index=False, header=file.tell() == 0)
        return
    import pyarrow as pa
    import pyarrow.parquet as pq

    writer: list[Any] = []

    def write_chunk(frame: "pd.DataFrame") -> None:
        table = pa.Table.from_pandas(frame, preserve_index=False)
        if not writer:
            writer.append(pq.ParquetWriter(target, table.schema))
        writer[0].write_table(table)

    try:
        yield write_chunk
    finally:
        for opened in writer:
            opened.close()
