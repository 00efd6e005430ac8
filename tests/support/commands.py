"""All commands of the command line, groups resolved."""

from collections.abc import Iterator
from typing import Any


def all_commands(group: Any) -> dict[tuple[str, ...], Any]:
    """Return all commands of a group and of the groups inside it, by their names."""

    def walk(group: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
        for name, command in group.commands.items():
            if hasattr(command, "commands"):
                yield from walk(command, (*path, name))
            else:
                yield (*path, name), command

    return dict(walk(group, ()))
