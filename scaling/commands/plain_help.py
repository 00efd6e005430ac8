"""Help texts without Python types: ``RUNS``, not ``RUNS <str>``; ``at least 1``, not ``x>=1``."""

from collections.abc import Callable
from typing import Any, TypeVar

import typer
import typer.core

Function = TypeVar("Function", bound=Callable[..., Any])


class PlainCommand(typer.core.TyperCommand):
    """Command with a ``--help`` that names its parameters by their metavars only."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write one entry for each argument, then one for each option."""
        entries: dict[str, list[tuple[str, str]]] = {"argument": [], "option": []}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None:
                kind, (name, text) = parameter.param_type_name, record
                name = str(parameter.metavar) if kind == "argument" else name
                entries[kind].append((name, text.replace("x>=", "at least ")))
        for kind, rows in entries.items():
            if rows:
                with formatter.section(f"{kind.capitalize()}s"):
                    formatter.write_dl(rows)


class PlainTyper(typer.Typer):
    """Typer application with commands of the class :class:`PlainCommand`."""

    def command(self, name: str | None = None, **settings: Any) -> Callable[[Function], Function]:
        """Register a command, as :meth:`typer.Typer.command` does."""
        return super().command(name, **{"cls": PlainCommand, **settings})
