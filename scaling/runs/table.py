"""Run tables: finished training runs, checked once when they are loaded."""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, wraps
from html import escape
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

import numpy as np
import pandas as pd

from shapelaw.scaling.architectures.shape import INTEGER_FIELDS, RATIOS
from shapelaw.scaling.errors import InputError
from shapelaw.scaling.files import write_whole
from shapelaw.scaling.filters import names_in, select
from shapelaw.scaling.runs.checking import TableNotation, check_frame, shorten_left_out
from shapelaw.scaling.runs.columns import (
    COLUMNS,
    EXPERT_COLUMNS,
    EXPERT_RATIOS,
    SIZES,
    D,
    N,
    columns_of,
)
from shapelaw.scaling.runs.diagnosis import list_remarks, list_warnings, row_marks
from shapelaw.scaling.runs.expert_ratios import require_expert_ratios
from shapelaw.scaling.runs.levels import level_of
from shapelaw.scaling.runs.ratios import sizes_without_embedding
from shapelaw.scaling.runs.reader import read_table
from shapelaw.scaling.runs.replicates import noise_by_size, replicates_of, squares_of
from shapelaw.scaling.runs.validation import as_floats, require_columns
from shapelaw.scaling.units import NATS

SOURCE = "the run table"  # name in errors of a table without a name
AUTO = "auto"  # convention of N: the first of SIZES for which a table has a column
RUN_GROUP = "run_group"  # column that names the training run of each checkpoint

Values = TypeVar("Values", np.ndarray, np.ndarray | None)


def per_row(resolve: Callable[["RunTable"], Values]) -> cached_property[Values]:
    """Make a cached property of one value per row, which parts of a table take from the whole."""

    @wraps(resolve)
    def value(runs: "RunTable") -> Values:
        if runs._part is None:
            return resolve(runs)
        whole, rows = runs._part
        resolved: Values = getattr(whole, resolve.__name__)
        if resolved is not None:
            resolved = resolved[rows]
        return resolved

    return cached_property(value)


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class RunTable:
    """Finished training runs with their conventions (counting of N, unit of the loss) resolved.

    :func:`shapelaw.scaling.runs.catalog.load_runs` makes a run table from a file or a name, and
    :meth:`of` from a frame. ``len(runs)`` counts runs, ``runs["loss"]`` is a column, ``"loss" in
    runs`` tests for one, ``runs.frame`` is the whole frame, and :meth:`select` filters runs.
    Levels, replicates and run groups are numbers per row. They are computed at their first use;
    a part of a table has those of the whole table.

    Parameters
    ----------
    frame
        One row per run; :data:`shapelaw.scaling.runs.columns.COLUMNS` describes the columns.
    size
        Convention of N: ``non-embedding``, ``total``, ``active`` or ``active-non-embedding``
        parameters; ``"auto"`` is the first of these that the table has.
    loss_unit
        Unit of the losses.
    source
        Name, citation, licence and address of the table, each where available.
    left_out
        Runs that were removed from the table, with the reason.
    notes
        Conversions of the values, as sentences.

    Raises
    ------
    InputError
        The convention of N is unknown, or the table lacks its column.
    """

    frame: pd.DataFrame
    size: str = AUTO
    loss_unit: str = NATS
    source: Mapping[str, str] = field(default_factory=dict)
    left_out: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    _part: "tuple[RunTable, np.ndarray] | None" = None

    def __post_init__(self) -> None:
        size = self.size
        if size not in (*SIZES, AUTO):
            raise InputError(f"`size` must be {AUTO}, {', '.join(SIZES)}, but got {size!r}")
        if size == AUTO:
            # A law without N fits a table without any count.
            size = next((name for name, column in SIZES.items() if column in self.frame), "")
        else:
            require_columns(self.frame, (SIZES[size],), SOURCE)
        object.__setattr__(self, "size", size or next(iter(SIZES)))

    @classmethod
    def of(
        cls,
        frame: pd.DataFrame,
        name: str = SOURCE,
        *,
        where: str | None = None,
        exclude: Iterable[str] = (),
        size: str = AUTO,
        notation: TableNotation = TableNotation(),  # noqa: B008 (immutable)
    ) -> "RunTable":
        """Make a checked run table from a frame, as ``load_runs`` does from a file.

        Parameters
        ----------
        frame
            One row per run. Its index must count the rows from 0, since errors derive line numbers
            from it.
        name
            Name of the table in error messages.
        where, exclude, size
            As in :func:`shapelaw.scaling.runs.catalog.load_runs`.
        notation
            Names of the columns, unit of the losses, and treatment of failed runs.

        Raises
        ------
        InputError
            A value breaks a rule; the message names the line, column and value.
        """
        return cls(size=size, **check_frame(frame, name, where, exclude, notation))

    # ---- access to rows and columns

    def __len__(self) -> int:
        return len(self.frame)

    def __contains__(self, name: object) -> bool:
        return name in self.frame

    def __iter__(self) -> Iterator[str]:
        return iter(self.columns)

    def __getitem__(self, name: str) -> pd.Series:
        require_columns(self.frame, (name,), SOURCE)
        return self.frame[name]

    @property
    def columns(self) -> list[str]:
        """Names of the columns."""
        return list(map(str, self.frame))

    def select(self, where: str) -> "RunTable":
        """Keep the runs that match a filter such as ``"role == 'proxy' and gqa == 2"``.

        Raises
        ------
        InputError
            The filter has a syntax error, or names a column that the table lacks.
        """
        known: dict[str, Any] = {name: self.frame[name] for name in self.columns}
        known |= row_marks(self.frame, names_in(where))
        chosen = select(where, known, len(self))
        dropped = dict.fromkeys(self.run_ids[~chosen].tolist(), f"not in `{where}`")
        return replace(self.take(chosen), left_out=shorten_left_out({**self.left_out, **dropped}))

    def take(self, rows: np.ndarray | Sequence[int]) -> "RunTable":
        """Take the runs of a mask or of positions, (m,), with their levels in the whole table."""
        rows = np.asarray(rows)
        rows = np.flatnonzero(rows) if rows.dtype == np.bool_ else rows
        rows = rows if rows.size else rows.astype(int)  # an empty list has the type float
        whole, before = self._part or (self, np.arange(len(self)))
        return replace(self, frame=self.frame.iloc[rows], _part=(whole, before[rows]))

    def assign(self, **columns: Any) -> "RunTable":
        """Add or replace columns; levels and replicates are then computed again."""
        return replace(self, frame=self.frame.assign(**columns), _part=None)

    def counting(self, size: str) -> "RunTable":
        """Count N by another convention; ``"auto"`` keeps the present one.

        Raises
        ------
        InputError
            The convention is unknown, or the table lacks its column.
        """
        if size in (AUTO, self.size):
            return self
        part = self._part and (self._part[0].counting(size), self._part[1])
        return replace(self, size=size, _part=part)

    # ---- N, D, loss and compute

    @property
    def size_column(self) -> str:
        """Name of the column that holds N."""
        return SIZES[self.size]

    @property
    def has_sizes(self) -> bool:
        """True if the table has the column that holds N."""
        return self.size_column in self.frame

    @property
    def sizes(self) -> np.ndarray:
        """N of every run, parameters, (n,)."""
        return self.law_columns((N,))[N]

    @property
    def tokens(self) -> np.ndarray:
        """D of every run, training tokens, (n,)."""
        return self.law_columns((D,))[D]

    @property
    def losses(self) -> np.ndarray:
        """Loss of every run in ``loss_unit``, (n,)."""
        return self.law_columns(("loss",))["loss"]

    @property
    def loss_kind(self) -> str:
        """Kind of the losses: exact, bound or mixed; a fit refuses mixed losses."""
        kinds = self.frame["loss_kind"].unique() if "loss_kind" in self.frame else ["exact"]
        return str(kinds[0]) if len(kinds) == 1 else "mixed"

    def law_columns(self, names: Sequence[str]) -> dict[str, np.ndarray]:
        """Read the columns of a law as floats, (n,) each; ``n_non_embedding`` stands for N.

        Raises
        ------
        InputError
            The table lacks a column, or a column holds values other than numbers.
        """
        columns = {name: self.size_column if name == N else name for name in names}
        require_expert_ratios(self.frame, names)
        require_columns(self.frame, columns.values(), SOURCE)
        return {name: columns_of(self.frame, (column,))[column] for name, column in columns.items()}

    @per_row
    def compute(self) -> np.ndarray:
        """Training FLOPs of every run, (n,): ``flops_6nd`` where all runs have it, else 6 N D."""
        if "flops_6nd" in self.frame:
            flops = as_floats(self.frame["flops_6nd"])
            if (flops > 0).all():
                return flops
        return np.asarray(6.0 * self.sizes * self.tokens)

    # ---- levels, shapes, replicates and run groups

    @per_row
    def run_ids(self) -> np.ndarray:
        """Names of the runs, (n,)."""
        if "run_id" in self.frame:
            return self.frame["run_id"].astype(str).to_numpy(dtype=object)
        return np.array([f"row-{row}" for row in range(len(self))], dtype=object)

    @per_row
    def size_level(self) -> np.ndarray:
        """Level of N of every run, (n,): sizes within 10 % of each other are one level."""
        return level_of(self.sizes)

    @per_row
    def token_level(self) -> np.ndarray:
        """Level of D of every run, (n,)."""
        return level_of(self.tokens)

    @per_row
    def compute_level(self) -> np.ndarray:
        """Level of the training FLOPs of every run, (n,)."""
        return level_of(self.compute)

    @per_row
    def shapes(self) -> np.ndarray | None:
        """Return the number of every run's shape, (n,); None where no column describes a shape."""
        described = {*INTEGER_FIELDS, *RATIOS, *EXPERT_RATIOS, *EXPERT_COLUMNS} - {"vocab_size"}
        names = [name for name in self.frame if name in described]
        if not names:
            return None
        return self.frame.groupby(names, dropna=False, sort=False).ngroup().to_numpy()

    @per_row
    def replicates(self) -> np.ndarray:
        """Return the number of each run's shape and recipe, (n,), equal for replicates."""
        return replicates_of(self.frame)

    @property
    def run_groups(self) -> np.ndarray | None:
        """Training run of every checkpoint, (n,); None where each row is a run of its own."""
        return self.frame[RUN_GROUP].to_numpy() if RUN_GROUP in self.frame else None

    # ---- warnings, noise and fingerprint, which fits record

    @cached_property
    def warnings(self) -> tuple[str, ...]:
        """Properties of the table that may bias a fit, as sentences, the most harmful first."""
        return tuple(list_warnings(self.frame, self.size_column))

    @cached_property
    def remarks(self) -> tuple[str, ...]:
        """Conversions of the values, and properties of the table that bias no fit, as sentences."""
        return (*self.notes, *list_remarks(self.frame))

    @cached_property
    def noise(self) -> tuple[float, int]:
        """Standard deviation of ln loss between seeds, pooled, and its degrees of freedom.

        The deviation is a fraction of the loss. Without replicates the values are NaN and 0.
        """
        squares, degrees = squares_of(self.replicates, np.log(self.losses))
        total = int(degrees.sum())
        return (float(np.sqrt(squares.sum() / total)), total) if total else (np.nan, 0)

    @cached_property
    def noise_by_size(self) -> pd.DataFrame:
        """Noise between seeds for each size that has replicates, non-embedding where known.

        :func:`shapelaw.scaling.runs.replicates.noise_by_size` describes the columns.
        """
        sizes = sizes_without_embedding(self.frame, otherwise=self.size_column)
        if sizes is None or not self.noise[1]:
            return pd.DataFrame({"n_non_embedding": [], "deviation": [], "degrees": []})
        return noise_by_size(self.replicates, np.log(self.losses), sizes)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the rows, in full precision."""
        return fingerprint(self.frame)

    def __repr__(self) -> str:
        count = f"N counts {self.size} parameters; " if self.has_sizes else ""
        name = self.source.get("name", "run table")
        shown = f"{len(self)} runs, {len(self.columns)} columns"
        return f"{name}: {shown}; {count}loss in {self.loss_unit}"

    def _repr_html_(self) -> str:
        return f"<p>{escape(repr(self))}</p>{self.frame._repr_html_()}"  # type: ignore[operator]


RunsLike: TypeAlias = RunTable | pd.DataFrame | str | Path  # a path or a name is loaded


def as_run_table(runs: RunsLike, size: str = AUTO) -> RunTable:
    """Convert a frame to a run table without checks, or change how a run table counts N.

    Parameters
    ----------
    runs
        Run table; a frame with one row per run; or the file or the name of a table, which is loaded
        and checked as by :func:`shapelaw.scaling.runs.catalog.load_runs`.
    size
        Convention of N; ``"auto"`` keeps the convention of a run table.

    Raises
    ------
    InputError
        The convention of N is unknown, the table lacks its column, or there is no table.
    """
    if isinstance(runs, RunTable):
        return runs.counting(size)
    if isinstance(runs, str | Path):
        from shapelaw.scaling.runs.catalog import load_runs

        return load_runs(runs, size=size)
    return RunTable(frame=as_frame(runs), size=size)


def as_frame(rows: RunTable | pd.DataFrame | Mapping[str, Any] | str | Path) -> pd.DataFrame:
    """Return rows as a data frame.

    Parameters
    ----------
    rows
        Data frame, run table, lists of values by column, or a CSV or Parquet file.

    Raises
    ------
    InputError
        The value is none of these, or the file cannot be read.
    """
    if isinstance(rows, RunTable):
        return rows.frame
    if isinstance(rows, pd.DataFrame):
        return rows
    if isinstance(rows, str | Path):
        return read_table(Path(rows))
    if isinstance(rows, Mapping):
        try:
            return pd.DataFrame(rows)
        except ValueError as error:
            raise InputError(
                f"columns of rows must be lists of one length, but {error}; write [value]"
            ) from None
    raise InputError(
        f"rows must be a RunTable, a data frame or the path of a table, but got "
        f"{type(rows).__name__}; read a file with shapelaw.load_runs"
    )


def fingerprint(frame: pd.DataFrame) -> str:
    """Return the SHA-256 of the rows of a frame, in full precision."""
    return hashlib.sha256(frame.to_csv(index=False).encode()).hexdigest()


def write_runs(path: Path, runs: RunTable | pd.DataFrame) -> None:
    """Write a run table to a file atomically, columns in the order of ``COLUMNS``, others last.

    Numbers keep every digit. The file's ending (.csv or .parquet) determines the format.
    """
    frame = runs.frame if isinstance(runs, RunTable) else runs
    described = [name for name in COLUMNS if name in frame]
    frame = frame[described + [name for name in frame if name not in COLUMNS]]
    if path.suffix.lower() == ".parquet":
        write_whole(path, lambda target: frame.to_parquet(target, index=False))
    else:
        write_whole(path, lambda target: frame.to_csv(target, index=False))
