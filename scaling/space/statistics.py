"""A space in figures and in a file, in one pass that holds a chunk at a time."""

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
from shapelaw.scaling.space.space import Space

if TYPE_CHECKING:
    import pandas as pd

SAME_EVERYWHERE = ("vocab_size", "tie_word_embeddings", "qk_norm", "rope_theta")
ENDINGS = (".csv", ".parquet")
Keep = Callable[["pd.DataFrame"], None]


@dataclass(frozen=True, kw_only=True, repr=False)
class Survey(Result):
    """What a space holds.

    Attributes
    ----------
    shapes
        How many.
    left
        What each limit leaves, in the order of application.
    ranges
        Least and greatest value of each field and of what follows from it.
    """

    shapes: int
    left: dict[str, int]
    ranges: dict[str, tuple[float, float]]

    def view(self) -> View:
        """Return what each limit leaves, and the range of each column."""
        import pandas as pd

        ranges = [
            {"column": name, "least": f"{low:,.6g}", "greatest": f"{high:,.6g}"}
            for name, (low, high) in self.ranges.items()
        ]
        return View(
            title=f"{self.shapes:,} {'shape' if self.shapes == 1 else 'shapes'}",
            tables={
                "what each limit leaves": pd.DataFrame(self._limits()),
                "ranges": pd.DataFrame(ranges),
            },
        )

    def document(self) -> dict[str, Any]:
        """Return what ``space --json`` prints."""
        return {"shapes": self.shapes, "left": self._limits(), "ranges": self.ranges}

    def _limits(self) -> list[dict[str, Any]]:
        return [{"limit": name, "left": number} for name, number in self.left.items()]


def survey(space: Space, out: Path | None = None) -> Survey:
    """Go through a space; with ``out``, write its shapes to a table (.csv or .parquet).

    The table has the fields of a shape, its counts, ratios and bytes, a row for each shape in the
    order of :meth:`shapelaw.scaling.space.space.Space.enumerate`.

    Raises
    ------
    shapelaw.scaling.errors.InputError
        The space is empty or too large, or the file's ending is none of these.
    shapelaw.scaling.errors.WorkError
        The file cannot be written; nothing is then left of it.
    """
    if out is None:
        return _pass(space, None)
    if out.suffix not in ENDINGS:
        raise InputError(f"`--out` must end in {' or '.join(ENDINGS)}, but got {out}")
    found: list[Survey] = []

    def write(target: Path) -> None:
        with _table_file(target) as keep:
            found.append(_pass(space, keep))

    write_whole(out, write)
    return found[0]


def _pass(space: Space, keep: Keep | None) -> Survey:
    import pandas as pd

    left: dict[str, int] = {}
    ranges: dict[str, tuple[float, float]] = {}
    shapes = 0
    for chunk in space.chunks(left=left):
        columns = space.columns(chunk)
        shapes += len(chunk)
        ranges = {name: _wider(ranges.get(name), columns[name]) for name in _varying(columns)}
        if keep is not None:
            keep(pd.DataFrame({name: columns[name] for name in columns}))
    return Survey(shapes=shapes, left=left, ranges=ranges)


def _varying(columns: Columns) -> list[str]:
    return [name for name in columns if name not in SAME_EVERYWHERE]


def _wider(ends: tuple[float, float] | None, values: np.ndarray) -> tuple[float, float]:
    low, high = values.min().item(), values.max().item()
    return (low, high) if ends is None else (min(low, ends[0]), max(high, ends[1]))


@contextmanager
def _table_file(target: Path) -> Iterator[Keep]:
    """A table that grows by data frames of the same columns."""
    if target.suffix == ".csv":
        with target.open("w", encoding="utf-8", newline="") as file:
            yield lambda frame: frame.to_csv(file, index=False, header=file.tell() == 0)
        return
    import pyarrow as pa
    import pyarrow.parquet as pq

    writer: list[Any] = []

    def keep(frame: "pd.DataFrame") -> None:
        table = pa.Table.from_pandas(frame, preserve_index=False)
        if not writer:
            writer.append(pq.ParquetWriter(target, table.schema))
        writer[0].write_table(table)

    try:
        yield keep
    finally:
        for opened in writer:
            opened.close()
