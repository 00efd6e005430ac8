"""Options about the tables that a command reads, and the one way in which all commands read them.

A command takes all of them in one parameter: ``read: RunOptions = ALL_RUNS`` for run tables, or
``read: RowOptions = ALL_ROWS`` for tables of shapes, and :func:`with_table_options` gives it one
option on the command line for each of their fields.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_type_hints

from shapelaw.scaling.commands.options import (
    Columns,
    DropFailed,
    Exclude,
    LossUnit,
    Where,
    all_of,
)

if TYPE_CHECKING:
    import pandas as pd

    from shapelaw.scaling.runs.table import RunTable


@dataclass(frozen=True, kw_only=True)
class RowOptions:
    """Options of a table of shapes: which rows to keep, and which names its columns have."""

    where: Where = None
    exclude: Exclude = None
    columns: Columns = None

    @property
    def given(self) -> list[str]:
        """Names of the options that differ from their defaults."""
        changed = [field.name for field in fields(self) if getattr(self, field.name)]
        return [f"--{name.replace('_', '-')}" for name in changed]

    def rows_beside(self, path: Path) -> "pd.DataFrame":
        """Read a table beside the main one, with those changes of columns that it allows.

        Raises
        ------
        InputError
            The table cannot be read.
        """
        from shapelaw.scaling.runs.mapping import read_rows

        return read_rows(path, self.columns, optional=True)


@dataclass(frozen=True, kw_only=True)
class RunOptions(RowOptions):
    """Options of a run table: those of a table of shapes, the unit of losses, failed runs."""

    loss_unit: LossUnit = None
    drop_failed: DropFailed = False

    def load(self, runs: str | Path, size: str = "auto") -> "RunTable":
        """Load a run table by name or from a file.

        Parameters
        ----------
        runs
            Name or file of the table.
        size
            Convention of N.

        Raises
        ------
        InputError
            As :func:`shapelaw.scaling.runs.catalog.load_runs`.
        """
        from shapelaw.scaling.runs.catalog import load_runs

        return load_runs(
            str(runs),
            where=all_of(self.where),
            exclude=self.exclude or (),
            size=size,
            columns=self.columns,
            loss_unit=self.loss_unit,
            drop_failed=self.drop_failed,
        )


ALL_ROWS, ALL_RUNS = RowOptions(), RunOptions()


def with_table_options(command: Callable[..., None]) -> Callable[..., None]:
    """Replace a command's parameter of :class:`RowOptions` by one option for each of its fields.

    Parameters
    ----------
    command
        Function of a command with one such parameter.

    Returns
    -------
    Function that typer reads the options from, and that calls the command with all of them in one
    value.
    """
    signature = inspect.signature(command)
    name, default = next(
        (name, parameter.default)
        for name, parameter in signature.parameters.items()
        if isinstance(parameter.default, RowOptions)
    )
    kind = type(default)
    annotations = get_type_hints(kind, include_extras=True)
    options = [
        inspect.Parameter(
            field.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=field.default,
            annotation=annotations[field.name],
        )
        for field in fields(kind)
    ]
    parameters: list[inspect.Parameter] = []
    for each, parameter in signature.parameters.items():
        parameters += options if each == name else [parameter.replace(kind=options[0].kind)]

    @wraps(command)
    def run(**given: Any) -> None:
        chosen = {field.name: given.pop(field.name) for field in fields(kind)}
        command(**given, **{name: kind(**chosen)})

    run.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {each.name: each.annotation for each in parameters}
    return run
