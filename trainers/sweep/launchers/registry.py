"""Launchers by name."""

from collections.abc import Iterable, Mapping

from shapelaw.scaling.errors import InputError
from shapelaw.trainers.sweep.launchers._base import Launcher
from shapelaw.trainers.sweep.launchers._local import LocalLauncher
from shapelaw.trainers.sweep.launchers._ray import RayLauncher
from shapelaw.trainers.sweep.launchers._slurm import SlurmLauncher

LAUNCHERS: dict[str, type[Launcher]] = {
    "local": LocalLauncher,
    "ray": RayLauncher,
    "slurm": SlurmLauncher,
}


def launcher_named(name: str, options: Mapping[str, str] | None = None) -> Launcher:
    """Create a launcher by its name.

    Parameters
    ----------
    name
        Key of :data:`LAUNCHERS`.
    options
        Settings of the launcher by name.

    Raises
    ------
    InputError
        No launcher has this name, or an option cannot be used.
    """
    if name not in LAUNCHERS:
        raise InputError(f"`--launcher` must be one of {', '.join(LAUNCHERS)}, but got {name!r}")
    return LAUNCHERS[name](options or {})


def parse_options(texts: Iterable[str]) -> dict[str, str]:
    """Parse options given as ``NAME=VALUE``.

    Raises
    ------
    InputError
        An option has no ``=`` or no name.

    Examples
    --------
    >>> parse_options(["partition=gpu", "timeout_min=60"])
    {'partition': 'gpu', 'timeout_min': '60'}
    """
    options = {}
    for text in texts:
        name, separator, value = text.partition("=")
        if not (name and separator):
            raise InputError(f"`--option NAME=VALUE` must hold, but got {text!r}")
        options[name] = value
    return options
