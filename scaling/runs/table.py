"""The run table: finished training runs, checked and resolved once, when they are loaded."""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, wraps
from html import escape
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pandas as pd

from shapelaw.scaling.architectures.shape import INTEGER_FIELDS, RATIOS
from shapelaw.scaling.errors import InputError
from shapelaw.scaling.files import write_whole
from shapelaw.scaling.filters import select
from shapelaw.scaling.runs.columns import COLUMNS, NUMERIC, SIZES, D, N, columns_of
from shapelaw.scaling.runs.levels import SAME, level_of
from shapelaw.scaling.runs.ratios import table_of, with_ratios
from shapelaw.scaling.runs.reader import read_table
from shapelaw.scaling.runs.replicates import noise_by_size, replicates_of, squares_of
from shapelaw.scaling.runs.validation import (
    as_floats,
    losses_in_nats,
    plain_numbers,
    plain_switches,
    refuse_guessing,
    refuse_unknown_kinds,
    require_columns,
    validate,
    warnings_of,
)

LISTED = 1000  # runs left out that are named one by one
SOURCE = "the run table"  # what errors call a table that has no other name
AUTO = "auto"  # N counts what the first of SIZES does that a table has a column for
RUN_GROUP = "run_group"  # rows of one training run, where a table has several of each
NATS = "nats per token"

Values = TypeVar("Values", np.ndarray, np.ndarray | None)


def per_row(resolve: Callable[["RunTable"], Values]) -> cached_property[Values]:
    """Make a cached value per row that a part of a table takes over from the whole table."""

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
    """Finished training runs with everything resolved that depends on a convention.

    Made by :func:`shapelaw.scaling.runs.catalog.load_runs` from a file or a name, and by
    :meth:`of` from a frame. ``len(runs)`` counts runs, ``runs["loss"]`` is a column, ``"loss" in
    runs`` asks for one, ``runs.frame`` is the whole frame, :meth:`select` keeps some of the runs.
    Levels, replicates and run groups are numbers per row; they are resolved when they are first
    asked for, and a part of a table has those of the whole table.

    Parameters
    ----------
    frame
        One row per run; :data:`shapelaw.scaling.runs.columns.COLUMNS` describes the columns.
    size
        What N counts: ``non-embedding``, ``total`` or ``active`` parameters; ``"auto"`` is the
        first of these that the table has.
    loss_unit
        Unit of the losses.
    source
        Name, citation, licence and address of the table, as far as they are known.
    left_out
        Each run that the table does not hold any more, and why.
    warnings, notes
        Sentences for a reader of a fit, and about what was converted.

    Raises
    ------
    InputError
        There is no such convention of N, or the table lacks its column.
    """

    frame: pd.DataFrame
    size: str = AUTO
    loss_unit: str = NATS
    source: Mapping[str, str] = field(default_factory=dict)
    left_out: Mapping[str, str] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
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
    ) -> "RunTable":
        """Check a frame in memory as :func:`shapelaw.scaling.runs.catalog.load_runs` does a file.

        Parameters
        ----------
        frame
            One row per run; its index must count the rows from 0, for errors name lines by it.
        name
            What errors call the table.
        where, exclude, size
            As in :func:`shapelaw.scaling.runs.catalog.load_runs`.

        Raises
        ------
        InputError
            A value breaks a rule: line, column and value are named.
        """
        names = (
            frame["run_id"] if "run_id" in frame else [f"row-{i + 2}" for i in range(len(frame))]
        )
        runs = frame.assign(run_id=pd.Series(names, index=frame.index).astype(str))
        left_out = _unwanted(runs, set(exclude), name)
        # The index still counts the lines of the file: errors name them.
        runs = runs[~runs["run_id"].isin(left_out)] if left_out else runs
        runs = plain_numbers(runs, [column for column in runs if column in NUMERIC])
        runs = with_ratios(plain_switches(runs, name), name)
        if where is not None:
            chosen = select(where, {str(column): runs[column] for column in runs}, len(runs))
            left_out |= dict.fromkeys(runs["run_id"][~chosen], f"not in `{where}`")
            # What kept a column from being numbers may be gone with the rows.
            runs = plain_numbers(runs[chosen], [column for column in runs if column in NUMERIC])
        validate(runs, name)
        runs, notes = losses_in_nats(runs, name)
        refuse_guessing(runs, name)
        refuse_unknown_kinds(runs, name)
        runs = runs.reset_index(drop=True)
        runs.attrs = {}
        warnings = tuple(warnings_of(runs))
        return cls(
            frame=runs, size=size, left_out=_listed(left_out), warnings=warnings, notes=tuple(notes)
        )

    # ---- as a table

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
        """Keep the runs for which a filter such as ``"role == 'proxy' and gqa == 2"`` holds.

        Raises
        ------
        InputError
            The filter cannot be applied.
        """
        chosen = select(where, {str(name): self.frame[name] for name in self.frame}, len(self))
        dropped = dict.fromkeys(self.run_ids[~chosen].tolist(), f"not in `{where}`")
        return replace(self.take(chosen), left_out=_listed({**self.left_out, **dropped}))

    def take(self, rows: np.ndarray) -> "RunTable":
        """Take the runs of a mask or of positions, with all that is resolved for them."""
        rows = np.asarray(rows)
        rows = np.flatnonzero(rows) if rows.dtype == np.bool_ else rows
        whole, before = self._part or (self, np.arange(len(self)))
        return replace(self, frame=self.frame.iloc[rows], _part=(whole, before[rows]))

    def assign(self, **columns: Any) -> "RunTable":
        """Add or replace columns."""
        return replace(self, frame=self.frame.assign(**columns), _part=None)

    def counting(self, size: str) -> "RunTable":
        """Count N by another convention; ``"auto"`` keeps the one that the table has.

        Raises
        ------
        InputError
            There is no such convention, or the table lacks its column.
        """
        if size in (AUTO, self.size):
            return self
        part = self._part and (self._part[0].counting(size), self._part[1])
        return replace(self, size=size, _part=part)

    # ---- what N, D, the loss and the compute are

    @property
    def size_column(self) -> str:
        """The column that N is read from."""
        return SIZES[self.size]

    @property
    def has_sizes(self) -> bool:
        """Whether the table counts parameters at all."""
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
        """Kind of the losses: exact, bound, or mixed, which no fit takes."""
        kinds = self.frame["loss_kind"].unique() if "loss_kind" in self.frame else ["exact"]
        return str(kinds[0]) if len(kinds) == 1 else "mixed"

    def law_columns(self, names: Sequence[str]) -> dict[str, np.ndarray]:
        """Columns of a law as floats, (n,) each; ``n_non_embedding`` stands for N.

        Raises
        ------
        InputError
            The table lacks one, or one holds something else than numbers.
        """
        columns = {name: self.size_column if name == N else name for name in names}
        require_columns(self.frame, columns.values(), SOURCE)
        return {name: columns_of(self.frame, (own,))[own] for name, own in columns.items()}

    @per_row
    def compute(self) -> np.ndarray:
        """Training FLOPs of every run, (n,): ``flops_6nd`` where all runs have it, else 6 N D."""
        if "flops_6nd" in self.frame:
            given = as_floats(self.frame["flops_6nd"])
            if (given > 0).all():
                return given
        return np.asarray(6.0 * self.sizes * self.tokens)

    # ---- which runs belong together

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
        names = [name for name in (*INTEGER_FIELDS, *RATIOS) if name != "vocab_size"]
        names = [name for name in names if name in self.frame]
        if not names:
            return None
        return self.frame.groupby(names, dropna=False, sort=False).ngroup().to_numpy()

    @per_row
    def replicates(self) -> np.ndarray:
        """Return a number of each run's shape and recipe, (n,): equal ones differ in seeds only."""
        return replicates_of(self.frame)

    @property
    def run_groups(self) -> np.ndarray | None:
        """The training run that every row is a checkpoint of, (n,); None where rows stand alone."""
        return self.frame[RUN_GROUP].to_numpy() if RUN_GROUP in self.frame else None

    # ---- what a fit records

    @cached_property
    def noise(self) -> tuple[float, int]:
        """Standard deviation of ln loss between seeds, pooled, and its degrees of freedom.

        A fraction of the loss; NaN and 0 without replicates.
        """
        squares, degrees = squares_of(self.replicates, np.log(self.losses))
        total = int(degrees.sum())
        return (float(np.sqrt(squares.sum() / total)), total) if total else (np.nan, 0)

    @cached_property
    def noise_by_size(self) -> pd.DataFrame:
        """The noise between seeds for each non-embedding size that has replicates."""
        if not self.noise[1]:
            return pd.DataFrame({"n_non_embedding": [], "deviation": [], "degrees": []})
        sizes = self.frame[N] if N in self.frame else table_of(self.frame).n_non_embedding
        sizes = np.asarray(sizes, dtype=float)
        return noise_by_size(self.replicates, np.log(self.losses), sizes)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over the rows, in full precision."""
        return fingerprint(self.frame)

    def __repr__(self) -> str:
        count = f"N counts {self.size} parameters; " if self.has_sizes else ""
        name = self.source.get("name", "run table")
        shown = f"{len(self)} runs, {len(self.columns)} columns"
        return f"{name}: {shown}; {count}loss in {self.loss_unit}"

    def _repr_html_(self) -> str:
        return f"<p>{escape(repr(self))}</p>{self.frame._repr_html_()}"  # type: ignore[operator]


def as_run_table(runs: RunTable | pd.DataFrame, size: str = AUTO) -> RunTable:
    """Make a run table of what a public function is given; a bare frame is taken as it is.

    Parameters
    ----------
    size
        What N counts; ``"auto"``: as the table says.

    Raises
    ------
    InputError
        There is no such convention of N, or the table lacks its column.
    """
    if isinstance(runs, RunTable):
        return runs.counting(size)
    return RunTable(frame=runs, size=size)


def read_runs(
    path: Path | str, *, where: str | None = None, exclude: Iterable[str] = (), size: str = AUTO
) -> RunTable:
    """Read a run table from a file (CSV or Parquet), check it and keep its finished runs.

    Parameters and errors are those of :func:`shapelaw.scaling.runs.catalog.load_runs`, which also
    knows tables by name.
    """
    path = Path(path)
    runs = RunTable.of(read_table(path), str(path), where=where, exclude=exclude, size=size)
    return replace(runs, source={"name": path.name, "address": str(path)})


def _listed(left_out: dict[str, str]) -> dict[str, str]:
    """All that was left out, or the first ``LISTED`` and a count: frames copy their attributes."""
    more = len(left_out) - LISTED
    if more <= 0:
        return left_out
    return dict(islice(left_out.items(), LISTED)) | {f"{more} more runs": "for the same reasons"}


def _unwanted(runs: pd.DataFrame, exclude: set[str], source: str) -> dict[str, str]:
    """Rows excluded by name and runs that did not finish: {run_id: why}."""
    if unknown := sorted(exclude - set(runs["run_id"])) if exclude else []:
        raise InputError(
            f"{source} has no run {unknown[0]!r} to exclude; look at its run_id column"
        )
    unwanted = dict.fromkeys(sorted(exclude), "excluded by name")
    if "status" in runs:
        status = runs["status"].astype(object).fillna("done").astype(str)
        unfinished = (status != "done") & ~runs["run_id"].isin(exclude)
        unwanted |= dict(zip(runs["run_id"][unfinished], status[unfinished], strict=True))
    return unwanted


def with_best_loss(
    runs: RunTable | pd.DataFrame, *, size: str = AUTO, tolerance: float = SAME
) -> RunTable:
    """Add ``best_loss``: the lowest loss of all shapes trained at the same N and D, nats per token.

    The empirical L_opt that arXiv 2510.18245 multiplies its brackets with below 1B parameters, and
    that :class:`shapelaw.scaling.laws.bases.BestLoss` reads. A run without others at its N and D
    is its own best and tells nothing of shape. The best of few or noisy runs is no smooth law of N
    and D: a larger size needs runs of its own before its losses can be predicted.

    Parameters
    ----------
    size
        What N counts: ``non-embedding``, ``total`` or ``active``; ``"auto"``: as the table says.
    tolerance
        N and D within this fraction are equal.

    Raises
    ------
    InputError
        A column is missing, or there is no such convention.
    """
    runs = as_run_table(runs, size)
    keys = [runs.size_level, runs.token_level]
    if tolerance != SAME:
        keys = [level_of(values, tolerance) for values in (runs.sizes, runs.tokens)]
    best = runs["loss"].astype(float).groupby(keys).transform("min")
    return runs.assign(best_loss=best)


def fingerprint(frame: pd.DataFrame) -> str:
    """Hash the rows of a frame, in full precision: SHA-256."""
    return hashlib.sha256(frame.to_csv(index=False).encode()).hexdigest()


def write_runs(path: Path, runs: RunTable | pd.DataFrame) -> None:
    """Write a run table whole, in the order of ``COLUMNS``, other columns last.

    Numbers keep every digit; the format follows the file's ending (.csv or .parquet).
    """
    frame = runs.frame if isinstance(runs, RunTable) else runs
    known = [name for name in COLUMNS if name in frame]
    frame = frame[known + [name for name in frame if name not in COLUMNS]]
    if path.suffix == ".parquet":
        write_whole(path, lambda target: frame.to_parquet(target, index=False))
    else:
        write_whole(path, lambda target: frame.to_csv(target, index=False))
